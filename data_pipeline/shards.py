"""Shards: scans packed into plain tars that any WebDataset reader opens, and the index that knows each byte.

A dataset is a folder or an S3 prefix with shards and `index.json`. The index is written last and only once,
so a dataset without one does not exist, and of two writers one wins. A shard's name holds a piece of its
sha256, so a second writer can never replace the bytes that the first one's index speaks of.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from webdataset.tariterators import group_by_keys, tar_file_expander

from data_pipeline.faults import Fault, WrongCall
from data_pipeline.objectstore import Store, open_store
from data_pipeline.scan import Scan

INDEX = "index.json"
FORMAT = 1
CODECS = ("png", "npy")
MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar: its name below the dataset, its size in bytes and their sha256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One scan's place: [offset, offset + length) of its shard are its tar members, and nobody else's."""

    key: str
    patient: str
    group: str
    fold: int
    label: str
    height: int
    width: int
    spacing: tuple[float, float] | None
    shard: int
    offset: int
    length: int


@dataclass(frozen=True)
class Index:
    """What a dataset holds. refused gives the reason for each key or file that was left out."""

    name: str
    codec: str
    shards: tuple[Shard, ...]
    samples: tuple[Sample, ...]
    refused: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        """sha256 of all that the index says of shards and samples: equal digests mean equal scans and folds."""
        content = [FORMAT, self.codec, _entries(self.shards), _entries(self.samples)]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def fold_of(self) -> NDArray[np.int64]:
        """Each sample's fold, [samples]."""
        return np.array([sample.fold for sample in self.samples], dtype=np.int64)

    @cached_property
    def shard_of(self) -> NDArray[np.int64]:
        """Each sample's shard, [samples]."""
        return np.array([sample.shard for sample in self.samples], dtype=np.int64)


@dataclass(frozen=True)
class Dataset:
    """An index and the store that its shards lie in."""

    store: Store
    index: Index

    @property
    def uri(self) -> str:
        """Where it lies."""
        return self.store.uri

    def folds(self) -> dict[int, int]:
        """Number of scans of each fold."""
        return dict(sorted(Counter(sample.fold for sample in self.index.samples).items()))

    def positions(self, folds: Collection[int] | None = None) -> list[int]:
        """Positions in the index of the scans of these folds, or of all. Raises WrongCall for one that is absent."""
        if folds is None:
            return list(range(len(self.index.samples)))
        present = self.folds()
        for fold in folds:
            if fold not in present:
                raise WrongCall(f"{self.uri} has no fold {fold}; its folds are {', '.join(map(str, present))}")
        return [position for position, sample in enumerate(self.index.samples) if sample.fold in folds]


def open_dataset(uri: str) -> Dataset:
    """The dataset there. Raises WrongCall where none lies, Fault where its index is damaged."""
    store = open_store(uri)
    if not store.exists(INDEX):
        raise WrongCall(f"{store.uri} holds no dataset (no {INDEX}); `sonotrain data ingest` writes one")
    return Dataset(store, _parse_index(store.read(INDEX), store.uri))


def write_dataset(
    uri: str,
    name: str,
    scans: Iterable[Scan],
    folds: Mapping[str, int],
    refused: Mapping[str, str],
    codec: str = "png",
    shard_mb: int = 32,
) -> Index:
    """Pack scans, in their order, into shards of about shard_mb and publish their index.

    folds gives each key's fold. refused is read when all scans are written, so it may fill up meanwhile.
    Raises WrongCall where a dataset lies already, no scan came, or a key came twice or cannot name files in a tar.
    """
    if codec not in CODECS:
        raise WrongCall(f"there is no codec {codec}; choose one of {', '.join(CODECS)}")
    store = open_store(uri)
    require_free(store)
    shards: list[Shard] = []
    samples: list[Sample] = []
    keys: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="sonotrain-") as scratch:
        packer = _Packer(Path(scratch), codec)
        for scan in scans:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", scan.key):
                raise WrongCall(f"{scan.key!r} is no key, which is made of letters, digits, dash and underscore")
            if scan.key in keys:
                raise WrongCall(f"the key {scan.key} came twice; nothing is published at {store.uri}")
            keys.add(scan.key)
            samples.append(packer.add(scan, folds[scan.key], shard=len(shards)))
            if packer.bytes >= shard_mb * MEGABYTE:
                shards.append(packer.finish(store, len(shards)))
        if packer.bytes:
            shards.append(packer.finish(store, len(shards)))
    if not samples:
        raise WrongCall(f"no usable scan came, so nothing is published at {store.uri}")
    index = Index(name, codec, tuple(shards), tuple(samples), dict(refused))
    store.publish(INDEX, _index_text(index))
    return index


