"""Set-up of what is done to real processes: a small training by the command, in one or more ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_pipeline import Dataset
from tests.ranks import ForkServer, Job

SMALL = [
    "data.size=[64, 64]",
    "data.readers=1",
    "data.resident_gb=0",
    "network.widths=[4, 4, 8, 8, 8]",
    "network.norm=group",
    "objective.stages=2",
    "discriminators.widths=[4, 4, 4, 4]",
    "discriminators.strides=[1, 1, 1, 1, 1]",
    "discriminators.norm=group",
    "training.batch=4",
    "training.precision=fp32",
    "training.timeout_minutes=1",
    "validation.every_epochs=1000",
]

Start = Callable[..., Job]


@pytest.fixture(scope="module")
def dataset(packed: Callable[..., Dataset]) -> Dataset:
    """30 scans in three folds: five iterations of four scans to an epoch."""
    return packed(30)


@pytest.fixture
def start(
    fork_server: ForkServer,
    dataset: Dataset,
    mlflow_folder: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Start]:
    """Start `sonotrain train` into a folder of that name, where it goes on if it has been started before."""
    jobs: list[Job] = []

    def begin(name: str, *changes: str, world: int = 1, **faults: object) -> Job:
        arguments = ["train", "quick", *SMALL, f"data.uri={dataset.uri}", f"output={tmp_path / name}", *changes]
        jobs.append(
            fork_server.start(
                Path(__file__).with_name("sonotrain.py"),
                arguments,
                tmp_path_factory.mktemp("ranks"),
                world,
                MLFLOW_TRACKING_URI=f"sqlite:///{mlflow_folder}/mlflow.db",
                FAULTS=json.dumps(faults),
            )
        )
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()
