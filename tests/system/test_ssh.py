"""A training over ssh through the DeepSpeed launcher, on hosts with what happens to them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import Dataset
from launch.control import LEASE
from launch.node import GRACE
from tests.faults.checkpoints import checkpoints, same_to_the_bit, tensors
from tests.faults.conftest import SMALL
from tests.system.hosts import HEAD, Hosts

SONOTRAIN = (sys.executable, "-P", "-m", "launch.cli")
EPOCHS = 24
STEPS = 4 * EPOCHS
TRAINING = [
    *SMALL,
    "training.batch=6",
    f"training.epochs={EPOCHS}",
    "checkpoints.every_steps=7",
    # Else Adam makes much of the little by which sums over one, two and three processes differ.
    "optimizer.generator_rate=3e-5",
    "optimizer.discriminator_rate=3e-5",
]
LISTEN = """
import socket, time
with socket.create_server(("", 0)) as server:
    print(server.getsockname()[1], flush=True)
    time.sleep(120)
"""
SECRET = "no-command-line-shows-this"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Launch:
    """`sonotrain launch` at the head, of a training into a folder whose name three shells could mistake."""

    def __init__(self, hosts: Hosts, folder: Path, way: list[str], verb: list[str]) -> None:
        self._hosts = hosts
        self.output = folder / "the run's  %n of $HOME"
        self.terminal = folder / "terminal"
        tracker = f"MLFLOW_TRACKING_URI=sqlite:///{folder}/mlflow.db"
        given = ["--env", "OMP_NUM_THREADS=1", "--env", tracker, "--env", "AWS_SECRET_ACCESS_KEY"]
        arguments = [*way, *given, "--", "train", "quick", *verb, f"output={self.output}"]
        with self.terminal.open("wb") as terminal:
            self.process = hosts.start(
                HEAD,
                *(*SONOTRAIN, "launch", *arguments),
                cwd=folder,
                env=os.environ | {"AWS_SECRET_ACCESS_KEY": SECRET},
                stdout=terminal,
                stderr=terminal,
            )

    def text(self) -> str:
        """What it has said."""
        return self.terminal.read_text()

    def wait(self, seconds: float = 240) -> int:
        """Its status when it has ended."""
        return self.process.wait(seconds)

    def until(self, condition: Callable[[], bool], seconds: float = 120) -> float:
        """Wait until something is so while it runs; gives after how many seconds."""
        began = time.monotonic()
        while not condition():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < began + seconds, self.text()
            time.sleep(0.05)
        return time.monotonic() - began

    def until_step(self, step: int) -> None:
        """Wait until the checkpoint of a step is there."""
        self.until(lambda: bool(checkpoints(self.output)) and int(checkpoints(self.output)[-1][5:]) >= step)

    def until_said(self, words: str, seconds: float = 120) -> float:
        """Wait until it says that."""
        return self.until(lambda: words in self.text(), seconds)


@pytest.fixture(scope="module")
def dataset(packed: Callable[..., Dataset]) -> Dataset:
    """30 scans in three folds: four iterations of six scans to an epoch, the last filled up."""
    return packed(30)


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What a training in two processes of one machine ends with."""
    folder = tmp_path_factory.mktemp("local")
    arguments = ["launch", "local", "--procs", "2", "--", "train", "quick", *TRAINING, f"data.uri={dataset.uri}"]
    own = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*SONOTRAIN, *arguments, f"output={folder}/run"],
        cwd=folder,
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return tensors(folder / "run", STEPS)


@pytest.fixture
def launch(hosts: Hosts, dataset: Dataset, tmp_path: Path) -> Iterator[Callable[..., Launch]]:
    """Start a launch over ssh on so many hosts, with options of `launch ssh`; nothing of it is left on any host."""
    launches: list[Launch] = []

    def start(count: int, *options: str) -> Launch:
        hostfile = hosts.hostfile(1, hosts.names[:count])
        verb = [*TRAINING, f"data.uri={dataset.uri}"]
        launches.append(Launch(hosts, tmp_path, ["ssh", "--hostfile", str(hostfile), *options], verb))
        return launches[-1]

    yield start
    for each in launches:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGKILL)
            each.wait(10)


