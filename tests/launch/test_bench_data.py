"""`sonotrain bench data`: loaders of the same scans, checked against each other and then timed."""

import json
import shutil
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from data_pipeline import Fault, read_scan, resize_mask
from data_pipeline.layouts import find_scans
from data_pipeline.pixels import resize_gray
from launch.benches.data import require_same
from launch.benches.formats import Prepared, prepare
from launch.benches.loaders import LOADERS, Reading
from launch.benches.process import checksum, inspected, timed
from tests.launch.command import Command, write_scans

SCANS = 21
SIZE = (40, 32)


def installed(loader: str) -> bool:
    try:
        return bool(version(LOADERS[loader].distribution))
    except PackageNotFoundError:
        return False


THERE = tuple(filter(installed, LOADERS))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans that a batch of 8 does not divide."""
    return write_scans(tmp_path_factory.mktemp("source") / "bus", SCANS)


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The scans in the formats of all loaders that are installed."""
    return prepare("bus_bra", source, tmp_path_factory.mktemp("work") / "sets", THERE, print)


@pytest.fixture(scope="module")
def truth(source: Path) -> dict[str, int]:
    """The checksum of every scan's pixels."""
    sums = {}
    for files in find_scans("bus_bra", source).scans:
        scan = read_scan(files)
        pixels = (torch.from_numpy(part) for part in (resize_gray(scan.image, SIZE), resize_mask(scan.mask, SIZE)))
        sums[files.key] = checksum(*pixels)
    return sums


def reading(prepared: Prepared, scratch: Path, loader: str, codec: str = "png", workers: int = 0) -> Reading:
    folder = prepared.folder(codec, loader if loader in LOADERS else "webdataset")
    return Reading(
        loader, codec, folder, str(folder), scratch, SIZE, batch=8, readers=2, workers=workers, resident=True
    )


def index(prepared: Prepared, codec: str = "png") -> Path:
    return prepared.folder("npy" if codec == "npy" else "png", "sonotrain")


@pytest.mark.slow
@pytest.mark.parametrize(("loader", "workers"), [(name, 0) for name in LOADERS] + [("webdataset", 2), ("mosaicml", 2)])
def test_every_loader_yields_every_scan_with_the_same_pixels(
    loader: str, workers: int, prepared: Prepared, truth: dict[str, int], tmp_path: Path
):
    if not installed(loader):
        pytest.skip(f"{LOADERS[loader].distribution} is not installed; `make peers` installs it")
    codecs = ("png", "npy") if loader == "sonotrain" else ("published", "npy")

    for codec in codecs:
        seen = inspected(reading(prepared, tmp_path, loader, codec, workers), index(prepared, codec))

        assert seen.first == truth
        assert seen.second == truth
        require_same(loader, codec, seen, truth)
    assert not any(tmp_path.iterdir())


def test_another_scans_pixels_are_noticed(prepared: Prepared, truth: dict[str, int], tmp_path: Path):
    wrong = replace(reading(prepared, tmp_path, "files"), folder=tmp_path / "set", uri=str(tmp_path / "set"))
    shutil.copytree(prepared.folder("png", "files"), wrong.folder)
    shutil.copy(wrong.folder / "bus_0003-l.image", wrong.folder / "bus_0007-l.image")

    seen = inspected(wrong, index(prepared))

    with pytest.raises(Fault, match=r"files \(png\): 1 scans have other pixels, the first is bus_0007-l"):
        require_same("files", "png", seen, truth)


def test_a_scan_that_does_not_come_is_noticed_before_and_while_time_is_taken(
    prepared: Prepared, truth: dict[str, int], tmp_path: Path
):
    short = replace(reading(prepared, tmp_path, "files"), folder=tmp_path / "set", uri=str(tmp_path / "set"))
    shutil.copytree(prepared.folder("png", "files"), short.folder)
    (short.folder / "bus_0007-l.image").unlink()

    seen = inspected(short, index(prepared))

    with pytest.raises(Fault, match="its first epoch misses 1 scans, the first is bus_0007-l"):
        require_same("files", "png", seen, truth)
    with pytest.raises(Fault, match="epoch 0 had 20 scans, 20 of them different, of 21"):
        timed(short, index(prepared))


def test_memory_that_a_loader_takes_is_seen(prepared: Prepared, tmp_path: Path):
    large = replace(reading(prepared, tmp_path, "gather", "npy"), size=(1024, 1024))

    held = SCANS * 2 * 1024 * 1024
    assert inspected(large, index(prepared, "npy")).peak > held


@pytest.mark.slow
@pytest.mark.timeout(900)  # it starts two dozen processes
def test_a_benchmark_ends_with_a_table_json_and_what_was_promised(sonotrain: Command, source: Path, tmp_path: Path):
    ended = sonotrain(
        *("bench", "data", "bus_bra", source, "--loaders", "webdataset", "--workers", "0"),
        *("--size", "40x32", "--rounds", 1, "--work", tmp_path / "sets", "--json", tmp_path / "result.json"),
    )

    assert ended.status == 0, ended.errors
    assert ended.output.splitlines()[-1] == f"12 rows of 1 rounds, written to {tmp_path / 'result.json'}"
    result = json.loads((tmp_path / "result.json").read_text())
    rows = {(row["name"], row["codec"]): row for row in result["rows"]}
    assert {codec for name, codec in rows if name == "webdataset"} == {"published", "png", "npy"}
    assert all(len(row[epoch]["rounds"]) == 1 for row in rows.values() for epoch in ("opening", "first", "later"))
    ours, plain = rows["sonotrain, scans kept", "npy"], rows["webdataset", "published"]
    promised = {each["what"]: each for each in result["criteria"]["ratios"]}
    five = promised["first epoch, npy: of plain webdataset on the published files"]
    assert five["median"] == pytest.approx(ours["first"]["median"] / plain["first"]["median"])
    assert five["met"] == (five["median"] >= five["wanted"])
    assert "first epoch, npy: S3 of local" not in promised
    assert result["settings"]["scans"] == SCANS
    assert result["versions"]["webdataset"] == version("webdataset")
    assert rows["sonotrain", "png"]["peak_bytes_of_a_quarter"] is not None
    assert {path.name for path in (tmp_path / "sets").iterdir()} == {"npy", "png", "published", "quarter", "scans.json"}


def test_a_folder_that_holds_another_set_is_not_used(sonotrain: Command, source: Path, scans: Path, tmp_path: Path):
    prepare("bus_bra", source, tmp_path / "sets", (), print)

    ended = sonotrain("bench", "data", "bus_bra", scans, "--work", tmp_path / "sets")

    assert ended.status == 2
    assert "sets holds another set; name another folder or remove it" in ended.error


def test_a_folder_with_other_files_is_not_used(sonotrain: Command, source: Path, tmp_path: Path):
    ended = sonotrain("bench", "data", "bus_bra", source, "--work", source)

    assert ended.status == 2
    assert "is not empty and holds no set prepared for a benchmark" in ended.error


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--loaders", "webdataset,tfrecord"), "there is no loader tfrecord to measure"),
        (("--workers", "two"), "--workers two is no list of numbers such as 0,2"),
        (("--s3", "bucket/prefix"), "--s3 bucket/prefix is no s3://bucket/prefix"),
        (("--size", "256"), "--size 256 is no size such as 160x192"),
    ],
)
def test_a_wrong_call_is_told_before_any_work(
    arguments: tuple[str, ...], error: str, sonotrain: Command, tmp_path: Path
):
    ended = sonotrain("bench", "data", "bus_bra", tmp_path, *arguments)

    assert ended.status == 2
    assert error in ended.error
