"""Trainings under a real Slurm on hosts, and what Slurm does to them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import Dataset
from tests.faults.checkpoints import checkpoints, same_to_the_bit, tensors
from tests.faults.conftest import SMALL
from tests.system.hosts import Hosts
from tests.system.slurm import PACKAGES, Slurm, missing_programs, slurm_on

SONOTRAIN = (sys.executable, "-P", "-m", "launch.cli")
EPOCHS = 25
STEPS = 4 * EPOCHS
TRAINING = ["quick", *SMALL, "training.batch=6", "checkpoints.every_steps=5"]
SECRET = "no-script-shows-this"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def slurm(cluster: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Slurm on node1 and node2, each of which takes one process at a time."""
    if missing := missing_programs():
        pytest.skip(f"{', '.join(missing)} not installed; needs the Debian packages {PACKAGES}")
    with slurm_on(cluster, ["node1", "node2"], tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture(scope="module")
def dataset(packed: Callable[..., Dataset]) -> Dataset:
    """30 scans in three folds: four iterations of six scans to an epoch, the last filled up."""
    return packed(30)


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What a training in two processes of one machine ends with."""
    folder = tmp_path_factory.mktemp("local")
    verb = ["train", *TRAINING, f"training.epochs={EPOCHS}", f"data.uri={dataset.uri}", f"output={folder}/run"]
    own = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "OMP_NUM_THREADS": "1"}
    call = [*SONOTRAIN, "launch", "local", "--procs", "2", "--", *verb]
    done = subprocess.run(call, cwd=folder, env=os.environ | own, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return tensors(folder / "run", STEPS)


class Submitted:
    """A training that Slurm has been given by `sonotrain launch slurm`, in a folder of its own."""

    def __init__(self, slurm: Slurm, folder: Path, dataset: Dataset, *options: str, verb: list[str]) -> None:
        self.slurm = slurm
        self.output = folder / "run"
        tracker = f"MLFLOW_TRACKING_URI=sqlite:///{folder}/mlflow.db"
        given = ["--env", "OMP_NUM_THREADS=1", "--env", tracker, "--env", "AWS_SECRET_ACCESS_KEY"]
        verb = [*verb, f"data.uri={dataset.uri}", "output=run"]
        environment = slurm.environment | {"AWS_SECRET_ACCESS_KEY": SECRET}
        self.said = slurm.run(
            *SONOTRAIN, "launch", "slurm", *given, *options, "--", *verb, cwd=folder, env=environment
        ).splitlines()
        self.jobs = [line.split()[2].rstrip(",") for line in self.said if line.startswith("Submitted job ")]

    @property
    def text(self) -> str:
        """What the first job has written."""
        log = self.output / "logs" / f"slurm-{self.jobs[0]}.out"
        return log.read_text() if log.exists() else ""

    @property
    def step(self) -> int:
        """That of the last checkpoint, 0 without one."""
        return int(checkpoints(self.output)[-1][5:]) if checkpoints(self.output) else 0

    def until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{self.said}\n{self.text}\n{self.slurm.state(self.jobs[0])}"
            time.sleep(0.1)

    def until_over(self, job: str, seconds: float = 180) -> dict[str, str]:
        """Wait until a job is over, and give what Slurm tells of it."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.slurm.state(job)["JobState"] in over, seconds)
        return self.slurm.state(job)


def processes(slurm: Slurm, node: str) -> list[str]:
    """The command lines of what runs on a node."""
    return list(slurm.hosts.processes(node).values())


def ranks(slurm: Slurm, node: str) -> list[int]:
    """The ranks' processes on a node."""
    return [pid for pid, command in slurm.hosts.processes(node).items() if " launch.cli train " in command]


def test_a_job_that_is_preempted_and_loses_a_rank_ends_as_if_nothing_had_been(
    slurm: Slurm, dataset: Dataset, undisturbed: dict[str, np.ndarray], tmp_path: Path
) -> None:
    job = Submitted(slurm, tmp_path, dataset, "--nodes", "2", verb=["train", *TRAINING, f"training.epochs={EPOCHS}"])
    number = job.jobs[0]
    job.until(lambda: job.step >= 10)
    (rank,) = ranks(slurm, "node2")
    assert f"AWS_SECRET_ACCESS_KEY={SECRET}".encode() in Path(f"/proc/{rank}/environ").read_bytes().split(b"\0")
    assert SECRET not in slurm.run("scontrol", "write", "batch_script", number, "-")

    urgent = ("--partition=urgent", "--nodes=2", f"--output={tmp_path}/urgent.out", "--wrap=true")
    slurm.run("sbatch", "--wait", *urgent)
    stopped_at = job.step
    job.until(lambda: "put back 1 times" in job.text)
    # Slurm tells the ranks as well as who started them, by another signal.
    assert re.search(rf"(SIGTERM|SIGUSR1): stopped after step {stopped_at}; ", job.text), job.text
    assert "Put back into the queue; it will go on from its checkpoint" in job.text

    job.until(lambda: job.step > stopped_at)
    (rank,) = ranks(slurm, "node2")
    os.kill(rank, signal.SIGKILL)
    job.until(lambda: "Failed: " in job.text)
    (failed,) = (line for line in job.text.splitlines() if line.startswith("Failed: "))
    assert failed.startswith("Failed: rank 1 on node2 was killed by SIGKILL after step "), failed

    told = job.until_over(number)
    assert (told["JobState"], told["ExitCode"], told["Restarts"]) == ("COMPLETED", "0:0", "1"), job.text
    assert same_to_the_bit(tensors(job.output, STEPS), undisturbed)
    assert not any("launch.cli" in each for node in slurm.nodes for each in processes(slurm, node))


def test_a_job_stops_before_its_time_limit_and_goes_on_until_it_is_cancelled(
    slurm: Slurm, dataset: Dataset, tmp_path: Path
) -> None:
    endless = ["train", *TRAINING, "training.epochs=100000"]
    job = Submitted(slurm, tmp_path, dataset, "--time-limit", "1:00:00", "--elastic", "1:2", verb=endless)
    number = job.jobs[0]
    job.until(lambda: job.step >= 5)
    assert slurm.state(number)["NodeList"] == "node[1-2]", "it takes as many nodes as there are"
    # Slurm looks every 30 s.
    slurm.run("scontrol", "update", f"JobId={number}", "TimeLimit=2")
    job.until(lambda: slurm.state(number)["Restarts"] == "1")
    slurm.run("scontrol", "update", f"JobId={number}", "TimeLimit=60")
    job.until(lambda: "put back 1 times" in job.text)
    stopped_at = job.step
    told = slurm.state(number)
    assert told["Restarts"] == "1"
    assert "Put back into the queue" in job.text
    job.until(lambda: job.step > stopped_at)
    slurm.run("scancel", number)
    assert job.until_over(number)["JobState"] == "CANCELLED"
    job.until(lambda: not any("launch.cli" in each for node in slurm.nodes for each in processes(slurm, node)))
    assert job.text.count("Put back into the queue") == 1


def test_an_array_trains_each_fold_and_the_job_behind_it_puts_them_together(
    slurm: Slurm, dataset: Dataset, tmp_path: Path
) -> None:
    verb = ["crossval", *TRAINING, "training.epochs=2", "folds=[1, 3]", "--json", "told.json"]
    array = Submitted(slurm, tmp_path, dataset, "--array", verb=verb)
    assert len(array.jobs) == 2
    assert array.until_over(array.jobs[1])["JobState"] == "COMPLETED", list((array.output / "logs").glob("*"))
    told = json.loads((tmp_path / "told.json").read_text())
    assert set(told["folds"]) == {"1", "3"}
    assert told["model"]["uri"] == "models:/breast-ultrasound-segmenter@candidate"
    text = (array.output / "logs" / f"slurm-{array.jobs[1]}.out").read_text()
    assert "epoch 1/2" not in text, "it trains nothing itself"


ASKED = """
import json, sys
from data_pipeline import WrongCall
from launch.job import Job, duration
from launch.slurm import SlurmOptions, run
for nodes, processes, limit, passed_on in json.load(sys.stdin):
    try:
        run(Job(("train", "quick"), nodes, processes, time_limit=duration(limit)), SlurmOptions(), passed_on)
    except WrongCall as wrong:
        print(wrong)
"""


def test_a_job_for_which_slurm_has_no_room_is_refused_in_one_line_before_it_is_submitted(slurm: Slurm) -> None:
    asked = {
        "--partition big: Slurm has no such partition; it has": (1, 1, None, ["--partition=big"]),
        "3 nodes are more than the 2 of the partition normal": (3, 1, None, []),
        "--procs 2: 2 processes are more than the 1 CPUs of a node in the partition urgent": (
            *(1, 2, None),
            ["-p", "urgent"],
        ),
        "--procs 2: 2 processes are more than the 1 GPUs of a node in the partition devices": (
            *(1, 2, None),
            ["-pdevices"],
        ),
        "--time-limit 2:00:00 is longer than the partition normal allows, which is 1:00:00": (1, 1, "2:00:00", []),
        "Slurm refuses the job: Batch job submission failed: ": (1, 1, None, ["--licenses=none-of-these"]),
    }
    before = slurm.run("squeue", "--noheader")
    said = slurm.run(sys.executable, "-P", "-c", ASKED, text=json.dumps(list(asked.values()))).splitlines()
    assert len(said) == len(asked), said
    for line, expected in zip(said, asked, strict=True):
        assert line.startswith(expected)
    assert slurm.run("squeue", "--noheader") == before


def test_a_slurm_that_does_not_answer_is_reported_in_one_line(slurm: Slurm, tmp_path: Path) -> None:
    lost = tmp_path / "slurm.conf"
    there = (slurm.folder / "slurm.conf").read_text()
    lost.write_text(there.replace("SlurmctldPort=6817", "SlurmctldPort=6816\nMessageTimeout=2"))
    call = (*SONOTRAIN, "launch", "slurm", "--", "train", "quick")
    done = slurm.hosts.run("head", *call, env=slurm.environment | {"SLURM_CONF": str(lost)}, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Slurm does not answer: ")
    assert done.stderr.count("\n") == 1
