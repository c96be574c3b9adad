import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import Fault, WrongCall
from tests.models import write_model
from trainer import networks, registry
from trainer.ensemble import write_ensemble
from trainer.registry import list_models, model_folder, pull, register
from trainer.serving import load_segmenter, read_safetensors
from trainer.tracking import import_mlflow, start_run

TAGS = {"dataset_digest": "sha256:0123", "network": "unet", "seed": "0"}


@pytest.fixture
def registered(tracker: Path, model_folder: Path, request: pytest.FixtureRequest) -> str:
    """The name of a model with one version, under the alias candidate; the test's own."""
    name = str(request.node.name).replace("[", "-").replace("]", "")
    register(model_folder, name, "candidate", None, {"dsc": 0.875, "dsc_sd": 0.014}, TAGS)
    return name


@pytest.fixture
def packaged(tracker: Path, registered: str) -> Path:
    """Where the tracker's store keeps the registered model."""
    uri = f"models:/{registered}@candidate"
    location = import_mlflow().artifacts.download_artifacts(artifact_uri=uri)
    assert Path(location).is_relative_to(tracker)
    return Path(location)


def refusal_of(call: Callable[[], object]) -> str:
    with pytest.raises(WrongCall) as refused:
        call()
    return str(refused.value)


# Register


def test_a_registered_model_is_one_python_file_weights_and_descriptions(packaged: Path) -> None:
    files = {path.relative_to(packaged).as_posix() for path in packaged.rglob("*") if path.is_file()}
    assert files - {"registered_model_meta"} == {
        "MLmodel",
        "artifacts/model/generator.safetensors",
        "artifacts/model/network.json",
        "conda.yaml",
        "input_example.json",
        "model.py",
        "python_env.yaml",
        "requirements.txt",
        "serving_input_example.json",
    }


def test_a_registered_model_tells_nothing_of_the_machine(
    packaged: Path, tracker: Path, model_folder: Path, tmp_path: Path
) -> None:
    places = [tracker, model_folder, tmp_path, Path.home(), Path(registry.__file__).parents[1], Path("/tmp")]
    for file in packaged.rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            text = file.read_text()
            for secret in [*map(str, places), socket.gethostname()]:
                assert secret not in text, f"{secret} is in {file.name}"


def test_a_registered_model_asks_for_packages_that_an_index_has(packaged: Path) -> None:
    wanted = dict(line.split("==") for line in (packaged / "requirements.txt").read_text().splitlines())
    assert wanted.keys() == {"mlflow", "torch", "numpy", "pandas", "pillow"}
    assert wanted["torch"] == "2.13.0"


def test_a_version_has_its_alias_metrics_and_tags(registered: str, model_folder: Path) -> None:
    client = import_mlflow().MlflowClient()
    version = client.get_model_version_by_alias(registered, "candidate")
    assert version.tags["dsc"] == "0.875"
    assert version.tags["dsc_sd"] == "0.014"
    assert version.tags.items() >= TAGS.items()
    assert version.status == "READY"


def test_the_alias_moves_to_the_newest_version(registered: str, model_folder: Path) -> None:
    second = register(model_folder, registered, "candidate", None, {"dsc": 0.9}, {})
    assert (second.version, second.uri) == (2, f"models:/{registered}@candidate")
    newest, oldest = list_models(registered)
    assert (newest.version, newest.aliases, newest.dsc, newest.dataset_digest) == (2, ("candidate",), 0.9, None)
    assert (oldest.version, oldest.aliases, oldest.dsc, oldest.dataset_digest) == (1, (), 0.875, "sha256:0123")
    assert newest.created >= oldest.created


