"""A folder of raw scans to a dataset: every scan is decoded once before the first byte is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_pipeline import (
    Fault,
    Findings,
    Index,
    Refused,
    ScanFiles,
    WrongCall,
    open_store,
    read_scan,
    require_free,
    write_dataset,
)
from data_pipeline.folds import assign_folds
from data_pipeline.layouts import find_scans
from launch.terminal import with_progress


@dataclass(frozen=True, slots=True)
class Ingestion:
    """What to ingest, where to, and how. folds None keeps those of the scans' own set, if it has some."""

    layout: str
    source: Path
    destination: str
    name: str
    folds: int | None
    codec: str
    shard_mb: int
    strict: bool


def ingest(wanted: Ingestion, tell: Callable[[str], None]) -> Index:
    """Write the dataset, leaving out scans that cannot be used.

    Raises WrongCall where the source has none or the destination is taken, and Fault for the first scan that cannot
    be used where `strict` says so; in all these cases nothing is written.
    """
    found = find_scans(wanted.layout, wanted.source)
    require_free(open_store(wanted.destination))
    tell(f"{len(found.scans)} scans found in {wanted.source}; each is read once before anything is written")
    usable = _usable(found, wanted.strict)
    if not usable.scans:
        raise WrongCall(f"{wanted.source}: none of {len(found.scans)} scans can be read; nothing is written")
    folds = assign_folds(usable.scans, wanted.folds)
    scans = with_progress((read_scan(files) for files in usable.scans), "scans written", len(usable.scans))
    return write_dataset(wanted.destination, wanted.name, scans, folds, usable.refused, wanted.codec, wanted.shard_mb)


def _usable(found: Findings, strict: bool) -> Findings:
    """The scans whose files can be decoded, and the reasons of those whose cannot."""
    refused: dict[str, str] = {}

    def refuse(name: str, reason: str) -> None:
        if strict:
            raise Fault(f"{name}: {reason}; nothing is written (without --strict it is left out and named)")
        refused[name] = reason

    for name, reason in found.refused.items():
        refuse(name, reason)
    usable: list[ScanFiles] = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        reasons = with_progress(pool.map(_reason_against, found.scans), "scans read", len(found.scans))
        for files, against in zip(found.scans, reasons, strict=True):
            if against is None:
                usable.append(files)
            else:
                refuse(files.key, against)
    finally:
        pool.shutdown(cancel_futures=True)
    return Findings(usable, refused)


def _reason_against(files: ScanFiles) -> str | None:
    """Why a scan cannot be used, or None."""
    try:
        read_scan(files)
    except Refused as reason:
        return str(reason)
    return None
