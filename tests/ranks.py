"""Jobs of real processes for tests, forked from one that has imported everything, which takes seconds each time."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class ForkServer:
    """Starts one job at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("forking.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def start(self, script: Path, arguments: Sequence[str], logs: Path, world: int = 1, **environment: str) -> Job:
        """Start a script as a job of `world` ranks, which write to logs/RANK.out and logs/RANK.err."""
        job = {"argv": [str(script), *arguments], "ranks": []}
        port = free_port()
        for rank in range(world):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
            own = os.environ | {name: str(value) for name, value in place.items()}
            own |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | environment
            out, err = (str(logs / f"{rank}.{kind}") for kind in ("out", "err"))
            job["ranks"].append({"environment": own, "out": out, "err": err})  # type: ignore[attr-defined]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        pids = self.answer(120)
        assert pids is not None, "the process that forks does not answer"
        return Job(self, pids, logs)

    def answer(self, seconds: float) -> list[int] | None:
        """The next line that the server says, or None when it has said nothing for so long."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        line = self._process.stdout.readline()
        assert line, f"the process that forks has ended with status {self._process.wait(10)}"
        numbers: list[int] = json.loads(line)
        return numbers

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(10)


class Job:
    """Ranks that run or have run."""

    def __init__(self, server: ForkServer, pids: Sequence[int], logs: Path) -> None:
        self.pids = pids
        self.statuses: Sequence[int] | None = None
        self._server = server
        self._logs = logs

    def ended(self, within: float = 0) -> bool:
        """Whether all ranks have ended, after at most so many seconds."""
        if self.statuses is None:
            self.statuses = self._server.answer(within)
        return self.statuses is not None

    def send(self, number: int, *ranks: int) -> None:
        """Send a signal to these ranks, or to all."""
        if not self.ended():
            for rank in ranks or range(len(self.pids)):
                os.kill(self.pids[rank], number)

    def wait(self, timeout: float = 240) -> Sequence[int]:
        """The ranks' statuses, negative for signals; all are killed after the timeout."""
        if not self.ended(timeout):
            self.kill()
            raise TimeoutError(f"the job did not end in {timeout:g} s: {self.errors()}")
        assert self.statuses is not None
        return self.statuses

    def kill(self) -> None:
        """Have it ended, whatever it does."""
        self.send(signal.SIGKILL)
        assert self.ended(30)

    def outputs(self) -> list[str]:
        """What each rank wrote on stdout."""
        return [(self._logs / f"{rank}.out").read_text() for rank in range(len(self.pids))]

    def errors(self) -> list[str]:
        """The end of what each rank wrote on stderr."""
        return [(self._logs / f"{rank}.err").read_text()[-3000:] for rank in range(len(self.pids))]


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
