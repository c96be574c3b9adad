"""Set-up of the trainer's tests: real processes that make up a job."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Ranks = Callable[..., list[str]]

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """Run a script of this folder as a job of `world` processes; gives each rank's output, or fails with it.

    Once kill_when() is true, all ranks are killed, and how they ended does not matter.
    """

    def run(
        script: str, *arguments: str, world: int = 1, timeout: float = 240, kill_when: Callable[[], bool] | None = None
    ) -> list[str]:
        logs = tmp_path_factory.mktemp("ranks")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = []
        for rank in range(world):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
            environment = os.environ | {name: str(value) for name, value in place.items()}
            environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
            with (logs / f"{rank}.out").open("w") as output, (logs / f"{rank}.err").open("w") as errors:
                command = [sys.executable, str(HERE / script), *arguments]
                processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=errors))
        deadline = time.monotonic() + timeout
        killed = False
        try:
            while time.monotonic() < deadline and not killed:
                if all(process.poll() is not None for process in processes):
                    break
                killed = kill_when is not None and kill_when()
                time.sleep(0.01)
        finally:
            for process in processes:
                process.kill()
            statuses = [process.wait() for process in processes]
        said = [(logs / f"{rank}.err").read_text()[-2000:] for rank in range(world)]
        assert killed if kill_when else not any(statuses), f"{script} ended with {statuses}: {said}"
        return [(logs / f"{rank}.out").read_text() for rank in range(world)]

    return run
