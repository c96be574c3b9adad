"""What a node lets its processes have: shared memory, open files, disk, a compiler."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from launch.doctor.finding import Finding, Wanted
from launch.doctor.needs import needs
from trainer.feasible import GIGABYTE

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108

FOR_NCCL = 64 << 20
"""Bytes of shared memory that NCCL takes for each GPU's process, or it fails at its first exchange."""

FILES_OF_A_PROCESS = 256
"""Open files of a process that reads nothing: libraries, threads, the tracker."""

FILES_OF_A_READER = 8
"""Open files of a thread that reads: shards, the cache, connections to the store."""


def look_at_shared_memory(wanted: Wanted, folder: Path = SHARED_MEMORY) -> Finding:
    """Free shared memory for the decoded scans of a node, and for NCCL."""
    check, mount = "shared memory", f"mount a larger {folder}"
    if not os.access(folder, os.W_OK):
        told = f"{folder} is not there or cannot be written to"
        return Finding(check, "warning", told, "mount it: without it scans are decoded anew in each epoch")
    about = os.statvfs(folder)
    free, total = about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize
    resident = wanted.config.data.resident_gb
    told = f"{free / GIGABYTE:.2f} of {total / GIGABYTE:.2f} GB of {folder} free"
    values = {"free": free, "total": total}
    nccl = FOR_NCCL * wanted.processes if torch.cuda.is_available() and wanted.processes > 1 else 0
    if free < nccl:
        return Finding(check, "failed", told, f"{mount}: NCCL needs {nccl >> 20} MB of it for its processes", values)
    if free < nccl + resident * GIGABYTE:
        advice = f"{mount}, or set data.resident_gb={max(0.0, (free - nccl) / GIGABYTE):.2f}: scans for which there "
        advice += f"is no room in {resident:g} GB are decoded anew in each epoch"
        return Finding(check, "warning", told, advice, values)
    return Finding(check, "ok", told, values=values)


def look_at_open_files(wanted: Wanted) -> Finding:
    """How many files a process may have open, for its readers and its connections to all others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_OF_A_PROCESS + FILES_OF_A_READER * wanted.config.data.readers + wanted.world
    values = {"soft": soft, "hard": hard, "needed": needed}
    told = f"{_count(soft)} for each process, which needs about {needed}"
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return Finding("open files", "ok", told, values=values)
    advice = f"raise it with ulimit -n {needed}"
    if hard != resource.RLIM_INFINITY and hard < needed:
        advice += f", after the limit of {hard} that root has set (nofile in limits.conf, LimitNOFILE of systemd)"
    return Finding("open files", "failed", told, advice, values)


def look_at_disks(wanted: Wanted) -> Iterator[Finding]:
    """Free disk and the right to write where the run, and the cache of shards, will be."""
    config = wanted.config
    needed = needs(wanted)
    # Beside those that are kept there are the best and the one that is being written.
    checkpoints = needed.checkpoint * (config.checkpoints.keep + 2) if needed else 0
    yield _disk(
        "disk: output", Path(config.output), checkpoints, "output", f"{config.checkpoints.keep + 2} checkpoints"
    )
    if config.checkpoints.mirror and "://" not in config.checkpoints.mirror:
        yield _disk("disk: mirror", Path(config.checkpoints.mirror), checkpoints, "checkpoints.mirror", "checkpoints")
    if config.data.cache_gb and (not wanted.given or any(uri.startswith("s3://") for uri in config.data.uris)):
        cache = Path(config.data.cache).expanduser()
        wish = max(0, int(config.data.cache_gb * GIGABYTE) - _size_of(cache))
        finding = _disk("disk: cache", cache, 0, "data.cache", "shards")
        free = finding.values.get("free", wish)
        if finding.state == "ok" and free < wish:
            advice = (
                f"set data.cache_gb={(free + _size_of(cache)) / GIGABYTE:.0f} or less, or data.cache to a larger disk"
            )
            finding = Finding(finding.check, "warning", finding.found, advice, finding.values)
        yield finding


def look_at_compiler(wanted: Wanted) -> Iterator[Finding]:
    """A C++ compiler, where networks are to be compiled; nothing else needs one."""
    if not wanted.config.training.compile:
        return
    found = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if found:
        yield Finding("compiler", "ok", f"{found}, for training.compile")
    else:
        yield Finding("compiler", "failed", "no C++ compiler", "install g++, or set training.compile=false")


def _disk(check: str, folder: Path, needed: int, key: str, what: str) -> Finding:
    """Room for so many bytes in a folder that may not be there yet."""
    folder = folder.absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    elsewhere = f"name another place with {key}="
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".sonotrain-doctor-") as file:
            file.write(b"0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as refused:
        return Finding(check, "failed", f"{there} cannot be written to: {refused.strerror}", elsewhere)
    about = shutil.disk_usage(there)
    told = f"{about.free / GIGABYTE:.1f} of {about.total / GIGABYTE:.1f} GB free at {folder}"
    values = {"free": about.free, "total": about.total, "needed": needed}
    if about.free < needed:
        told += f"; {what} take about {needed / GIGABYTE:.1f} GB"
        return Finding(check, "failed", told, f"make room, or {elsewhere}", values)
    return Finding(check, "ok", told, values=values)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def _count(limit: int) -> str:
    return "no limit" if limit == resource.RLIM_INFINITY else str(limit)
