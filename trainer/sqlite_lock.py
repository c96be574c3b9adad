"""A SQLite tracker that several processes come to at once, such as the tasks of an array."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock


@contextmanager
def alone_at(uri: str, seconds: float) -> Iterator[None]:
    """Keep other processes of ours from a SQLite file; any other tracker is nobody's alone.

    Two that create MLflow's tables in it at once break them for good. Raises filelock.Timeout, a TimeoutError, where
    others keep it longer than so many seconds.
    """
    file = re.match(r"sqlite(?:\+\w+)?:///([^?:]+)", uri)
    if file is None:
        yield
        return
    with FileLock(f"{file[1]}.lock", timeout=seconds):
        yield
