"""`sonotrain bench data`: loaders beside each other, in interleaved rounds, on the same scans."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from data_pipeline import Fault, ScanFiles, read_scan, resize_mask
from data_pipeline.layouts import find_scans
from data_pipeline.pixels import resize_gray
from launch.benches.formats import CODECS, PUBLISHED, QUARTER, Prepared, prepare, upload
from launch.benches.loaders import LOADERS, Reading
from launch.benches.process import Inspection, Timing, checksum, inspected, timed
from launch.benches.rates import Estimate, estimate, paired_ratio
from launch.machine import machine
from launch.terminal import with_progress

OURS = "sonotrain"
LOCAL, S3 = "local", "s3"
PACKAGES = ("sonotrain", "torch", "numpy", "opencv-python-headless", "pillow", "webdataset", "boto3")

FIRST_EPOCH_OF_DECODING = 0.9
FAST_CODEC_OF_WEBDATASET = 5.0
LATER_EPOCH_OF_GATHERING = 0.8
S3_OF_LOCAL = 0.8


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure. readers are threads of ours and of the limits; workers are processes of the others."""

    layout: str
    source: Path
    work: Path | None
    s3: str | None
    loaders: tuple[str, ...]
    size: tuple[int, int]
    batch: int
    rounds: int
    readers: int
    workers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a loader or a limit, and how it reads."""

    loader: str
    codec: str
    place: str = LOCAL
    workers: int = 0
    resident: bool = False

    @property
    def name(self) -> str:
        """As people read it."""
        kept = ", scans kept" if self.resident else ""
        workers = f", {self.workers} workers" if self.workers else ""
        return f"{_LIMIT_NAMES.get(self.loader, self.loader)}{kept}{workers}"


_LIMIT_NAMES = {"decode": "decoding and resizing alone", "gather": "gathering from memory alone"}


@dataclass(slots=True)
class Measured:
    """What a row came to: a timing a round, and the peaks of memory in bytes, for a quarter of the set and for all."""

    rounds: list[Timing] = field(default_factory=list)
    peak_quarter: int | None = None
    peak: int | None = None


def bench_data(wanted: Wanted, tell: Callable[[str], None]) -> dict[str, Any]:
    """Prepare, check that every loader yields every scan and the same pixels, then measure; the result as JSON has it.

    Raises WrongCall for a set or a folder that cannot be used, Fault where a loader fails, misses a scan or yields
    other pixels than decoding and resizing the set's files does.
    """
    loaders, versions = _installed(wanted.loaders, tell)
    load = os.getloadavg()[0]
    with _folder(wanted.work) as work:
        prepared = prepare(wanted.layout, wanted.source, work, loaders, tell)
        if wanted.s3 is not None:
            upload(prepared, wanted.s3)
        rows = {row: Measured() for row in _rows(loaders, prepared.codecs, wanted.workers, wanted.s3 is not None)}
        with tempfile.TemporaryDirectory(dir=work, prefix=".scratch-") as scratch:
            here = Bench(wanted, prepared, Path(scratch))
            tell(f"{prepared.scans} scans, {len(rows)} rows; each loader's pixels are checked once, before any timing")
            here.inspect(rows)
            here.time(rows)
    return {
        "machine": {**machine(), "load_before": round(load, 2)},
        "versions": versions,
        "settings": _settings(wanted, prepared),
        "rows": _reported(rows),
        "criteria": criteria(rows),
    }


class Bench:
    """The rows of one prepared set, carried out."""

    def __init__(self, wanted: Wanted, prepared: Prepared, scratch: Path) -> None:
        self._wanted = wanted
        self._prepared = prepared
        self._scratch = scratch

    def inspect(self, rows: dict[Row, Measured]) -> None:
        """Check what every loader yields, and take its memory. Raises Fault for a scan that is missing or differs."""
        truth = self._true_checksums()
        loaders = [row for row in rows if row.loader in LOADERS]
        for row in with_progress(loaders, "loaders checked", len(loaders)):
            seen = inspected(self._reading(row, row.codec), self._index(row.codec))
            require_same(row.name, row.codec, seen, truth)
            rows[row].peak = seen.peak
            if row.codec == "png" and row.place == LOCAL and not row.workers:
                rows[row].peak_quarter = inspected(self._reading(row, QUARTER), self._index(QUARTER)).peak

    def time(self, rows: dict[Row, Measured]) -> None:
        """Take every row's time once a round, in turn from the first to the last and back."""
        order = list(rows)
        turns = [row for number in range(self._wanted.rounds) for row in (order if number % 2 == 0 else order[::-1])]
        for row in with_progress(turns, "readings timed", len(turns)):
            reading = self._reading(row, row.codec)
            _warm(reading.folder)
            rows[row].rounds.append(timed(reading, self._index(row.codec)))

    def _reading(self, row: Row, codec: str) -> Reading:
        # The limits begin with files in memory, so it does not matter in whose format these were.
        loader = row.loader if row.loader in LOADERS else "webdataset"
        folder = self._prepared.folder(codec, loader)
        uri = str(folder)
        if row.place == S3:
            uri = f"{self._wanted.s3}/{folder.relative_to(self._prepared.work)}"
        wanted = self._wanted
        return Reading(
            row.loader, codec, folder, uri, self._scratch, wanted.size, wanted.batch,
            wanted.readers, row.workers, row.resident,
        )  # fmt: skip

    def _index(self, codec: str) -> Path:
        """Our dataset that knows the sizes of a codec's scans; published files have those of the PNGs."""
        return self._prepared.folder("png" if codec == PUBLISHED else codec, OURS)

    def _true_checksums(self) -> dict[str, int]:
        """Of each scan's pixels: its files decoded and resized here, in the plainest way."""

        def of(files: ScanFiles) -> tuple[str, int]:
            scan = read_scan(files)
            image = torch.from_numpy(resize_gray(scan.image, self._wanted.size))
            return files.key, checksum(image, torch.from_numpy(resize_mask(scan.mask, self._wanted.size)))

        keys = self._prepared.keys
        found = [files for files in find_scans(self._wanted.layout, self._wanted.source).scans if files.key in keys]
        with ThreadPoolExecutor(self._wanted.readers) as pool:
            return dict(with_progress(pool.map(of, found), "scans decoded to compare with", len(found)))


