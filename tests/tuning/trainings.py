"""Trainings for tests: the stand-in, as a trial is told of it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.tuning import stand_in
from tuning.training import Order


def order_of(folder: Path, name: str, measures: Sequence[float], pace: float = 0.0, **more: Any) -> Order:
    """A stand-in that measures these, an epoch each."""
    told = {"output": str(folder / name), "measures": list(measures), "pace": pace, **more}
    return Order(name, told, len(measures), stand_in.STEPS)


def start(arguments: Sequence[str]) -> Sequence[str]:
    """How it is started in place of the command."""
    return (sys.executable, stand_in.__file__, *arguments)


def done(folder: Path, name: str) -> list[str]:
    """What it has noted: its starts and its epochs."""
    notes = folder / name / "done"
    return notes.read_text().split() if notes.exists() else []


def epochs_of(notes: Sequence[str]) -> list[int]:
    """Of that the epochs."""
    return [int(note) for note in notes if note != "start"]
