"""The index of a dataset: every scan's place, owner and fold, and enough to notice one changed byte."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.faults import Fault

INDEX = "index.json"
FORMAT = 2


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar: its name below the dataset, its size in bytes and their sha256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One scan's place: [offset, offset + length) of its shard are its tar members, and nobody else's.

    crc32 is that of these bytes, so that a reader notices a change without reading the whole shard.
    """

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
    crc32: int


@dataclass(frozen=True)
class Index:
    """What a dataset holds. refused gives the reason for each key or file that was left out.

    weights is how often each sample comes in an epoch, or empty where each comes once.
    """

    name: str
    codec: str
    shards: tuple[Shard, ...]
    samples: tuple[Sample, ...]
    refused: Mapping[str, str]
    weights: tuple[float, ...] = ()

    @cached_property
    def digest(self) -> str:
        """sha256 of all that the index says of shards and samples: equal digests mean equal scans and folds."""
        content = [FORMAT, self.codec, _entries(self.shards), _entries(self.samples)]
        if self.weights:
            content.append(self.weights)
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def fold_of(self) -> NDArray[np.int64]:
        """Each sample's fold, [samples]."""
        return np.array([sample.fold for sample in self.samples], dtype=np.int64)

    @cached_property
    def shard_of(self) -> NDArray[np.int64]:
        """Each sample's shard, [samples]."""
        return np.array([sample.shard for sample in self.samples], dtype=np.int64)

    def key_of(self, number: int) -> str:
        """The key of an entry of a plan: a position, or a repetition of it (plan_epoch), told by its number."""
        time, position = divmod(number, len(self.samples))
        key = self.samples[position].key
        return f"{key}#{time}" if time else key


def index_text(index: Index) -> bytes:
    """The index as the file that parse_index reads."""
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


def parse_index(text: bytes, uri: str) -> Index:
    """The index of the dataset at uri, believed only where it agrees with its digest and stays within its shards.

    Raises Fault for any other.
    """
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
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as broken:
        raise Fault(f"{uri}: {INDEX} is damaged ({type(broken).__name__}: {broken}); ingest again") from broken
    if not sound:
        raise Fault(f"{uri}: {INDEX} does not agree with its own digest; it was changed or damaged, ingest again")
    return index


def _entries(places: Sequence[Shard] | Sequence[Sample]) -> list[dict[str, Any]]:
    """dataclasses.asdict of each, without its deep copies: opening a million samples would spend 17 seconds on them."""
    return [{name: getattr(place, name) for name in place.__slots__} for place in places]
