"""Decoded scans in a node's shared memory, at the size that is trained on: decoded once, for all ranks and epochs.

They lie in files of /dev/shm, in a folder named by the dataset's digest and the size. A scan counts as there by one
byte, which is written when all its pixels are: a process killed in between leaves a scan that is not there, and two
that write the same scan write the same bytes. The last process to use a folder removes it; a folder that killed
processes left is used again by a run of the same dataset and size, and removed by any other.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from data_pipeline.index import Index
from data_pipeline.plan import scrambled

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
FITTING = 1
"""Version of how scans are brought to size: memory filled by another one is not used."""

LOCK_TIMEOUT = 60.0
"""Seconds to wait for other processes that open or leave their memory, which takes them milliseconds."""

Positions = NDArray[np.int64]
Pixels = NDArray[np.uint8]

_log = logging.getLogger("sonotrain")


@contextmanager
def resident_scans(
    index: Index, size: tuple[int, int], budget: int, within: Path = SHARED_MEMORY
) -> Iterator[Resident | None]:
    """Open the node's memory for the scans of a dataset at (height, width), of at most budget bytes.

    Where it does not hold them all it holds some of each fold, always the same ones. None where the budget holds no
    scan or there is no shared memory, which is told in a warning.
    """
    slots = slot_count(len(index.samples), size, budget)
    if slots < 1:
        yield None
        return
    root = within / f"sonotrain-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        about = root.lstat()
        if about.st_uid != os.getuid() or about.st_mode & 0o077 or not root.is_dir() or root.is_symlink():
            raise PermissionError(1, "belongs to others or is open to them")
        with FileLock(root / "lock", timeout=LOCK_TIMEOUT):
            name = f"{index.digest[:24]}-{size[0]}x{size[1]}-{slots}-{FITTING}"
            _remove_unused(root, but=name)
            resident = Resident(root / name, index, size, slots)
    except (OSError, TimeoutError) as failed:
        _log.warning("scans are not kept in memory: %s: %s", root, getattr(failed, "strerror", None) or failed)
        yield None
        return
    try:
        yield resident
    finally:
        resident.close()
        with suppress(OSError, TimeoutError), FileLock(root / "lock", timeout=LOCK_TIMEOUT):
            _remove_unused(root)  # and if not now, the next run does


def slot_count(samples: int, size: tuple[int, int], budget: int) -> int:
    """How many of so many scans at (height, width) a budget of bytes holds, each an image and a mask."""
    return min(samples, budget // (2 * size[0] * size[1]))


class Resident:
    """The scans of one dataset at one size. Pixels uint8 [H, W], masks in {0, 1}."""

    def __init__(self, folder: Path, index: Index, size: tuple[int, int], slots: int) -> None:
        """Open or make the files of `slots` scans. Raises OSError where that cannot be."""
        folder.mkdir(mode=0o700, exist_ok=True)
        with ExitStack() as opened, ExitStack() as used:
            fcntl.flock(_open_file(folder / "users", used), fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._scans = _open_file(folder / "scans", opened)
            self._there = _open_file(folder / "there", opened)
            if not os.fstat(self._scans).st_size:  # a process was killed while it removed the folder
                os.ftruncate(self._there, 0)
            os.ftruncate(self._scans, slots * 2 * size[0] * size[1])
            os.posix_fallocate(self._there, 0, slots)
            self._used = used.pop_all()
            # Not closed before the last thread has let go of them: the number may be another file's by then.
            weakref.finalize(self, opened.pop_all().close)
        shape = (slots, 1, *size)
        self._images: Pixels = np.asarray(np.memmap(folder / "scans", np.uint8, "r", 0, shape))
        self._masks: Pixels = np.asarray(np.memmap(folder / "scans", np.uint8, "r", self._images.size, shape))
        self._present: Pixels = np.asarray(np.memmap(folder / "there", np.uint8, "r", 0, (slots,)))
        self._slot_of = slots_of(len(index.samples), slots)
        self._full = False

    def holds(self, positions: Positions) -> NDArray[np.bool_]:
        """Which of these positions of the index are there, bool [B]."""
        slots = self._slot_of[positions]
        there: NDArray[np.bool_] = (slots >= 0) & (self._present[slots] > 0)
        return there

    def gather(self, positions: Positions, images: Pixels, masks: Pixels) -> None:
        """Copy scans that are there into images and masks, each [B, 1, H, W]."""
        slots = self._slot_of[positions]
        # With another mode numpy would copy twice.
        np.take(self._images, slots, axis=0, out=images, mode="clip")
        np.take(self._masks, slots, axis=0, out=masks, mode="clip")

    def put(self, position: int, image: Pixels, mask: Pixels) -> None:
        """Keep a scan [H, W], if there is a place for it. Memory that is full keeps what it has."""
        slot = int(self._slot_of[position])
        if slot < 0 or self._full:
            return
        try:
            _leave_some_to_others(self._scans)
            # Written by calls: a store into mapped memory would kill the process where there is no more of it.
            _write_all(self._scans, image, slot * image.size)
            _write_all(self._scans, mask, self._images.size + slot * mask.size)
            os.pwrite(self._there, b"\1", slot)
        except OSError as failed:
            self._full = True
            _log.warning("no more scans are kept in memory: %s", failed.strerror)

    def close(self) -> None:
        """Leave the memory to others; what is still put there is not kept."""
        self._full = True
        self._used.close()


def _open_file(path: Path, opened: ExitStack) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    opened.callback(os.close, descriptor)
    return descriptor


def slots_of(samples: int, slots: int) -> Positions:
    """The place of each position, -1 for those that have none; if not all have one, a random choice of them."""
    if slots >= samples:
        return np.arange(samples)
    chosen = np.argsort(scrambled(np.arange(samples), 0), kind="stable")[:slots]
    slot_of = np.full(samples, -1)
    slot_of[np.sort(chosen)] = np.arange(slots)
    return slot_of


def _leave_some_to_others(descriptor: int) -> None:
    """Raise OSError where less than a tenth of the file system is free: collective libraries lie there too."""
    space = os.fstatvfs(descriptor)
    if 10 * space.f_bavail < space.f_blocks:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_all(descriptor: int, pixels: Pixels, offset: int) -> None:
    data = np.ascontiguousarray(pixels).data.cast("B")
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _remove_unused(root: Path, but: str = "") -> None:
    """Remove the memory that no process uses. Its users hold a shared lock; the caller holds the root's."""
    for folder in root.iterdir():
        if folder.name in ("lock", but):
            continue
        try:
            users = os.open(folder / "users", os.O_RDWR)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        finally:
            os.close(users)
        shutil.rmtree(folder, ignore_errors=True)
