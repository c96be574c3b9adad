"""A cluster: what has room on it, who may join it, what its nodes have to see, and what is left of it."""

import json
import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import psutil
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
from ray.tune import PlacementGroupFactory

from data_pipeline import Dataset, Fault, Scan, WrongCall
from tests.faults.conftest import SMALL
from trainer.config import Config, load_config
from tuning.cluster import Cluster, Node, joined_cluster
from tuning.keeper import Versions
from tuning.settings import Tune

pytestmark = pytest.mark.timeout(600)


def cluster_of(*cpus_and_gpus: tuple[int, int]) -> Cluster:
    return Cluster([Node(str(n), f"n{n}", "", cpus, gpus) for n, (cpus, gpus) in enumerate(cpus_and_gpus)])


@pytest.mark.parametrize(
    ("nodes", "tune", "trials"),
    [
        ([(8, 0)], Tune(), 8),
        ([(8, 0)], Tune(processes=3), 2),
        ([(8, 0), (5, 0)], Tune(processes=3), 3),  # 2 and 1, not 13 // 3
        ([(8, 0), (5, 0)], Tune(processes=2, cpus=2), 3),
        ([(16, 4)], Tune(processes=2), 2),  # a GPU a process, so the GPUs decide
        ([(16, 4)], Tune(processes=2, gpus=0), 8),
        ([(16, 4), (16, 0)], Tune(), 32),  # one machine has none, so none is asked for
        ([(16, 4), (16, 0)], Tune(gpus=1), 4),
        ([(16, 4), (0, 0)], Tune(), 4),  # a head that gives nothing away
        ([(4, 0), (4, 0)], Tune(nodes=2, processes=2), 2),
        ([(8, 0), (2, 0), (2, 0)], Tune(nodes=2, processes=2), 2),  # the large one is in both
        ([(8, 0), (2, 0), (2, 0)], Tune(nodes=3, processes=2), 1),
        ([(4, 0), (4, 0), (4, 0)], Tune(nodes=2, processes=2), 3),  # each machine in two of them
    ],
)
def test_as_many_trials_fit_as_can_be_counted_by_hand(nodes: list[tuple[int, int]], tune: Tune, trials: int) -> None:
    cluster = cluster_of(*nodes)
    shape = cluster.shape(tune)
    assert cluster.room(shape) == trials
    assert (len(shape.bundles), shape.bundles[0]["CPU"]) == (tune.nodes, tune.processes * tune.cpus)
    assert shape.strategy == ("STRICT_SPREAD" if tune.nodes > 1 else "STRICT_PACK")


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(1, 3))
def test_the_room_is_that_of_the_best_way_to_place_trials(cores: list[int], machines: int) -> None:
    def most(left: tuple[int, ...]) -> int:
        fits = [node for node, free in enumerate(left) if free]
        rest = (
            tuple(free - (node in taken) for node, free in enumerate(left)) for taken in combinations(fits, machines)
        )
        return max((1 + most(each) for each in set(rest)), default=0)

    cluster = cluster_of(*((cpus, 0) for cpus in cores))
    assert cluster.room(PlacementGroupFactory([{"CPU": 1}] * machines)) == most(tuple(cores))


@pytest.mark.parametrize(
    ("tune", "told"),
    [
        (Tune(processes=2, cpus=5), "takes 10 cores, and the largest machine, n0, has 8 cores and 0 GPUs"),
        (Tune(gpus=1), "takes 1 core and 1 GPU, and the largest machine, n0, has 8 cores and 0 GPUs"),
        (Tune(nodes=2, processes=6), "each machine of a trial takes 6 cores, which 1 of 2 machines have"),
        (Tune(nodes=3), "takes 1 core, which 2 of 2 machines have"),
    ],
)
def test_a_trial_that_no_machine_can_hold_is_refused(tune: Tune, told: str) -> None:
    with pytest.raises(WrongCall, match=told) as refused:
        cluster_of((8, 0), (4, 0)).shape(tune)
    assert "\n" not in str(refused.value)


