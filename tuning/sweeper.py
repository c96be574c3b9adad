"""What ends a private Ray whose driver was killed: two of its processes would stay for a minute, its files for good.

    python -I -S sweeper.py FOLDER

Waits for the end of its standard input, whose other end the driver holds; then kills every process that has
RAY_AUTH_TOKEN_PATH=FOLDER/token in its environment, as all of that Ray's have, and removes the folder.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_PATIENCE = 10.0  # seconds for processes that were killed to be gone


def main() -> None:
    """FOLDER is that of a private Ray."""
    folder = sys.argv[1]
    sys.stdin.buffer.read()
    mark = f"RAY_AUTH_TOKEN_PATH={folder}/token".encode()
    deadline = time.monotonic() + _PATIENCE
    while _killed(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def _killed(mark: bytes) -> int:
    """How many processes with that in their environment were there."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found += 1
                os.kill(int(process.name), signal.SIGKILL)
    return found


main()
