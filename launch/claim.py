"""Cores of a machine that belong to one launch: claimed for as long as it lives, so that no two compute on the same.

A claim is a lock on a file of the machine's shared memory, a file for each core. The system lets go of it with the
process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

from data_pipeline import Fault, WrongCall
from launch.cores import Cores, usable_cores

PATIENCE = 300.0
"""Seconds to wait for cores that other launches have."""

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_LOOK = 0.1


def cores_apart(processes: int, each: int) -> AbstractContextManager[Cores | None]:
    """As many cores for each process, which no other launch that asks for some has; for 0 None, a share of all.

    Raises what `claimed_cores` does.
    """
    return claimed_cores(each * processes) if each else nullcontext()


@contextmanager
def claimed_cores(count: int, within: Path = _SHARED_MEMORY, patience: float = PATIENCE) -> Iterator[Cores]:
    """So many cores that no other launch has claimed. Under a quota, which names none, so many without names.

    Raises WrongCall for more than may be used here, and Fault where others keep them longer than `patience`, seconds.
    """
    cores = usable_cores()
    if count > cores.count:
        raise WrongCall(f"{count} cores are more than the {cores.count} that may be used here")
    if not cores.numbers:
        yield Cores(count, ())
        return
    folder = _folder(within)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise Fault(f"{folder} belongs to another user; have it removed")
    deadline = time.monotonic() + patience
    while True:
        with ExitStack() as held:
            mine: list[int] = []
            for number in cores.numbers:
                if len(mine) < count and _is_claimed(folder / str(number), held):
                    mine.append(number)
            if len(mine) == count:
                yield Cores(count, tuple(mine))
                return
        if time.monotonic() > deadline:
            free = f"{len(mine)} of {cores.count}"
            raise Fault(f"{count} cores were not free within {patience:.0f} s, only {free}: other launches have them")
        time.sleep(_LOOK)


def free_cores(within: Path = _SHARED_MEMORY) -> int:
    """How many of the cores that may be used here no launch has claimed now."""
    cores = usable_cores()
    with ExitStack() as held:
        return cores.count - sum(
            (folder / str(number)).exists() and not _is_claimed(folder / str(number), held)
            for folder in [_folder(within)]
            for number in cores.numbers
        )


def _folder(within: Path) -> Path:
    return within / f"sonotrain-cores-{os.getuid()}"


def _is_claimed(path: Path, held: ExitStack) -> bool:
    """Whether the core is ours now, until `held` is closed."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    held.callback(os.close, file)
    return True
