"""What memory the processes of a job need."""

from __future__ import annotations

from data_pipeline import WrongCall
from launch.doctor.finding import Wanted
from trainer.feasible import check_iteration
from trainer.memory import ProcessMemory, process_memory

RUNTIME = 10**9
"""Bytes that a process takes before its networks and scans: the libraries that it loads."""


def needs(wanted: Wanted) -> ProcessMemory | None:
    """What each process needs; None where the configuration can be trained by no number of processes."""
    config = wanted.shareable
    try:
        check_iteration(config, wanted.world)
    except WrongCall:  # told by the check of the configuration
        return None
    return process_memory(config, wanted.world, RUNTIME)
