"""Set-up of the trainer's tests: real processes that make up a job."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ranks import ForkServer

Ranks = Callable[..., list[str]]

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Ranks:
    """Run a script of this folder as a job of `world` processes; gives each rank's output, or fails with it.

    Once kill_when() is true, all ranks are killed, and how they ended does not matter.
    """

    def run(
        script: str, *arguments: str, world: int = 1, timeout: float = 240, kill_when: Callable[[], bool] | None = None
    ) -> list[str]:
        job = fork_server.start(HERE / script, arguments, tmp_path_factory.mktemp("ranks"), world)
        deadline = time.monotonic() + timeout
        while kill_when is not None and not job.ended():
            assert time.monotonic() < deadline
            if kill_when():
                job.send(signal.SIGKILL)
                job.wait()
                return job.outputs()
            time.sleep(0.002)
        statuses = job.wait(timeout)
        assert kill_when is None, f"{script} ended before it could be killed: {statuses} {job.errors()}"
        assert not any(statuses), f"{script} ended with {statuses}: {job.errors()}"
        return job.outputs()

    return run


@pytest.fixture(scope="module")
def tracked(mlflow_folder: Path) -> Iterator[None]:
    """Training by a module's tests is tracked there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{mlflow_folder}/mlflow.db")
        yield