def on_hosts(hosts: Hosts) -> list[str]:
    """What runs on any host that is on."""
    return [command for name in (HEAD, *hosts.names) if hosts.is_up(name) for command in hosts.processes(name).values()]


def apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray], kind: str) -> float:
    """How far apart two trainings are in tensors of a kind, for the size of these."""
    names = [name for name in one if kind in name]
    far = sum(float(np.linalg.norm(one[name] - other[name])) ** 2 for name in names)
    return (far / sum(float(np.linalg.norm(one[name])) ** 2 for name in names)) ** 0.5


def has_learnt_the_same(job: Launch, undisturbed: dict[str, np.ndarray]) -> None:
    """Its end is that of another number of processes, as far as sums are: weights, and how the last batches moved."""
    ended = tensors(job.output, STEPS)
    assert max(np.abs(ended[name] - undisturbed[name]).max() for name in ended if "moments" not in name) < 1e-4
    assert apart(ended, undisturbed, "exp_avg/") < 0.01
    # What one batch more or less would do.
    assert apart(ended, tensors(job.output, int(checkpoints(job.output)[-2][5:])), "exp_avg/") > 0.1


def is_missed(hosts: Hosts, job: Launch, missing: str, left: str, failures: int) -> None:
    """The host that is lost is named, and no process is left: on the other one soon, there when it knows itself."""
    began = time.monotonic()
    job.until(lambda: not hosts.processes(left), LEASE + GRACE + 5)
    job.until(lambda: job.text().count("Failed: ") == failures, 30)
    failed = [line for line in job.text().splitlines() if line.startswith("Failed: ")][-1]
    assert failed.startswith(f"Failed: {missing} (rank {int(missing[-1]) - 1}) after step "), failed
    while hosts.is_up(missing) and hosts.processes(missing):
        assert time.monotonic() - began < LEASE + 2 * GRACE, hosts.processes(missing)
        time.sleep(0.1)


def test_three_hosts_train_as_one_machine_does_and_nothing_is_left(
    hosts: Hosts, launch: Callable[..., Launch], undisturbed: dict[str, np.ndarray]
) -> None:
    job = launch(3)
    seen: set[str] = set()
    while job.process.poll() is None:
        seen.update(on_hosts(hosts))
        time.sleep(0.2)
    assert job.wait() == 0, job.text()
    assert on_hosts(hosts) == []
    assert any("launch node" in command for command in seen)
    assert not [command for command in seen if SECRET in command]
    has_learnt_the_same(job, undisturbed)


def test_hosts_that_are_lost_and_come_back_change_nothing_in_what_is_learnt(
    hosts: Hosts, launch: Callable[..., Launch], undisturbed: dict[str, np.ndarray]
) -> None:
    job = launch(2, "--restarts", "5")
    losses = (("node2", "node1", hosts.cut), ("node1", "node2", hosts.power_off))
    for failures, (missing, left, lose) in enumerate(losses, start=1):
        job.until_step(30 * failures)
        lose(missing)
        is_missed(hosts, job, missing, left, failures)
        job.until_said(f"Waiting for what is missing: {missing} cannot be reached", 60)
        hosts.heal(missing)
    assert job.wait() == 0, job.text()
    assert on_hosts(hosts) == []
    assert same_to_the_bit(tensors(job.output, STEPS), undisturbed)


def test_a_job_goes_on_without_a_host_that_drops_all_packets_and_learns_the_same(
    hosts: Hosts, launch: Callable[..., Launch], undisturbed: dict[str, np.ndarray]
) -> None:
    job = launch(2, "--elastic", "1:2")
    job.until_step(77)
    hosts.drop("node1")
    is_missed(hosts, job, "node1", "node2", 1)
    assert job.wait() == 0, job.text()
    assert "Going on with 1 machines: node1 cannot be reached" in job.text()
    assert on_hosts(hosts) == []
    has_learnt_the_same(job, undisturbed)


