"""A machine's side of a launch over ssh: one request on stdin, one answer on stdout, both JSON.

    python -P -m launch.probe

Imports nothing heavy, for a job waits for it on each machine.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from launch.cores import usable_cores
from launch.installed import versions

JOB = "SONOTRAIN_JOB"
"""The variable by which processes of a job are known; its value is nobody else's."""

PROGRAM = (sys.executable, "-P", "-m", "launch.probe")
"""What answers on a machine that has the same interpreter at the same place."""

_KILLING = 10.0


def main() -> None:
    """Answer one request: {"do": "look", "write" or "clean"}, and that function's arguments."""
    request = json.load(sys.stdin)
    actions: dict[str, Callable[..., dict[str, Any]]] = {"look": look, "write": write, "clean": clean}
    print(json.dumps(actions[request.pop("do")](**request)))


def look(job: str, workdir: str, port: int | None = None) -> dict[str, Any]:
    """What this machine has, after what an earlier attempt at the job has left here has been ended.

    Gives "versions"; "cores" and "devices" (GPUs), which a process may use; "workdir", whether it is a folder that can
    be entered; "address", at which this machine has been reached; "port", the one given or one that is free now; and
    "taken", whether somebody listens on it.
    """
    end_processes(job, patience=0.0)
    free, taken = _port(port)
    return {
        "versions": versions(),
        "cores": usable_cores().count,
        "devices": _devices(),
        "workdir": os.access(workdir, os.X_OK) and Path(workdir).is_dir(),
        "address": own_address(),
        "port": free,
        "taken": taken,
    }


def write(path: str, text: str) -> dict[str, Any]:
    """A new file that none but its owner can read."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(file, "w", encoding="utf-8") as sink:
        sink.write(text)
    return {}


def clean(job: str, path: str, patience: float) -> dict[str, Any]:
    """Remove a file that was written and not read; give "ended", the processes of the job that had to be killed."""
    Path(path).unlink(missing_ok=True)
    return {"ended": end_processes(job, patience)}


def end_processes(job: str, patience: float) -> int:
    """Wait `patience` seconds for a job's processes to end here, and kill those that do not. Gives how many."""
    deadline = time.monotonic() + patience
    while (left := sum(1 for _ in _processes(job))) and time.monotonic() < deadline:
        time.sleep(0.1)
    deadline = time.monotonic() + _KILLING
    while time.monotonic() < deadline:
        running = 0
        for process in _processes(job):
            running += 1
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        if not running:
            break
        time.sleep(0.1)
    return left


def _processes(job: str) -> Iterator[int]:
    """A handle of each process whose environment names the job: another that gets its number later is not meant."""
    named = f"{JOB}={job}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError), _handle(int(folder.name)) as process:
            if named in (folder / "environ").read_bytes().split(b"\0"):
                yield process


@contextmanager
def _handle(pid: int) -> Iterator[int]:
    process = os.pidfd_open(pid)
    try:
        yield process
    finally:
        os.close(process)


def _port(wanted: int | None) -> tuple[int, bool]:
    with socket.socket() as probe:
        # Connections that have ended do not matter, only who listens.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", wanted or 0))
            return int(probe.getsockname()[1]), False
        except OSError:
            return wanted or 0, True


def _devices() -> int:
    """GPUs that a process sees; those of a machine without any are counted without torch, which takes seconds."""
    devices = Path("/dev")
    if not (any(re.fullmatch(r"nvidia\d+", each.name) for each in devices.iterdir()) or (devices / "kfd").exists()):
        return 0
    import torch

    return torch.cuda.device_count()


def own_address() -> str:
    """The address of this machine that ssh has come to; where only this machine has that, the first that is another."""
    reached = os.environ.get("SSH_CONNECTION", "").split()
    own = [reached[2]] if len(reached) == 4 else []
    own += [each.address for card in psutil.net_if_addrs().values() for each in card if each.family == socket.AF_INET]
    return next((each for each in own if not each.startswith("127.") and each != "::1"), "127.0.0.1")


if __name__ == "__main__":
    main()