def require_free(store: Store) -> None:
    """Make sure that a dataset can be written there. Raises WrongCall where one lies already."""
    store.make()
    if store.exists(INDEX):
        raise WrongCall(f"{store.uri} holds a dataset already; name another place or remove that one first")


def verify_dataset(uri: str, seen: Callable[[Shard], None] = lambda _: None) -> list[str]:
    """Read everything again and say what is wrong, in a line each; an empty list means that it is sound."""
    dataset = open_dataset(uri)
    wrong = _shared_between_folds(dataset.index.samples)
    for number, shard in enumerate(dataset.index.shards):
        try:
            data = dataset.store.read(shard.name)
        except Fault as unreadable:
            wrong.append(str(unreadable))
            continue
        if len(data) != shard.bytes:
            wrong.append(f"{shard.name}: {len(data)} bytes, the index says {shard.bytes}")
        elif hashlib.sha256(data).hexdigest() != shard.sha256:
            wrong.append(f"{shard.name}: its bytes are not those that were written (sha256 differs)")
        for sample in dataset.index.samples:
            if sample.shard == number:
                try:
                    members = members_of(data[sample.offset : sample.offset + sample.length], sample.key)
                    scan_from_members(members, sample)
                except Fault as damaged:
                    wrong.append(f"{shard.name}: {damaged}")
        seen(shard)
    return wrong


def members_of(data: bytes, key: str) -> dict[str, bytes]:
    """The files of one sample's slice of a tar, by their name after the key, as webdataset reads them.

    Raises Fault when they are no such files, or another sample's.
    """
    try:
        found = list(group_by_keys(tar_file_expander([{"url": key, "stream": io.BytesIO(data)}])))
    except (tarfile.TarError, ValueError, EOFError) as broken:
        raise Fault(f"{key}: its bytes are no tar members; `sonotrain data verify` tells more") from broken
    owners = [members["__key__"] for members in found]
    if owners != [key]:
        raise Fault(f"{key}: the index places it where {', '.join(owners) or 'nothing'} lies; ingest again")
    members: dict[str, bytes] = found[0]
    return members


def scan_from_members(members: Mapping[str, bytes], sample: Sample) -> Scan:
    """Decode a sample's files. Raises Fault when they are not what the index says."""
    image = _decode(members, "image", sample)
    mask = _decode(members, "mask", sample) > 0
    return Scan(sample.key, image, mask, sample.patient, sample.group, sample.label, sample.spacing)


class _Packer:
    """Writes one shard after the other into a scratch file, so that no shard is ever held in memory."""

    def __init__(self, scratch: Path, codec: str) -> None:
        self._path = scratch / "shard.tar"
        self._codec = codec
        self._tar: tarfile.TarFile | None = None

    @property
    def bytes(self) -> int:
        return self._tar.offset if self._tar else 0

    def add(self, scan: Scan, fold: int, shard: int) -> Sample:
        if self._tar is None:
            self._tar = tarfile.open(self._path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
        start = self._tar.offset
        for suffix, data in _members(scan, fold, self._codec).items():
            entry = tarfile.TarInfo(f"{scan.key}.{suffix}")  # time, owner and mode stay fixed: equal scans, equal bytes
            entry.size = len(data)
            self._tar.addfile(entry, io.BytesIO(data))
        height, width = scan.image.shape
        return Sample(
            scan.key, scan.patient, scan.group, fold, scan.label, height, width, scan.spacing,
            shard, start, self._tar.offset - start,
        )  # fmt: skip

    def finish(self, store: Store, number: int) -> Shard:
        assert self._tar is not None
        self._tar.close()
        self._tar = None
        with self._path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(f"shard-{number:05d}-{sha256[:12]}.tar", self._path.stat().st_size, sha256)
        store.put(shard.name, self._path)
        return shard


def _members(scan: Scan, fold: int, codec: str) -> dict[str, bytes]:
    about = {
        "key": scan.key,
        "patient": scan.patient,
        "group": scan.group,
        "fold": fold,
        "label": scan.label,
        "spacing_mm": scan.spacing,
    }
    return {
        f"image.{codec}": _encode_png(scan.image) if codec == "png" else _encode_npy(scan.image),
        "mask.png": _encode_png(scan.mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1]),
        "json": json.dumps(about).encode(),
    }