def python_version() -> Versions:
    return lambda: {"python": platform.python_version()}


@pytest.fixture(scope="module")
def local() -> Iterator[Cluster]:
    """A Ray of this machine, with two cores to give away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with joined_cluster(2) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def dataset(packed: Callable[..., Dataset]) -> Dataset:
    """30 scans in three folds."""
    return packed(30)


@pytest.fixture
def config(dataset: Dataset, tmp_path: Path) -> Config:
    """A training of one short epoch, whose scans all have room in memory."""
    own = [f"data.uri={dataset.uri}", f"output={tmp_path}/run", "data.resident_gb=1", "training.epochs=1"]
    return load_config("quick", [*SMALL, *own])


def test_a_ray_of_its_own_has_the_cores_given_and_is_reached_from_this_machine_alone(local: Cluster) -> None:
    assert [(node.cpus, node.gpus, node.address) for node in local.nodes] == [(2, 0, "127.0.0.1")]
    assert ray.get(ray.remote(lambda: 7).remote(), timeout=60) == 7
    ours = {os.getpid()} | {each.pid for each in psutil.Process().children(recursive=True)}
    heard = {each.laddr.ip for each in psutil.net_connections() if each.status == "LISTEN" and each.pid in ours}
    assert heard
    assert heard <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_modules_are_not_taken_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer/__init__.py").write_text("raise SystemExit('the wrong trainer')")
    text = "with joined_cluster(1):\n    print(ray.get(ray.remote(lambda: __import__('trainer').__file__).remote()))"
    own = str(Path(__file__).parents[2] / "trainer/__init__.py\n")
    assert driver(text, tmp_path).communicate(timeout=180) == (own, "")


def test_a_node_that_sees_what_the_driver_sees_is_fit(local: Cluster, config: Config, dataset: Dataset) -> None:
    shared = Path(config.output)
    local.check_nodes(config, dataset.index.digest, str(shared), python_version())
    assert list(shared.iterdir()) == []


def test_a_node_with_another_installation_or_dataset_is_named(local: Cluster, config: Config, dataset: Dataset) -> None:
    digest, shared = dataset.index.digest, config.output
    name = socket.gethostname()
    with pytest.raises(Fault, match=rf"^node {name}: has process \d+, the driver has {os.getpid()}; install the same$"):
        local.check_nodes(config, digest, shared, lambda: {"process": str(os.getpid())})
    with pytest.raises(Fault, match=rf"^node {name}: data.uri=\S+ is another dataset there \(.*, the driver's is 000"):
        local.check_nodes(config, "0" * 64, shared, python_version())
    elsewhere = config.replace(data__uri=f"{shared}/nothing")
    with pytest.raises(Fault, match=rf"^node {name}: data.uri cannot be read there: .*nothing"):
        local.check_nodes(elsewhere, digest, shared, python_version())


def test_a_node_that_does_not_answer_is_given_up(local: Cluster, config: Config, dataset: Dataset) -> None:
    here = os.getpid()
    slowly: Versions = lambda: {"python": str(os.getpid() == here or time.sleep(10))}  # noqa: E731
    began = time.monotonic()
    with pytest.raises(Fault, match=r"^node \S+: does not answer within 1 s"):
        local.check_nodes(config, dataset.index.digest, config.output, slowly, timeout=1)
    assert time.monotonic() - began < 8


def test_trainings_of_a_node_share_their_scans_though_they_follow_each_other(
    local: Cluster,
    config: Config,
    scans: Callable[..., list[Scan]],
    packed: Callable[..., Dataset],
    mlflow_folder: Path,
) -> None:
    own = packed(scans(30, seed=secrets.randbelow(2**31)))  # which nobody has left in this machine's memory
    config = config.replace(data__uri=own.uri)
    local.keep_scans(config)
    first, second = (requests(config.replace(output=f"{config.output}-{n}"), mlflow_folder) for n in (1, 2))
    assert second == first - 20  # the scans that it learnt from; those that it is judged by are read at their own size


def requests(config: Config, mlflow_folder: Path) -> float:
    """How often a training of one epoch has asked for a part of a shard."""
    changes = [f"{key}={json.dumps(value)}" for key, value in config.flat().items()]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "launch.cli", "train", "quick", *changes],
        env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{mlflow_folder}/mlflow.db", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    points = [json.loads(line) for line in Path(config.output, "metrics.jsonl").read_text().splitlines()]
    return max(point["data/requests"] for point in points if "data/requests" in point)


def driver(text: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    """A program of its own that joins a cluster."""
    program = f"import os, time, ray\nfrom tuning.cluster import joined_cluster\n{text}\n"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


JOIN = "with joined_cluster(1) as cluster:\n    print(len(cluster.nodes), cluster.nodes[0].cpus)"


def test_a_cluster_is_joined_and_left_as_it_was(local: Cluster, tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    assert driver(JOIN, tmp_path, RAY_ADDRESS=address).communicate(timeout=180) == ("1 2\n", "")
    assert ray.get(ray.remote(lambda: 7).remote(), timeout=60) == 7


def test_a_cluster_of_another_ray_is_not_joined(local: Cluster, tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    key = b"CLUSTER_METADATA"
    before = _internal_kv_get(key, namespace=b"cluster")
    assert before is not None
    _internal_kv_put(key, json.dumps(json.loads(before) | {"ray_version": "2.9.0"}), True, namespace=b"cluster")
    try:
        _, told = driver(JOIN, tmp_path, RAY_ADDRESS=address).communicate(timeout=180)
    finally:
        _internal_kv_put(key, before, True, namespace=b"cluster")
    python = platform.python_version()
    assert told.splitlines()[-1] == (
        f"data_pipeline.faults.Fault: RAY_ADDRESS={address}: that cluster has Ray 2.9.0 and Python {python}, here are "
        f"Ray {ray.__version__} and Python {python}; install the same on both"
    )


def test_a_process_that_belongs_to_a_ray_starts_none_of_its_own(local: Cluster) -> None:
    with pytest.raises(Fault, match=r"^this process belongs to a Ray already; call ray.shutdown\(\) first$"):
        joined_cluster(1).__enter__()
    assert {each["NodeID"] for each in ray.nodes()} == {node.id for node in local.nodes}


def test_an_address_at_which_no_ray_answers_is_said_so_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(address: str, told: str) -> None:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(Fault, match=f"^RAY_ADDRESS={address}{told}$"), joined_cluster(1):
            pass

    monkeypatch.setattr("tuning.ray_session.ANSWER_TIMEOUT", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        refused(address, r": no Ray cluster that this machine belongs to \(no answer within 4 s\); start it, or .*")
    refused(address, r": no Ray cluster that this machine belongs to \(.* refused\); start it, or unset RAY_ADDRESS")
    refused("ray://somewhere:10001", " is for Ray's client; run sonotrain tune on a machine of the cluster")


def test_nothing_is_left_of_a_driver_that_is_killed(tmp_path: Path) -> None:
    text = """
with joined_cluster(2):
    ray.get([ray.remote(lambda: time.sleep(1)).remote() for _ in range(2)])
    print(os.environ["RAY_AUTH_TOKEN_PATH"], flush=True)
    time.sleep(600)
"""
    with driver(text, tmp_path) as killed:
        assert killed.stdout is not None
        folder = Path(killed.stdout.readline()).parent
        family = psutil.Process(killed.pid).children(recursive=True)
        assert len(family) > 4
        killed.send_signal(signal.SIGKILL)
    _, left = psutil.wait_procs(family, timeout=20)
    assert [each.cmdline() for each in left] == []
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folder.exists()


def test_trials_yield_to_nobody_on_this_machine(local: Cluster) -> None:
    assert ray.get(ray.remote(lambda: os.nice(0)).remote(), timeout=120) == os.nice(0)
