"""Processes that are started to measure in: what they answer, and how they end."""

from __future__ import annotations

import traceback
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from data_pipeline import Fault

TIME_LIMIT = 900.0
"""Seconds after which a process that has not answered counts as hung."""


def answer(here: Connection, who: str) -> Any:
    """What a process says next. Raises Fault where it failed, hung or died; who names it."""
    if not here.poll(TIME_LIMIT):
        raise Fault(f"{who}: not done within {TIME_LIMIT:.0f} seconds")
    try:
        kind, content = here.recv()
    except (EOFError, ConnectionError) as died:
        raise Fault(f"{who}: its process died") from died
    if kind == "failed":
        raise Fault(f"{who}: {content}")
    return content


def failed(parent: Connection, failure: Exception) -> None:
    """Tell the parent in one line, from within the process, what went wrong and where."""
    last = traceback.extract_tb(failure.__traceback__)[-1]
    parent.send(("failed", f"{type(failure).__name__}: {failure} ({Path(last.filename).name}:{last.lineno})"))


def end(process: BaseProcess) -> None:
    """See the process end, by itself or not."""
    process.join(10)
    if process.is_alive():
        process.terminate()
        process.join(10)
    if process.is_alive():
        process.kill()
        process.join()
