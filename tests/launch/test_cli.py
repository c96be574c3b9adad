"""The command line: what it answers, what it writes for machines, and how it says that a call is wrong."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline import open_dataset, plan_epoch
from tests.launch.command import Command

SONOTRAIN = [sys.executable, "-P", "-m", "launch.cli"]


# -- the command itself ----------------------------------------------------------------------------------------------


def test_help_is_there_at_once() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    help_text = subprocess.run([*SONOTRAIN, "--help"], capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Seconds of computing, which a busy machine does not lengthen.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    for verb in ("demo", "data", "train", "crossval", "evaluate", "predict", "launch", "models"):
        assert f" {verb} " in help_text


def test_nothing_heavy_is_imported_before_a_verb_is_chosen() -> None:
    heavy = "{'torch', 'mlflow', 'deepspeed', 'numpy', 'boto3'}"
    program = f"import launch.cli, sys; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("arguments", [["tarin", "quick"], ["data", "info", "--colour", "phantoms"], ["data", "info"]])
def test_an_unknown_verb_or_option_or_a_missing_argument_is_a_wrong_call(
    sonotrain: Command, arguments: list[str]
) -> None:
    assert sonotrain(*arguments).status == 2


def test_a_process_of_its_own_exits_with_the_status_and_one_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*SONOTRAIN, "data", "info", "nowhere"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("place", ["first", "last"])
def test_debug_shows_where_an_error_came_from(sonotrain: Command, place: str) -> None:
    call = ["data", "info", "nowhere"]
    ended = sonotrain("--debug", *call) if place == "first" else sonotrain(*call, "--debug")
    assert ended.status == 2
    assert "Traceback" in ended.errors
    assert ended.errors.splitlines()[-1].startswith("error: ")


# -- data ------------------------------------------------------------------------------------------------------------


def test_a_folder_of_scans_becomes_a_dataset_that_is_sound(sonotrain: Command, scans: Path) -> None:
    ended = sonotrain("data", "ingest", "bus_bra", scans, "dataset", "--folds", 2, "--json", "info.json")
    assert ended.status == 0
    assert ended.output.splitlines()[-1] == f"Dataset bus_bra: 10 scans in {Path('dataset').absolute()}"
    told = json.loads(Path("info.json").read_text())
    assert told["name"] == "bus_bra"
    assert told["samples"] == told["patients"] == 10
    assert set(told["folds"]) == {"1", "2"}
    assert sum(told["folds"].values()) == 10
    assert told["refused"] == {}
    assert told["shards"] == 2  # one for each fold
    assert told["bytes"] == sum(path.stat().st_size for path in Path("dataset").glob("*.tar"))
    assert told["digest"] == open_dataset("dataset").index.digest
    assert sonotrain("data", "verify", "dataset").output.endswith("dataset is sound\n")


def _truncate(folder: Path) -> str:
    image = folder / "bus_0003-l.png"
    image.write_bytes(image.read_bytes()[:400])
    return "bus_0003-l"


def _fill_with_text(folder: Path) -> str:
    (folder / "bus_0003-l.png").write_text("no image")
    return "bus_0003-l"


def _drop_image(folder: Path) -> str:
    (folder / "bus_0003-l.png").unlink()
    return "mask_0003-l.png"


def _drop_mask(folder: Path) -> str:
    (folder / "mask_0003-l.png").unlink()
    return "bus_0003-l.png"


def _resize_mask(folder: Path) -> str:
    Image.fromarray(np.zeros((48, 63), dtype=np.uint8)).save(folder / "mask_0003-l.png")
    return "bus_0003-l"


BREAKS = [_truncate, _fill_with_text, _drop_image, _drop_mask, _resize_mask]


@pytest.mark.parametrize("broken", BREAKS)
def test_a_broken_scan_is_left_out_and_named(sonotrain: Command, scans: Path, broken: object) -> None:
    name = broken(scans)  # type: ignore[operator]
    ended = sonotrain("data", "ingest", "bus_bra", scans, "dataset", "--folds", 2, "--json", "info.json")
    assert ended.status == 0
    told = json.loads(Path("info.json").read_text())
    assert told["samples"] == 9
    assert list(told["refused"]) == [name]
    assert name in ended.output


@pytest.mark.parametrize("broken", BREAKS)
def test_strict_stops_at_a_broken_scan_and_writes_nothing(sonotrain: Command, scans: Path, broken: object) -> None:
    name = broken(scans)  # type: ignore[operator]
    ended = sonotrain("data", "ingest", "bus_bra", scans, "dataset", "--folds", 2, "--strict")
    assert ended.status == 1
    assert name in ended.error
    assert list(Path("dataset").iterdir()) == []


def test_a_source_that_is_missing_empty_or_all_broken_is_a_wrong_call(sonotrain: Command, scans: Path) -> None:
    assert "does not exist" in sonotrain("data", "ingest", "bus_bra", "nowhere", "dataset").error
    Path("empty").mkdir()
    assert "holds no scan" in sonotrain("data", "ingest", "bus_bra", "empty", "dataset").error
    for image in scans.glob("bus_*.png"):
        image.write_text("no image")
    ended = sonotrain("data", "ingest", "bus_bra", scans, "dataset")
    assert ended.status == 2
    assert "none of 10 scans can be read" in ended.error
    assert list(Path("dataset").iterdir()) == []


def test_an_unknown_layout_is_a_wrong_call(sonotrain: Command, scans: Path) -> None:
    ended = sonotrain("data", "ingest", "bus-bra", scans, "dataset")
    assert ended.status == 2
    assert "did you mean bus_bra?" in ended.error


@pytest.mark.parametrize("verb", ["ingest", "phantom"])
def test_a_destination_that_holds_a_dataset_loses_nothing(
    sonotrain: Command, scans: Path, dataset: Path, verb: str
) -> None:
    before = {path: path.read_bytes() for path in dataset.iterdir()}
    new = ["ingest", "bus_bra", scans] if verb == "ingest" else ["phantom", "--count", 4, "--size", "32x32"]
    ended = sonotrain("data", *new, dataset)
    assert ended.status == 2
    assert "holds a dataset already" in ended.error
    assert before == {path: path.read_bytes() for path in dataset.iterdir()}


def test_verify_finds_one_changed_byte(sonotrain: Command, dataset: Path) -> None:
    shard = min(dataset.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    ended = sonotrain("data", "verify", dataset)
    assert ended.status == 1
    assert "sha256 differs" in ended.output
    assert "is damaged in" in ended.error


def test_order_is_the_plan_of_that_rank_from_that_place_on(sonotrain: Command, dataset: Path) -> None:
    call = ["data", "order", dataset, "--seed", 7, "--epoch", 3, "--global-batch", 4, "--world", 2, "--rank", 1]
    assert sonotrain(*call, "--start", 4, "--folds", "3,1", "--json", "order.json").status == 0
    index = open_dataset(str(dataset)).index
    places = plan_epoch(index, [1, 3], seed=7, epoch=3, global_batch=4).order[1:, 2:]
    assert json.loads(Path("order.json").read_text())["keys"] == [index.samples[place].key for place in places.ravel()]


def test_order_without_a_file_prints_a_key_a_line(sonotrain: Command, dataset: Path) -> None:
    call = ["data", "order", dataset, "--seed", 0, "--epoch", 0, "--global-batch", 6, "--world", 1, "--rank", 0]
    lines = sonotrain(*call).output.splitlines()
    assert sorted(lines[:12]) == [f"phantom-{number:05d}" for number in range(12)]
    assert lines[12].startswith("neighbours in a shard are ")
    assert lines[13:] == ["12 scans of rank 0 of 1 in epoch 0, above"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"--global-batch": 5}, "a global batch of 5 cannot be shared by 2 processes"),
        ({"--rank": 2}, "rank 2 is not one of 0 to 1"),
        ({"--start": 3}, "--start 3 is no multiple of the global batch, 4"),
        ({"--start": 400}, "--start 400 is no multiple of the global batch, 4, up to 12"),
        ({"--folds": "1,9"}, "has no fold 9; its folds are 1, 2, 3"),
        ({"--folds": "one"}, "--folds one is no list of folds"),
        ({"--json": "nowhere/order.json"}, "there is no folder nowhere"),
    ],
)
def test_an_order_that_there_is_not_is_a_wrong_call(
    sonotrain: Command, dataset: Path, change: dict[str, object], reason: str
) -> None:
    options = {"--seed": 0, "--epoch": 0, "--global-batch": 4, "--world": 2, "--rank": 0, **change}
    ended = sonotrain("data", "order", dataset, *(part for option in options.items() for part in option))
    assert ended.status == 2
    assert reason in ended.error


# -- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["train", "crossval"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("data.urn=x", "there is no key data.urn; the nearest is data.uri"),
        ("training.epochs=many", "training.epochs='many'"),
        ("training.epochs", "'training.epochs' is no key=value"),
    ],
)
def test_a_configuration_that_is_none_is_a_wrong_call(sonotrain: Command, verb: str, change: str, reason: str) -> None:
    ended = sonotrain(verb, "quick", change)
    assert ended.status == 2
    assert reason in ended.error


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (["train", "quick", "data.uri=nowhere"], "nowhere holds no dataset"),
        (["train", "quick", "data.uri=phantoms", "data.fold=9"], "data.fold=9"),
        (["crossval", "quick", "data.uri=phantoms", "folds=[1,9]"], "data.fold=9"),
        (["train", "quick", "data.uri=phantoms", "data.size=[64,64]"], "too small for the discriminators"),
        (
            ["launch", "local", "--procs", "2", "--", "train", "quick", "data.uri=phantoms", "training.batch=5"],
            "training.batch=5 cannot be shared by 2 processes",
        ),
    ],
)
@pytest.mark.usefixtures("dataset")
def test_a_training_that_cannot_be_is_a_wrong_call_told_once(tmp_path: Path, call: list[str], reason: str) -> None:
    ended = subprocess.run(
        [*SONOTRAIN, *call], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, check=False
    )
    assert ended.returncode == 2
    (error,) = (line for line in ended.stdout.splitlines() if "error: " in line)
    assert reason in error
    assert "Traceback" not in ended.stdout
    assert not list(tmp_path.glob("runs/latest/checkpoints"))


def test_a_configuration_that_is_not_there_is_a_wrong_call(sonotrain: Command) -> None:
    ended = sonotrain("train", "quickly")
    assert ended.status == 2
    assert "quickly: neither a file nor a preset; the presets are bus-bra, demo, paper, quick" in ended.error


@pytest.mark.parametrize(
    ("verb", "reason"),
    [
        (["data", "info", "phantoms"], "data cannot be launched"),
        (["train", "quick", "data.urn=x"], "there is no key data.urn"),
        (["train", "quickly"], "neither a file nor a preset"),
    ],
)
def test_a_launch_that_cannot_begin_starts_no_process(sonotrain: Command, verb: list[str], reason: str) -> None:
    ended = sonotrain("launch", "local", "--procs", 2, "--", *verb)
    assert ended.status == 2
    assert reason in ended.error
    assert not Path("runs").exists()


@pytest.mark.parametrize("way", ["local", "ssh", "slurm"])
def test_only_kubernetes_starts_a_search_that_starts_its_trials_itself(sonotrain: Command, way: str) -> None:
    ended = sonotrain("launch", way, *(["--hostfile", "hosts"] if way == "ssh" else []), "--", "tune", "quick")
    assert ended.status == 2
    assert f"launch {way} starts no tune" in ended.error
    assert "RAY_ADDRESS" in ended.error
    assert not Path("runs").exists()


# -- models ----------------------------------------------------------------------------------------------------------


def test_a_model_is_judged_beside_its_baselines(sonotrain: Command, dataset: Path, model_folder: Path) -> None:
    ended = sonotrain(
        "evaluate", model_folder, dataset, "--folds", "1,2", "--baselines", "--json", "e.json", "--csv", "e.csv"
    )
    assert ended.status == 0
    told = json.loads(Path("e.json").read_text())
    for judged in (told, told["baselines"]["untrained"], told["baselines"]["centred_ellipse"]):
        assert judged["cases"] + judged["normals"]["cases"] == 8
        for measure in ("dsc", "precision", "recall", "jaccard", "rmse", "hd95"):
            assert judged[measure]["low"] <= judged[measure]["mean"] <= judged[measure]["high"]
    assert told["unit"] == "mm"
    assert len(Path("e.csv").read_text().splitlines()) == 1 + 8
    of_lesions = f"DSC {told['dsc']['mean']:.4f} over {told['cases']} scans with a lesion"
    assert ended.output.splitlines()[-1] == f"{of_lesions}; written to e.json and e.csv"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["evaluate", "nowhere", "phantoms"], "nowhere: no model"),
        (["evaluate", "model", "nowhere"], "holds no dataset"),
        (["evaluate", "model", "phantoms", "--folds", "7"], "has no fold 7"),
        (["predict", "model", "nowhere.png", "--out", "predictions"], "nowhere.png is not there"),
        (["models", "list", "nothing"], "there is no registered model nothing"),
        (["models", "pull", "models:/nothing@candidate", "pulled"], "there is no registered model nothing"),
    ],
)
def test_a_model_dataset_or_image_that_is_not_there_is_a_wrong_call(
    sonotrain: Command,
    dataset: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    reason: str,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ended = sonotrain(*arguments)
    assert ended.status == 2
    assert reason in ended.error


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_done(
    sonotrain: Command, scans: Path, model_folder: Path
) -> None:
    good, bad = scans / "bus_0001-l.png", scans / "bus_0002-l.png"
    bad.write_text("no image")
    ended = sonotrain("predict", model_folder, good, bad, "--out", "predictions")
    assert ended.status == 1
    assert "1 of 2 images cannot be read" in ended.error
    assert "bus_0002-l.png" in ended.output
    with Image.open("predictions/bus_0001-l.mask.png") as mask:
        assert mask.size == (64, 48)
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
    lines = [json.loads(line) for line in Path("predictions/predictions.jsonl").read_text().splitlines()]
    assert ["error" in line for line in lines] == [False, True]
