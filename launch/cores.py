"""How many cores this process may use, and which: what the scheduler allows, and what a container's quota leaves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_V2 = Path("/sys/fs/cgroup/cpu.max")
_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")


@dataclass(frozen=True, slots=True)
class Cores:
    """Cores to be shared out. numbers is empty where a quota says how many and not which."""

    count: int
    numbers: tuple[int, ...]

    def share(self, rank: int, processes: int) -> tuple[int, ...]:
        """The cores of one of so many processes: neighbours, each to one process, none left over."""
        first, end = (len(self.numbers) * edge // processes for edge in (rank, rank + 1))
        return self.numbers[first:end]


def usable_cores() -> Cores:
    """The cores of this process. Under a quota none is named, for others under another quota would name the same."""
    numbers = tuple(sorted(os.sched_getaffinity(0)))
    quota = _quota()
    if quota is None or quota >= len(numbers):
        return Cores(len(numbers), numbers)
    return Cores(max(1, int(quota)), ())


def cores_for(processes: int) -> Cores:
    """The cores that so many processes share here. Raises WrongCall where there is not one for each."""
    from data_pipeline import WrongCall

    cores = usable_cores()
    if processes > cores.count:
        raise WrongCall(f"{processes} processes are more than the {cores.count} cores that may be used here")
    return cores


def _quota() -> float | None:
    """Cores' worth of time that this container's control group allows, or None where it sets no limit."""
    try:
        if _V2.is_file():
            quota, period = _V2.read_text().split()
        else:
            quota = _V1.read_text().strip()
            period = _V1.with_name("cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError):
        return None