def require_same(name: str, codec: str, seen: Inspection, truth: dict[str, int]) -> None:
    """Raise Fault unless both epochs had every scan and the true pixels."""
    for epoch, sums in (("first", seen.first), ("second", seen.second)):
        if missing := sorted(truth.keys() - sums.keys()):
            raise Fault(f"{name} ({codec}): its {epoch} epoch misses {len(missing)} scans, the first is {missing[0]}")
        if wrong := sorted(key for key, value in sums.items() if value != truth.get(key)):
            raise Fault(f"{name} ({codec}): {len(wrong)} scans have other pixels, the first is {wrong[0]}")


def criteria(rows: dict[Row, Measured]) -> dict[str, Any]:
    """What ours promises: ratios of rates within rounds beside what is wanted, who is ahead, what memory it takes."""

    def ratio(above: Row, below: Row, epoch: str) -> Estimate | None:
        if above not in rows or below not in rows:
            return None
        return paired_ratio(*([getattr(timing, epoch) for timing in rows[row].rounds] for row in (above, below)))

    kept = {codec: Row(OURS, codec, resident=True) for codec in CODECS}
    ahead = [
        f"{row.name}, {row.codec}, {row.place}, {epoch} epoch"
        for row in rows
        for epoch in ("first", "later")
        if row.loader in LOADERS and row.loader != OURS and row.codec in CODECS
        if (ours := ratio(Row(OURS, row.codec, row.place, resident=True), row, epoch)) is not None and ours.median < 1
    ]
    wanted = [
        (f"first epoch, {codec}: of decoding and resizing alone", FIRST_EPOCH_OF_DECODING,
         ratio(kept[codec], Row("decode", codec), "first"))
        for codec in CODECS
    ] + [
        ("first epoch, npy: of plain webdataset on the published files", FAST_CODEC_OF_WEBDATASET,
         ratio(kept["npy"], Row("webdataset", PUBLISHED), "first")),
    ] + [
        (f"later epochs, {codec}: of gathering from memory", LATER_EPOCH_OF_GATHERING,
         ratio(kept[codec], Row("gather", codec), "later"))
        for codec in CODECS
    ] + [
        (f"first epoch, {codec}: S3 of local", S3_OF_LOCAL,
         ratio(Row(OURS, codec, S3, resident=True), kept[codec], "first"))
        for codec in CODECS
    ]  # fmt: skip
    return {
        "ratios": [
            {"what": what, "wanted": least, **asdict(found), "met": found.median >= least}
            for what, least, found in wanted
            if found is not None
        ],
        "peers ahead": ahead,
        "peak bytes of streaming, nothing kept": {
            "a quarter of the scans": rows[Row(OURS, "png")].peak_quarter,
            "all scans": rows[Row(OURS, "png")].peak,
        },
    }


