"""What `data ingest` makes of near-duplicates, folds and splits, and of a disk or a person that stops it."""

import csv
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipeline import Index, Refused, open_dataset, stream_scans
from launch.ingest import Ingestion, ingest
from tests.launch.command import Command, Outcome

SONOTRAIN = [sys.executable, "-P", "-m", "launch.cli"]


def key(number: int) -> str:
    return f"bus_{number:04d}-l"


def copy_scan(folder: Path, number: int, copy: int, brighter: int = 0) -> None:
    """The same picture as another patient's scan, with its mask."""
    with Image.open(folder / f"{key(number)}.png") as picture:
        image = np.asarray(picture)
    Image.fromarray(image // 2 + np.uint8(brighter) if brighter else image).save(folder / f"{key(copy)}.png")
    shutil.copy(folder / f"mask_{number:04d}-l.png", folder / f"mask_{copy:04d}-l.png")


def write_tables(folder: Path, folds: Mapping[int, int], malignant: set[int] = frozenset()) -> None:
    """The two tables of BUS-BRA; folds holds the official one of each case."""
    for name, column, values in (
        ("bus_data.csv", "Pathology", {case: "malignant" if case in malignant else "benign" for case in folds}),
        ("5-fold-cv.csv", "kFold", folds),
    ):
        rows = [("ID", "Case", column), *((key(case), case, value) for case, value in values.items())]
        with (folder / name).open("w", newline="") as table:
            csv.writer(table).writerows(rows)


def ingested(sonotrain: Command, scans: Path, *options: object) -> tuple[Outcome, dict[str, Any], Index]:
    ended = sonotrain("data", "ingest", "bus_bra", scans, "dataset", "--json", "told.json", *options)
    assert ended.status == 0, ended.errors
    return ended, json.loads(Path("told.json").read_text()), open_dataset("dataset").index


def folds_of(index: Index) -> dict[str, int]:
    return {sample.key: sample.fold for sample in index.samples}


# -- near-duplicates -------------------------------------------------------------------------------------------------


def test_near_duplicates_of_several_patients_share_a_group_and_a_fold(sonotrain: Command, scans: Path) -> None:
    copy_scan(scans, 3, 20, brighter=60)
    copy_scan(scans, 3, 21)
    copy_scan(scans, 7, 22)
    ended, told, index = ingested(sonotrain, scans, "--folds", 5)
    assert told["near_duplicates"] == [[key(3), key(20), key(21)], [key(7), key(22)]]
    assert f"near-duplicates: 5 scans in 2 groups, each kept in one fold: {key(3)}={key(20)}={key(21)}" in ended.output
    group = {sample.key: sample.group for sample in index.samples}
    assert group[key(3)] == group[key(20)] == group[key(21)] != group[key(7)] == group[key(22)]
    assert len(set(group.values())) == 10
    folds = folds_of(index)
    assert folds[key(3)] == folds[key(20)] == folds[key(21)]
    assert folds[key(7)] == folds[key(22)]
    assert sonotrain("data", "verify", "dataset").status == 0


def test_scans_that_only_look_alike_stay_apart(sonotrain: Command, scans: Path) -> None:
    ended, told, index = ingested(sonotrain, scans)
    assert told["near_duplicates"] == []
    assert told["overruled"] == {}
    assert len({sample.group for sample in index.samples}) == 10
    assert "near-duplicates" not in ended.output


def test_identical_scans_with_two_labels_are_kept_together_and_told(sonotrain: Command, scans: Path) -> None:
    copy_scan(scans, 2, 20)
    write_tables(scans, dict.fromkeys([*range(10), 20], 0), malignant={20})
    ended, _, index = ingested(sonotrain, scans, "--folds", 3)
    assert "identical pixels under several labels, all kept" in ended.output
    assert f": {key(2)} (benign)={key(20)} (malignant)" in ended.output
    by_key = {sample.key: sample for sample in index.samples}
    assert (by_key[key(2)].label, by_key[key(20)].label) == ("benign", "malignant")
    assert (by_key[key(2)].group, by_key[key(2)].fold) == (by_key[key(20)].group, by_key[key(20)].fold)


def test_constant_images_that_are_identical_share_a_group(sonotrain: Command, scans: Path) -> None:
    for number in (2, 5):
        Image.fromarray(np.zeros((48, 64), dtype=np.uint8)).save(scans / f"{key(number)}.png")
    _, told, _ = ingested(sonotrain, scans)
    assert told["near_duplicates"] == [[key(2), key(5)]]


# -- folds -----------------------------------------------------------------------------------------------------------


def test_official_folds_are_kept(sonotrain: Command, scans: Path) -> None:
    official = {number: 1 + number % 3 for number in range(10)}
    write_tables(scans, official)
    ended, told, index = ingested(sonotrain, scans)
    assert folds_of(index) == {key(number): fold for number, fold in official.items()}
    assert told["overruled"] == {}
    assert "overruled" not in ended.output


def test_official_folds_give_way_to_near_duplicates_and_say_so(sonotrain: Command, scans: Path) -> None:
    copy_scan(scans, 3, 20)
    copy_scan(scans, 3, 21)
    official = {number: 1 + number % 3 for number in range(10)} | {20: 2, 21: 2}
    write_tables(scans, official)
    ended, told, index = ingested(sonotrain, scans)
    expected = {key(number): fold for number, fold in official.items()} | {key(3): 2}
    assert folds_of(index) == expected
    assert told["overruled"] == {key(3): 1}
    assert "official folds overruled" in ended.output
    assert f"1 moved: {key(3)} (from 1 to 2)" in ended.output


def test_samples_lie_by_fold_and_key_whatever_order_they_were_found_in(sonotrain: Command, scans: Path) -> None:
    write_tables(scans, {number: 3 - number % 3 for number in range(10)})
    _, _, index = ingested(sonotrain, scans)
    places = [(sample.fold, sample.key) for sample in index.samples]
    assert places == sorted(places)
    assert {fold for fold, _ in places} == {1, 2, 3}


def test_what_is_told_of_each_fold_is_what_its_scans_are(sonotrain: Command, scans: Path) -> None:
    write_tables(scans, dict.fromkeys(range(10), 0), malignant={0, 4, 8})
    _, told, index = ingested(sonotrain, scans, "--folds", 2)
    masks = {scan.key: scan.mask for scan in stream_scans(open_dataset("dataset"), range(10))}
    assert [fold["fold"] for fold in told["by_fold"]] == [1, 2]
    for fold in told["by_fold"]:
        held = [sample for sample in index.samples if sample.fold == fold["fold"]]
        assert fold["scans"] == fold["patients"] == len(held)
        assert fold["labels"] == {"benign": 0, "malignant": 0} | Counter(sample.label for sample in held)
        areas = [masks[sample.key].mean() for sample in held if masks[sample.key].any()]
        assert fold["lesion_area"] == pytest.approx(np.mean(areas))


def test_scans_that_memory_does_not_hold_are_decoded_again_to_the_same_dataset(
    sonotrain: Command, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_scan(scans, 3, 20)
    _, told, _ = ingested(sonotrain, scans)
    monkeypatch.setattr("launch.ingest.KEPT_BYTES", 5 * 2 * 48 * 64)
    assert sonotrain("data", "ingest", "bus_bra", scans, "again").status == 0
    assert open_dataset("again").index.digest == told["digest"]


# -- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["splits.csv", "splits_final.json"])
def test_splits_written_from_a_dataset_make_the_same_dataset_again(sonotrain: Command, scans: Path, name: str) -> None:
    (scans / f"{key(4)}.png").write_text("no image")
    _, told, index = ingested(sonotrain, scans, "--folds", 4)
    ended = sonotrain("data", "splits", "dataset", "--out", name)
    assert ended.status == 0
    assert ended.output == f"9 scans in 4 folds, written to {name}\n"
    ended = sonotrain("data", "ingest", "bus_bra", scans, "again", "--splits", name)
    assert ended.status == 0, ended.errors
    assert open_dataset("again").index.digest == index.digest == told["digest"]
    assert list(open_dataset("again").index.refused) == [key(4)]


def test_splits_that_were_handed_in_are_taken_as_they_are(sonotrain: Command, scans: Path) -> None:
    write_tables(scans, {number: 1 + number % 3 for number in range(10)})
    wanted = {key(number): 1 + number // 6 for number in range(10)}
    Path("mine.csv").write_text("fold,key\n" + "".join(f"{fold},{name}\n" for name, fold in wanted.items()))
    (scans / f"{key(4)}.png").write_text("no image")  # named in the file, and refused
    _, _, index = ingested(sonotrain, scans, "--splits", "mine.csv")
    assert folds_of(index) == {name: fold for name, fold in wanted.items() if name != key(4)}


def _drop_a_key(folds: dict[str, int]) -> str:
    del folds[key(2)]
    return f"{key(2)} is without a fold"


def _add_keys(folds: dict[str, int]) -> str:
    folds |= {"bus_0077-l": 1, "bus_0078-l": 2}
    return "bus_0077-l and 1 more are not among the source's scans"


def _leave_a_gap(folds: dict[str, int]) -> str:
    folds[key(2)] = 4
    return "no scan that can be used is in fold 3"


def _part_near_duplicates(folds: dict[str, int]) -> str:
    folds[key(20)] = 3 - folds[key(3)]
    return f"group 0003 is in folds {folds[key(3)]} ({key(3)}) and {folds[key(20)]} ({key(20)})"


def _part_a_patient(folds: dict[str, int]) -> str:
    folds["bus_0003-r"] = 3 - folds[key(3)]
    return f"patient 0003 is in folds {folds[key(3)]} ({key(3)}) and {folds['bus_0003-r']} (bus_0003-r), and so is 1"


@pytest.mark.parametrize("wrong", [_drop_a_key, _add_keys, _leave_a_gap, _part_near_duplicates, _part_a_patient])
def test_splits_that_do_not_fit_or_leak_are_a_wrong_call_and_nothing_is_written(
    sonotrain: Command, scans: Path, wrong: Any
) -> None:
    copy_scan(scans, 3, 20)
    for kind in ("bus", "mask"):
        shutil.copy(scans / f"{kind}_0008-l.png", scans / f"{kind}_0003-r.png")
    folds = {key(number): 1 + number % 2 for number in range(10)} | {key(20): 2, "bus_0003-r": 2}
    folds[key(8)] = 2  # as its double
    reason = wrong(folds)
    Path("mine.csv").write_text("key,fold\n" + "".join(f"{name},{fold}\n" for name, fold in folds.items()))
    ended = sonotrain("data", "ingest", "bus_bra", scans, "dataset", "--splits", "mine.csv")
    assert ended.status == 2
    assert f"mine.csv: {reason}" in ended.error
    assert not list(Path().glob("dataset/*"))


def test_folds_and_splits_together_are_a_wrong_call(sonotrain: Command, scans: Path) -> None:
    ended = sonotrain("data", "ingest", "bus_bra", scans, "dataset", "--folds", 3, "--splits", "nowhere.csv")
    assert ended.status == 2
    assert "give one of them" in ended.error
    ended = sonotrain("data", "ingest", "bus_bra", scans, "dataset", "--splits", "nowhere.csv")
    assert ended.status == 2
    assert "nowhere.csv cannot be read: No such file" in ended.error


def test_splits_of_no_dataset_or_to_nowhere_are_a_wrong_call(sonotrain: Command, dataset: Path) -> None:
    assert "holds no dataset" in sonotrain("data", "splits", "nowhere", "--out", "splits.csv").error
    assert not Path("splits.csv").exists()
    assert "there is no folder nowhere" in sonotrain("data", "splits", dataset, "--out", "nowhere/splits.csv").error


# -- what stops it ---------------------------------------------------------------------------------------------------


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Twelve images of noise, 2 MB together, which no codec makes smaller."""
    random = np.random.default_rng(0)
    folder = tmp_path / "noise"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(random.integers(0, 256, (400, 430), dtype=np.uint8)).save(folder / f"{key(number)}.png")
        Image.fromarray(np.zeros((400, 430), dtype=bool)).save(folder / f"mask_{number:04d}-l.png")
    return folder


@pytest.fixture(scope="session")
def own_mounts() -> list[str]:
    """What to begin a command with, so that it may mount a file system that nobody else sees."""
    begin = ["unshare", "--user", "--map-root-user", "--mount"]
    tried = subprocess.run(
        [*begin, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"this machine lets no user mount: {tried.stderr}")
    return begin


def on_a_small_disk(own_mounts: list[str], folder: Path, kilobytes: int, *call: object) -> Outcome:
    """A call of the command, with a file system of this size at the folder; its output ends with what is left there."""
    folder.mkdir()
    command = shlex.join([*SONOTRAIN, *map(str, call)])
    script = (
        f"mount -t tmpfs -o size={kilobytes}k none {folder} && {{ {command}; status=$?; ls {folder}; exit $status; }}"
    )
    ended = subprocess.run([*own_mounts, "sh", "-c", script], capture_output=True, text=True, check=False)
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


def test_a_disk_that_cannot_hold_the_dataset_is_told_before_anything_is_written(
    own_mounts: list[str], noise: Path, tmp_path: Path
) -> None:
    ended = on_a_small_disk(own_mounts, tmp_path / "disk", 800, "data", "ingest", "bus_bra", noise, tmp_path / "disk")
    assert ended.status == 2
    assert f"{tmp_path}/disk has 0.8 MB free and the dataset needs 1.0 MB at least" in ended.error
    assert ended.output.endswith("before anything is written\n")


def test_a_disk_that_fills_up_ends_it_in_one_line_without_an_index(
    own_mounts: list[str], noise: Path, tmp_path: Path
) -> None:
    call = ["data", "ingest", "bus_bra", noise, tmp_path / "disk", "--folds", 2, "--shard-mb", 1]
    ended = on_a_small_disk(own_mounts, tmp_path / "disk", 1500, *call)
    assert ended.status == 1
    assert ended.error.endswith("No space left on device; make room and run again")
    assert "index.json" not in ended.output


def test_a_scratch_disk_that_fills_up_is_named(
    own_mounts: list[str], noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "disk"))
    call = ["data", "ingest", "bus_bra", noise, tmp_path / "dataset", "--folds", 2]
    ended = on_a_small_disk(own_mounts, tmp_path / "disk", 400, *call)
    assert ended.status == 1
    assert f"{tmp_path}/disk: No space left on device; make room or set TMPDIR" in ended.error
    assert list((tmp_path / "dataset").iterdir()) == []


def test_a_file_that_breaks_between_its_two_readings_is_named_and_nothing_is_published(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.ingest.KEPT_BYTES", 0)
    copy_scan(scans, 3, 20)

    def break_when_told_of_doubles(line: str) -> None:
        if line.startswith("near-duplicates"):
            (scans / f"{key(7)}.png").write_text("no image any more")

    wanted = Ingestion("bus_bra", scans, str(tmp_path / "dataset"), "broken", 2, None, "png", 32, False)
    with pytest.raises(Refused, match=f"{key(7)}.png is no image that can be read"):
        ingest(wanted, break_when_told_of_doubles)
    assert not (tmp_path / "dataset" / "index.json").exists()


def test_an_interruption_publishes_nothing(noise: Path, tmp_path: Path) -> None:
    for number in range(12, 300):
        for kind in ("bus", "mask"):
            (noise / f"{kind}_{number:04d}-l.png").hardlink_to(noise / f"{kind}_{number % 12:04d}-l.png")
    destination = tmp_path / "dataset"
    call = ["data", "ingest", "bus_bra", noise, destination, "--folds", 2, "--shard-mb", 1]
    with subprocess.Popen(
        [*SONOTRAIN, *map(str, call)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        while not list(destination.glob("*.tar")) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGINT)
    assert "Traceback" not in errors
    assert list(destination.glob("*.tar"))
    assert not (destination / "index.json").exists()