def test_hosts_end_by_themselves_what_a_killed_supervisor_leaves(hosts: Hosts, launch: Callable[..., Launch]) -> None:
    job = launch(2)
    job.until_step(7)
    job.process.kill()
    job.wait(10)
    began = time.monotonic()
    while left := on_hosts(hosts):
        assert time.monotonic() - began < LEASE + 2 * GRACE, left
        time.sleep(0.2)


CALLS = """
import contextlib, io, json, os, sys
from launch import cli
batch = f"training.batch={6 * (os.cpu_count() + 1)}"
for call in json.load(sys.stdin):
    said = io.StringIO()
    sys.argv = ["sonotrain", "launch", "ssh", *call, "--", "train", "quick", batch, "data.uri=none", "output=run"]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            status = cli.main()
        except SystemExit as ended:
            status = ended.code
    print(json.dumps([status, said.getvalue()]), flush=True)
"""


@pytest.fixture
def refused(hosts: Hosts, tmp_path: Path) -> Callable[..., list[tuple[int, str]]]:
    """What `launch ssh` answers to some calls, from one process at the head."""

    def ask(*calls: list[str]) -> list[tuple[int, str]]:
        done = hosts.run(HEAD, sys.executable, "-P", "-c", CALLS, text=json.dumps(calls), timeout=120, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return [(status, said) for status, said in map(json.loads, done.stdout.splitlines())]

    return ask


def test_what_cannot_work_is_one_line_before_anything_is_started(
    hosts: Hosts, refused: Callable[..., list[tuple[int, str]]], tmp_path: Path
) -> None:
    metadata = Path(str(distribution("webdataset").locate_file("webdataset-1.0.2.dist-info/METADATA")))
    other = tmp_path / "METADATA"
    other.write_text(metadata.read_text().replace("Version: 1.0.2", "Version: 1.0.1"))
    assert hosts.run("node2", "mount", "--bind", str(other), str(metadata)).returncode == 0
    (tmp_path / "empty").mkdir()
    python = Path(sys.executable).parent
    assert hosts.run("node3", "mount", "--bind", str(tmp_path / "empty"), str(python)).returncode == 0
    listening = hosts.start("node1", sys.executable, "-c", LISTEN, stdout=subprocess.PIPE)
    assert listening.stdout is not None
    port = listening.stdout.readline().strip()

    def names(*given: str, slots: int = 1) -> list[str]:
        return ["--hostfile", str(hosts.hostfile(slots, given))]

    double = tmp_path / "double"
    double.write_text("node1 slots=1\nnode1 slots=1\n")
    cores = os.cpu_count() or 1
    calls = {
        "node9 cannot be reached: Could not resolve hostname node9": names("node1", "node9"),
        "double, line 2: node1 stands in line 1 already": ["--hostfile", str(double)],
        "webdataset differs: 1.0.2 on node1, 1.0.1 on node2; install the same everywhere": names("node1", "node2"),
        f"node3 has no {sys.executable}; install sonotrain at the same place": names("node3"),
        f"--master-port {port} is taken on node1": [*names("node1"), "--master-port", port],
        f"--procs {cores + 1} are more than the {cores} cores of node1": names("node1", slots=cores + 1),
        "--procs 2 are more than the 1 slots of node1": [*names("node1"), "--procs", "2"],
        "3 machines are asked for": [*names("node1", "node2"), "--nodes", "3"],
        "--num_gpus of the DeepSpeed launcher is --procs here": [*names("node1"), "--num_gpus", "1"],
        "--include node2: node2 is no host of the hostfile (node1)": [*names("node1"), "--include", "node2"],
        "--workdir /none": [*names("node1"), "--workdir", "/none"],
    }
    try:
        answers = refused(*calls.values())
    finally:
        listening.kill()
        listening.wait()
        hosts.run("node2", "umount", str(metadata))
        hosts.run("node3", "umount", str(python))
    for complaint, (status, said) in zip(calls, answers, strict=True):
        *_, error = said.splitlines()
        assert error.startswith("error: "), said
        assert complaint in error
        assert status == (1 if "reached" in complaint else 2), said
    assert not list(tmp_path.glob("run/checkpoints"))
    assert on_hosts(hosts) == []
