"""The same scans in each loader's own format, in one folder, and their copy in S3.

WORK/CODEC/FORMAT/...: codec `published` has the files of the set as they are, the others are those of our shards.
A folder appears under its name when it is complete, so that an interrupted preparation goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import webdataset as wds

from data_pipeline import Fault, Refused, Scan, ScanFiles, WrongCall, open_dataset, open_store, read_scan, write_dataset
from data_pipeline.layouts import find_scans
from launch.benches.loaders import LOADERS, Decoder
from launch.terminal import with_progress

PUBLISHED = "published"
CODECS = ("png", "npy")
QUARTER = "quarter"
"""Every fourth scan as PNG: beside the whole set it shows what memory grows with."""

SHARD_MB = 32
"""Of a shard in every format."""

_DESCRIPTION = "scans.json"
_COMPLETE = "complete.json"
_UPLOADS = 8


@dataclass(frozen=True, slots=True)
class Encoded:
    """A scan as a store has it: its image's and its mask's file."""

    key: str
    image: bytes
    mask: bytes


@dataclass(frozen=True, slots=True)
class Prepared:
    """A set in every format. codecs has `published` only where the set's own files decode to the same pixels."""

    work: Path
    codecs: tuple[str, ...]
    keys: frozenset[str]

    @property
    def scans(self) -> int:
        """How many there are."""
        return len(self.keys)

    def bytes_of(self, codec: str) -> int:
        """Of the tars that webdataset reads."""
        return sum(path.stat().st_size for path in self.folder(codec, "webdataset").glob("*.tar"))

    def folder(self, codec: str, loader: str) -> Path:
        """Where a loader finds the set; webdataset reads our shards as they are."""
        ours = codec != PUBLISHED and loader == "webdataset"
        return self.work / codec / ("sonotrain" if ours else loader)


def prepare(layout: str, source: Path, work: Path, loaders: Sequence[str], tell: Callable[[str], None]) -> Prepared:
    """Write what is not there yet. Raises WrongCall where `work` holds another set."""
    found = find_scans(layout, source).scans
    _claim(work, found)
    usable = [files for files in found if _readable(files)] if not (work / "png").exists() else found
    for codec, chosen in (("png", usable), ("npy", usable), (QUARTER, usable[::4])):
        _write_ours(work / codec / "sonotrain", chosen, "npy" if codec == "npy" else "png")
    keys = frozenset(sample.key for sample in open_dataset(str(work / "png" / "sonotrain")).index.samples)
    usable = [files for files in found if files.key in keys]
    codecs: tuple[str, ...] = CODECS
    if (work / PUBLISHED).exists() or _same_pixels(usable, work / "png" / "sonotrain"):
        codecs = (PUBLISHED, *CODECS)
    else:
        tell("The set's own files are not one gray PNG and one mask each: rows of published files are left out")
    for codec in (*codecs, QUARTER):
        # The limits too begin with webdataset's tars of the published files.
        for loader in dict.fromkeys((*loaders, "webdataset")):
            if loader == "sonotrain" or (loader == "webdataset" and codec != PUBLISHED):
                continue
            encoded = _published(usable) if codec == PUBLISHED else encoded_in(work / codec / "sonotrain")
            total = len(usable[::4]) if codec == QUARTER else len(usable)
            scans = with_progress(encoded, f"{codec} scans written for {loader}", total)
            _once(work / codec / loader, partial(_WRITERS[loader], scans=scans))
    return Prepared(work, codecs, keys)


def encoded_in(folder: Path) -> Iterator[Encoded]:
    """The scans of a dataset of ours, as it has encoded them."""
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    for sample in wds.WebDataset(shards, shardshuffle=False):
        image = next(data for name, data in sample.items() if name.startswith("image."))
        yield Encoded(sample["__key__"], image, sample["mask.png"])


def upload(prepared: Prepared, uri: str) -> None:
    """Copy what is prepared to s3://bucket/prefix, unless it lies there already."""
    store = open_store(uri)
    store.make()
    files = [path for codec in prepared.codecs for path in sorted((prepared.work / codec).rglob("*")) if path.is_file()]
    names = {str(path.relative_to(prepared.work)): path.stat().st_size for path in files}
    described = json.dumps([names, _described(prepared.work)]).encode()
    if store.exists(_COMPLETE):
        if store.read(_COMPLETE) == described:
            return
        raise WrongCall(f"{uri} holds another set, or the same for other loaders; name another prefix")
    with ThreadPoolExecutor(_UPLOADS) as pool:
        sent = pool.map(lambda path: store.put(str(path.relative_to(prepared.work)), path), files)
        for _ in with_progress(sent, "files uploaded", len(files)):
            pass
    store.publish(_COMPLETE, described)