# -- set-up ----------------------------------------------------------------------------------------------------------


def _installed(loaders: Sequence[str], tell: Callable[[str], None]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The loaders that are there, and the versions of all packages; those that are not are named."""
    versions = {package: version(package) for package in PACKAGES}
    there = []
    for name in loaders:
        distribution = LOADERS[name].distribution
        try:
            versions[distribution] = version(distribution)
        except PackageNotFoundError:
            tell(f"{name} is left out, for {distribution} is not installed; `make peers` installs it")
        else:
            there.append(name)
    return tuple(there), versions


def _rows(loaders: Sequence[str], codecs: Sequence[str], workers: Sequence[int], s3: bool) -> Iterator[Row]:
    """What is compared most closely stands, and so is measured, side by side."""
    places = (LOCAL, S3) if s3 else (LOCAL,)
    for codec in codecs:
        yield Row("decode", codec)
        if codec in CODECS:
            yield from (Row(OURS, codec, place, resident=True) for place in places)
            yield Row("gather", codec)
            yield Row(OURS, codec)
        others = [loader for loader in loaders if loader != OURS]
        yield from (Row(loader, codec, place, count) for loader in others for place in places for count in workers)


@contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    """The folder to prepare in; one that nobody named is gone afterwards."""
    if work is not None:
        yield work
        return
    made = Path(tempfile.mkdtemp(prefix="sonotrain-bench-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _warm(folder: Path) -> None:
    """Have a set in the page cache, as every reading finds it."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 22):
                    pass


# -- the result ------------------------------------------------------------------------------------------------------


def _settings(wanted: Wanted, prepared: Prepared) -> dict[str, Any]:
    return {
        "layout": wanted.layout,
        "scans": prepared.scans,
        "size": list(wanted.size),
        "batch": wanted.batch,
        "rounds": wanted.rounds,
        "reader_threads": wanted.readers,
        "worker_processes": list(wanted.workers),
        "s3": wanted.s3 is not None,
        "bytes": {codec: prepared.bytes_of(codec) for codec in prepared.codecs},
    }


def _reported(rows: dict[Row, Measured]) -> list[dict[str, Any]]:
    """Rates in images a second; `ours_is` is how many times as fast ours was, scans kept, in the same rounds."""
    reported = []
    for row, measured in rows.items():
        # Published files are compared with ours of the same kind, PNG.
        ours = Row(OURS, "png" if row.codec == PUBLISHED else row.codec, row.place, resident=True)
        entry: dict[str, Any] = {**asdict(row), "name": row.name, "unit": "images/s"}
        for epoch in ("opening", "first", "later"):
            values = [getattr(timing, epoch) for timing in measured.rounds]
            entry[epoch] = {"rounds": values, **asdict(estimate(values))}
            if epoch != "opening" and ours in rows and row != ours:
                base = [getattr(timing, epoch) for timing in rows[ours].rounds]
                entry[epoch]["ours_is"] = asdict(paired_ratio(base, values))
        entry["peak_bytes"] = measured.peak
        entry["peak_bytes_of_a_quarter"] = measured.peak_quarter
        reported.append(entry)
    return reported