def test_a_model_of_a_run_is_among_its_outputs_with_its_metrics(
    tracker: Path, model_folder: Path, tmp_path: Path
) -> None:
    run = start_run("trained", "outputs", {}, {})
    register(model_folder, "of-a-run", "candidate", run.id, {"dsc": 0.5}, TAGS)
    run.finish()
    client = import_mlflow().MlflowClient()
    (output,) = client.get_run(run.id).outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert str(logged.status) == "READY"
    assert [(metric.key, metric.value) for metric in logged.metrics] == [("dsc", 0.5)]
    assert client.get_model_version("of-a-run", "1").run_id == run.id
    pulled = pull(f"runs:/{run.id}/segmenter", tmp_path / "cache")
    assert (pulled / "generator.safetensors").read_bytes() == (model_folder / "generator.safetensors").read_bytes()
    assert "it has segmenter" in refusal_of(lambda: pull(f"runs:/{run.id}/other", tmp_path))


@pytest.mark.parametrize("broken", ["generator.safetensors", "network.json"])
def test_a_folder_without_a_sound_model_is_not_registered(tracker: Path, model_folder: Path, broken: str) -> None:
    (model_folder / broken).write_bytes(b"\x00" * 100)
    assert broken in refusal_of(lambda: register(model_folder, "unsound", "candidate", None, {}, {}))
    assert "there is no registered model unsound" in refusal_of(lambda: list_models("unsound"))


def test_a_dead_tracker_is_told_in_bounded_time_and_without_its_password(
    tracker: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:hunter2@127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(Fault) as failed:
        register(model_folder, "unreachable", "candidate", None, {}, {})
    assert time.monotonic() - started < 30
    assert str(failed.value) == (
        f"{model_folder} was not registered as unreachable and stays where it is: "
        f"http://***@127.0.0.1:{port}: [Errno 111] Connection refused"
    )


# Ensembles


@pytest.fixture
def ensemble(model_folder: Path, tmp_path: Path) -> Path:
    """An ensemble of two networks of one kind."""
    other = write_model(tmp_path / "other", "unet", (32, 48), 0.5, widths=[4, 8], heads=1)
    write_ensemble([model_folder, other], tmp_path / "ensemble", flips=True)
    return tmp_path / "ensemble"


def test_an_ensemble_is_registered_and_pulled_whole(tracker: Path, ensemble: Path, tmp_path: Path) -> None:
    register(ensemble, "ensemble", "candidate", None, {"dsc": 0.5}, TAGS)
    pulled = model_folder("models:/ensemble@candidate", tmp_path / "cache")
    for file in ensemble.rglob("*"):
        if file.is_file():
            assert (pulled / file.relative_to(ensemble)).read_bytes() == file.read_bytes()
    assert len(list(pulled.rglob("*"))) == len(list(ensemble.rglob("*")))
    images = [np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)]
    maps = load_segmenter(pulled, networks.build).probabilities(images)
    np.testing.assert_array_equal(maps, load_segmenter(ensemble, networks.build).probabilities(images))


def test_a_damaged_member_in_the_store_or_in_the_cache_is_refused(
    tracker: Path, ensemble: Path, tmp_path: Path
) -> None:
    def damage(weights: Path) -> None:
        with weights.open("r+b") as opened:
            opened.seek(-1, 2)
            opened.write(b"\xff")

    register(ensemble, "damaged", "candidate", None, {}, {})
    pulled = pull("models:/damaged@candidate", tmp_path / "cache")
    damage(pulled / "member-2" / "generator.safetensors")
    with pytest.raises(Fault, match=r"delete the folder and pull again"):
        pull("models:/damaged@candidate", tmp_path / "cache")
    stored = Path(import_mlflow().artifacts.download_artifacts(artifact_uri="models:/damaged@candidate"))
    damage(stored / "artifacts/model/member-1/generator.safetensors")
    with pytest.raises(Fault, match="damaged in the tracker's artifact store"):
        pull("models:/damaged@candidate", tmp_path / "other-cache")


def test_an_ensemble_with_a_member_missing_is_not_registered(tracker: Path, ensemble: Path) -> None:
    shutil.rmtree(ensemble / "member-2")
    said = refusal_of(lambda: register(ensemble, "partial", "candidate", None, {}, {}))
    assert said.startswith(f"{ensemble / 'member-2/network.json'}: cannot be read")


# Pull