# -- what is prepared ------------------------------------------------------------------------------------------------


def _claim(work: Path, found: Sequence[ScanFiles]) -> None:
    """Make the folder this set's. Raises WrongCall where it is another's."""
    files = [path for scan in found for path in (scan.image, *scan.masks)]
    stats = [path.stat() for path in files]
    listing = [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in zip(files, stats, strict=True)]
    description = json.dumps({"files": len(files), "crc32": zlib.crc32(json.dumps(listing).encode())})
    work.mkdir(parents=True, exist_ok=True)
    if not (work / _DESCRIPTION).exists():
        if any(work.iterdir()):
            raise WrongCall(f"{work} is not empty and holds no set prepared for a benchmark; name another folder")
        (work / _DESCRIPTION).write_text(description, encoding="utf-8")
    elif _described(work) != description:
        raise WrongCall(f"{work} holds another set; name another folder or remove it")


def _described(work: Path) -> str:
    return (work / _DESCRIPTION).read_text(encoding="utf-8")


def _readable(files: ScanFiles) -> bool:
    try:
        read_scan(files)
    except Refused:
        return False
    return True


def _same_pixels(scans: Sequence[ScanFiles], ours: Path) -> bool:
    """Whether the set's own files are what our decoder takes: one gray PNG and one mask, giving the scan's pixels."""
    if any(len(files.masks) != 1 or files.frame is not None or files.image.suffix != ".png" for files in scans):
        return False
    samples = {sample.key: sample for sample in open_dataset(str(ours)).index.samples}

    def same(files: ScanFiles) -> bool:
        scan = read_scan(files)
        decode = Decoder(samples, PUBLISHED, scan.image.shape)
        try:
            _, image, mask = decode(files.key, files.image.read_bytes(), files.masks[0].read_bytes())
        except Fault:
            return False
        return bool((image == scan.image).all() and (mask == scan.mask).all())

    with ThreadPoolExecutor() as pool:
        return all(with_progress(pool.map(same, scans), "published files compared", len(scans)))


def _published(scans: Sequence[ScanFiles]) -> Iterator[Encoded]:
    for files in scans:
        yield Encoded(files.key, files.image.read_bytes(), files.masks[0].read_bytes())


# -- how it is written -----------------------------------------------------------------------------------------------


def _once(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its place and then move it there, unless it is there."""
    if folder.exists():
        return
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    write(unfinished)
    unfinished.rename(folder)


def _write_ours(folder: Path, scans: Sequence[ScanFiles], codec: str) -> None:
    """A dataset of one fold."""

    def write(unfinished: Path) -> None:
        read: Iterator[Scan] = with_progress(map(read_scan, scans), f"scans written as {codec}", len(scans))
        write_dataset(str(unfinished), "bench", read, {files.key: 1 for files in scans}, {}, codec, SHARD_MB)

    _once(folder, write)


def _write_tars(folder: Path, scans: Iterable[Encoded]) -> None:
    folder.mkdir()
    shards = f"{folder}/%05d.tar"
    with wds.ShardWriter(shards, maxsize=SHARD_MB << 20, maxcount=sys.maxsize, verbose=0) as writer:
        for scan in scans:
            writer.write({"__key__": scan.key, "image.png": scan.image, "mask.png": scan.mask})


def _write_litdata(folder: Path, scans: Iterable[Encoded]) -> None:
    LOADERS["litdata"].ready()
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=SHARD_MB << 20)
    for number, scan in enumerate(scans):
        writer[number] = {"key": scan.key, "image": scan.image, "mask": scan.mask}
    writer.done()
    writer.merge()


def _write_mds(folder: Path, scans: Iterable[Encoded]) -> None:
    LOADERS["mosaicml"].ready()
    from streaming.base.format.mds.writer import MDSWriter

    columns = {"key": "str", "image": "bytes", "mask": "bytes"}
    with MDSWriter(columns=columns, out=str(folder), size_limit=SHARD_MB << 20) as writer:
        for scan in scans:
            writer.write({"key": scan.key, "image": scan.image, "mask": scan.mask})


def _write_files(folder: Path, scans: Iterable[Encoded]) -> None:
    folder.mkdir()
    for scan in scans:
        (folder / f"{scan.key}.image").write_bytes(scan.image)
        (folder / f"{scan.key}.mask").write_bytes(scan.mask)


_WRITERS: dict[str, Callable[..., None]] = {
    "webdataset": _write_tars,
    "litdata": _write_litdata,
    "mosaicml": _write_mds,
    "files": _write_files,
}
