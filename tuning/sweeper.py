"""What ends a private Ray whose driver was killed: two of its processes would stay for a minute, its files for good.

    python -I -S sweeper.py FOLDER

Waits for the end of its standard input, whose other end the driver holds; then kills every process of that Ray, and
removes the folder. They began with RAY_AUTH_TOKEN_PATH=FOLDER/token in their environment; where one has written its
title over that, it still has a log open in the folder.
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
    while _killed(mark, f"{folder}/") and time.monotonic() < deadline:
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def _killed(mark: bytes, folder: str) -> int:
    """How many processes with that in their environment, or with a file of the folder open, were there."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            files = (str(file.readlink()) for file in (process / "fd").iterdir())
            if mark in (process / "environ").read_bytes().split(b"\0") or any(
                name.startswith(folder) for name in files
            ):
                found += 1
                os.kill(int(process.name), signal.SIGKILL)
    return found


main()
