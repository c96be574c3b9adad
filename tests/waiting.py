"""Waiting for what another thread or process does, and never for ever."""

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], object], seconds: float = 60, seen: Callable[[], object] = str) -> None:
    """Look until it holds; fail after so many seconds with what `seen` tells then."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain {seen()}"
        time.sleep(0.005)