def _encode_png(pixels: NDArray[np.uint8], options: Sequence[int] = ()) -> bytes:
    _, data = cv2.imencode(".png", pixels, list(options))
    return data.tobytes()


def _encode_npy(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels, allow_pickle=False)
    return buffer.getvalue()


def _decode(members: Mapping[str, bytes], part: str, sample: Sample) -> NDArray[np.uint8]:
    """The part's pixels, [height, width] as the index says; a PNG or an array, whichever the sample holds."""
    pixels: Any = None
    try:
        if f"{part}.npy" in members:
            pixels = np.lib.format.read_array(io.BytesIO(members[f"{part}.npy"]), allow_pickle=False)
        elif f"{part}.png" in members:
            pixels = cv2.imdecode(np.frombuffer(members[f"{part}.png"], np.uint8), cv2.IMREAD_GRAYSCALE)
    except (ValueError, TypeError, SyntaxError, EOFError, TokenError, cv2.error) as broken:  # numpy's header is Python
        raise Fault(f"{sample.key}: its {part} is damaged; `sonotrain data verify` tells more") from broken
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape != (sample.height, sample.width):
        raise Fault(f"{sample.key}: its {part} is damaged or missing; `sonotrain data verify` tells more")
    return pixels  # type: ignore[no-any-return]


def _index_text(index: Index) -> bytes:
    content = {
        "format": FORMAT,
        "name": index.name,
        "digest": index.digest,
        "codec": index.codec,
        "shards": _entries(index.shards),
        "samples": _entries(index.samples),
        "refused": dict(index.refused),
    }
    return json.dumps(content, indent=1).encode()


def _entries(places: Sequence[Shard] | Sequence[Sample]) -> list[dict[str, Any]]:
    """dataclasses.asdict of each, without its deep copies: opening a million samples would spend 17 seconds on them."""
    return [{name: getattr(place, name) for name in place.__slots__} for place in places]


def _parse_index(text: bytes, uri: str) -> Index:
    """The index, believed only where it agrees with its own digest and stays within its own shards."""
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise Fault(f"{uri}: {INDEX} has format {content['format']}, this sonotrain reads {FORMAT}; ingest again")
        shards = tuple(Shard(**entry) for entry in content["shards"])
        samples = tuple(
            Sample(**{**entry, "spacing": tuple(entry["spacing"]) if entry["spacing"] else None})
            for entry in content["samples"]
        )
        index = Index(content["name"], content["codec"], shards, samples, content["refused"])
        sound = (
            content["digest"] == index.digest
            and all(re.fullmatch(r"[A-Za-z0-9_-]+\.tar", shard.name) for shard in shards)
            and all(s.shard >= 0 and 0 <= s.offset < s.offset + s.length <= shards[s.shard].bytes for s in samples)
            and len({sample.key for sample in samples}) == len(samples) > 0
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as broken:
        raise Fault(f"{uri}: {INDEX} is damaged ({type(broken).__name__}: {broken}); ingest again") from broken
    if not sound:
        raise Fault(f"{uri}: {INDEX} does not agree with its own digest; it was changed or damaged, ingest again")
    return index


def _shared_between_folds(samples: Sequence[Sample]) -> list[str]:
    wrong = []
    for kind in ("patient", "group"):
        home: dict[str, int] = {}
        for sample in samples:
            name = getattr(sample, kind)
            if home.setdefault(name, sample.fold) != sample.fold:
                wrong.append(f"{kind} {name} is in folds {home[name]} and {sample.fold}")
    return wrong