@pytest.mark.parametrize("form", ["models:/{}@candidate", "models:/{}/1"], ids=["alias", "version"])
def test_a_pulled_model_outlines_as_the_one_that_was_registered(
    registered: str, model_folder: Path, tmp_path: Path, form: str
) -> None:
    pulled = pull(form.format(registered), tmp_path / "cache")
    assert {path.name for path in pulled.iterdir()} == {"generator.safetensors", "network.json"}
    weights, original = (read_safetensors(folder / "generator.safetensors") for folder in (pulled, model_folder))
    assert weights.keys() == original.keys()
    assert all(weights[name].equal(original[name]) for name in original)
    images = [np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)]
    masks = load_segmenter(pulled, networks.build).masks(images)
    np.testing.assert_array_equal(masks, load_segmenter(model_folder, networks.build).masks(images))


def test_pulling_neither_takes_nor_runs_the_models_code(registered: str, packaged: Path, tmp_path: Path) -> None:
    (packaged / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    pulled = pull(f"models:/{registered}@candidate", tmp_path / "cache")
    load_segmenter(pulled, networks.build)
    assert not (tmp_path / "ran").exists()
    assert not list(pulled.rglob("*.py"))


def test_a_model_that_was_pulled_is_not_pulled_again(registered: str, packaged: Path, tmp_path: Path) -> None:
    first = pull(f"models:/{registered}@candidate", tmp_path / "cache")
    shutil.rmtree(packaged)
    assert pull(f"models:/{registered}/1", tmp_path / "cache") == first


def test_damaged_weights_in_the_store_are_refused_and_leave_nothing(
    registered: str, packaged: Path, tmp_path: Path
) -> None:
    with (packaged / "artifacts/model/generator.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\xff")
    with pytest.raises(Fault, match="damaged in the tracker's artifact store"):
        pull(f"models:/{registered}@candidate", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_pulled_folder_that_was_changed_is_refused(registered: str, tmp_path: Path) -> None:
    pulled = pull(f"models:/{registered}@candidate", tmp_path / "cache")
    (pulled / "generator.safetensors").write_bytes(b"other")
    with pytest.raises(Fault, match=r"delete the folder and pull again"):
        pull(f"models:/{registered}@candidate", tmp_path / "cache")


def test_what_does_not_exist_is_refused_with_what_does(registered: str, tmp_path: Path) -> None:
    def refused(uri: str) -> str:
        return refusal_of(lambda: pull(uri, tmp_path))

    assert refused(f"models:/{registered}@champion").endswith("has no alias champion; it has candidate")
    assert refused(f"models:/{registered}/7").endswith("has no version 7; it has 1")
    assert "there is no registered model absent" in refused("models:/absent@candidate")
    assert registered in refused("models:/absent@candidate")
    assert refused(f"runs:/{'0' * 32}/segmenter").endswith(f"the tracker has no run {'0' * 32}")
    assert list(tmp_path.glob("absent*")) == []


def test_a_model_of_another_kind_is_refused(tracker: Path, tmp_path: Path) -> None:
    client = import_mlflow().MlflowClient()
    client.create_registered_model("foreign")
    client.create_model_version("foreign", source=str(tracker / "mlruns"))
    assert "was not registered by sonotrain" in refusal_of(lambda: pull("models:/foreign/1", tmp_path))


# What a person means by a model


def test_a_checkpoint_folder_is_a_model(model_folder: Path, tmp_path: Path) -> None:
    assert registry.model_folder(str(model_folder), tmp_path) == model_folder


def test_a_registered_models_uri_is_a_model(registered: str, tmp_path: Path) -> None:
    folder = model_folder(f"models:/{registered}@candidate", tmp_path / "cache")
    assert json.loads((folder / "network.json").read_text())["network"] == "unet"


@pytest.mark.parametrize("model", ["absent", ".", "models:/", "models:/name", "models:name@alias", "runs:/x", ""])
def test_anything_else_is_refused_with_the_forms_there_are(tracker: Path, model: str, tmp_path: Path) -> None:
    assert "models:/NAME@ALIAS" in refusal_of(lambda: model_folder(model, tmp_path))
