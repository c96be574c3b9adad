"""Where trials run: a Ray of this machine alone, or the cluster that RAY_ADDRESS names; and what has room on it.

A Ray of this machine is private: it listens on the loopback interface, asks for a secret that only this user can read,
keeps its files in a folder of its own, and ends with the block that started it, also where that is killed.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray._private import ray_constants
from ray.job_config import JobConfig
from ray.tune import PlacementGroupFactory
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data_pipeline import Fault, WrongCall, open_store
from trainer.config import Config
from tuning.settings import Tune

if TYPE_CHECKING:
    from tuning.keeper import Versions

ADDRESS = "RAY_ADDRESS"
"""Ray's own variable for the cluster that is to be used."""

ANSWER_TIMEOUT = 60.0
"""Seconds that a cluster has to let us in."""

STARTS = 4
"""How often a Ray of this machine alone is started before that is given up."""

LOOK_TIMEOUT = 180.0
"""Seconds that nodes have to start a process, to read a dataset's index and to answer."""

_LEAVE_TIMEOUT = 10.0
_LOOPBACK = "127.0.0.1"
_OBJECT_STORE = 80_000_000  # bytes; trials hand over a few numbers at a time
_SOCKET = "/ray-01234567/session_2026-11-28_13-15-42_835512_4194304/sockets/plasma_store"
_LONGEST = 107 - len(_SOCKET)  # characters of our folder's name, for a socket's may not be longer

_JOIN = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"

_SWEEPER = (sys.executable, "-I", "-S", str(Path(__file__).with_name("sweeper.py")))

_log = logging.getLogger("sonotrain")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a cluster: Ray's id, its hostname and address, the cores and GPUs that Ray may give away on it."""

    id: str
    name: str
    address: str
    cpus: int
    gpus: int


class Cluster:
    """The machines that trials may have."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)
        """Those that were there when it was joined."""
        self._keepers: dict[str, ray.actor.ActorHandle] = {}

    def shape(self, tune: Tune) -> PlacementGroupFactory:
        """What a trial takes: for each of its machines all cores and GPUs of its processes there.

        Raises WrongCall where there are not enough machines that could ever hold it.
        """
        asked = {"CPU": tune.processes * tune.cpus}
        if self._gpus_of_a_process(tune, asked["CPU"]):
            asked["GPU"] = tune.processes
        shape = PlacementGroupFactory(
            [dict(asked)] * tune.nodes, strategy="STRICT_SPREAD" if tune.nodes > 1 else "STRICT_PACK"
        )
        if self.room(shape) < 1:
            raise WrongCall(self._too_small(tune, asked))
        return shape

    def room(self, shape: PlacementGroupFactory) -> int:
        """How many trials of that shape find room at the same time."""
        asked, machines = shape.bundles[0], len(shape.bundles)
        held = [_times(node, asked) for node in self.nodes]
        # So many trials fit, each on as many different machines, if the machines hold that many parts of theirs, of
        # which none can hold two of the same trial.
        trials = sum(held) // machines
        while sum(min(most, trials) for most in held) < trials * machines:
            trials -= 1
        return trials

    def check_nodes(
        self, config: Config, digest: str, shared: str, versions: Versions, timeout: float = LOOK_TIMEOUT
    ) -> None:
        """Raise Fault, in one line, for the first node on which a trial could not be carried out.

        There has to be the same sonotrain (by `versions`), the dataset of that digest, and `shared`: the folder, or
        prefix of a store, to which trials write.
        """
        store = open_store(shared)
        store.make()
        token, secret = f"seen-{secrets.token_hex(8)}", secrets.token_bytes(16)
        store.publish(token, secret)
        try:
            expected = versions()
            asked = {
                node: self._keeper(node).look.remote(versions, expected, config, digest, shared, token, secret)
                for node in self.nodes
                if node.cpus
            }
            for node, wrong in _answers(asked, timeout).items():
                if wrong:
                    raise Fault(f"node {node.name}: {wrong}")
        finally:
            with suppress(Fault):
                store.delete(token)

    def keep_scans(self, config: Config, timeout: float = LOOK_TIMEOUT) -> None:
        """Have each node keep the decoded scans of a configuration until the end, for one trial after the other.

        A node that cannot costs a warning: its trials decode for themselves.
        """
        asked = {node: self._keeper(node).keep.remote(config) for node in self.nodes if node.cpus}
        try:
            _answers(asked, timeout)
        except Fault as failed:
            _log.warning("%s; its trials decode scans for themselves", failed)

    def close(self) -> None:
        """Have nodes let go of what they keep."""
        if not ray.is_initialized():  # what is asked of a Ray that has ended would start another one
            return
        left = [keeper.leave.remote() for keeper in self._keepers.values()]
        if left:
            ray.wait(left, num_returns=len(left), timeout=_LEAVE_TIMEOUT)
        for keeper in self._keepers.values():
            ray.kill(keeper)
        self._keepers.clear()

    def _keeper(self, node: Node) -> ray.actor.ActorHandle:
        from tuning.keeper import Keeper

        if node.id not in self._keepers:
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            self._keepers[node.id] = ray.remote(Keeper).options(num_cpus=0, scheduling_strategy=there).remote()
        return self._keepers[node.id]

    def _gpus_of_a_process(self, tune: Tune, cpus: int) -> int:
        if tune.gpus is not None:
            return tune.gpus
        candidates = [node for node in self.nodes if node.cpus >= cpus]
        return int(bool(candidates) and all(node.gpus for node in candidates))

    def _too_small(self, tune: Tune, asked: Mapping[str, int]) -> str:
        many = f"{tune.nodes} machines of it have " if tune.nodes > 1 else ""
        where = "each machine of a trial" if many else "a trial"
        needs = f"tune.processes={tune.processes}, tune.cpus={tune.cpus}: {where} takes {_told(asked)}"
        most = max((node for node in self.nodes), key=lambda node: (node.gpus >= asked.get("GPU", 0), node.cpus))
        enough = sum(1 for node in self.nodes if _times(node, asked))
        if tune.nodes > 1 and enough:
            return f"tune.nodes={tune.nodes}, {needs}, which {enough} of {len(self.nodes)} machines have; ask for fewer"
        has = _told({"CPU": most.cpus, "GPU": most.gpus})
        return f"{needs}, and the largest machine, {most.name}, has {has}; ask for less"


def check_cores(tune: Tune, cores: int) -> None:
    """Raise WrongCall where this machine is all there is, and has not enough for a trial: known before a Ray starts."""
    if os.environ.get(ADDRESS, "") in ("", "local"):
        Cluster([Node("", socket.gethostname(), _LOOPBACK, cores, torch.cuda.device_count())]).shape(tune)


@contextmanager
def joined_cluster(cores: int) -> Iterator[Cluster]:
    """The cluster that RAY_ADDRESS names, or so many cores of this machine under a Ray that ends with the block.

    Raises Fault where the cluster does not let us in: nothing answers, or its Ray or Python is another.
    """
    address = os.environ.get(ADDRESS, "")
    with _member(address) if address not in ("", "local") else _alone(cores):
        cluster = Cluster(_nodes())
        try:
            yield cluster
        finally:
            cluster.close()


@contextmanager
def _member(address: str) -> Iterator[None]:
    _require_answer(address)
    with _environment(RAY_USAGE_STATS_ENABLED="0"):
        try:
            _start(address=address)
        except Exception as failed:
            raise Fault(_no_entry(address, str(failed))) from failed
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _alone(cores: int) -> Iterator[None]:
    with _folder() as folder:
        token = folder / "token"
        token.write_text(secrets.token_hex(32), encoding="utf-8")
        token.chmod(0o600)
        own = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
            "RAY_worker_niceness": "0",  # or trainings would yield to whatever else this machine does
        }
        with _environment(**own), _on_loopback():
            _start_in_time(
                address="local",
                num_cpus=cores,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE,
                _node_ip_address=_LOOPBACK,
                _temp_dir=str(folder),
            )
            try:
                yield
            finally:
                ray.shutdown(wait_for_processes=True)
    _read_secret_again()


def _start_in_time(**asked: Any) -> None:
    """Start a Ray of our own. It gives up after half a minute, which on a machine at work may be too early."""
    for left in reversed(range(STARTS)):
        try:
            _start(**asked)
            return
        except Exception as failed:
            ray.shutdown(wait_for_processes=True)
            if not left:
                why = str(failed).strip().splitlines()[0]
                raise Fault(f"Ray does not start on this machine ({why}); is it overloaded?") from failed


def _start(**asked: Any) -> None:
    """Join or start a Ray, which leaves the terminal and modules as they are."""
    ray.init(log_to_driver=False, logging_level=logging.ERROR, job_config=_own_modules(), **asked)


def _nodes() -> list[Node]:
    return [
        Node(
            each["NodeID"],
            each["NodeManagerHostname"],
            each["NodeManagerAddress"],
            int(each["Resources"].get("CPU", 0)),
            int(each["Resources"].get("GPU", 0)),
        )
        for each in ray.nodes()
        if each["Alive"]
    ]


def _times(node: Node, asked: Mapping[str, float]) -> int:
    """How often a node holds that."""
    has = {"CPU": node.cpus, "GPU": node.gpus}
    return min(int(has[what] // amount) for what, amount in asked.items())


def _told(amounts: Mapping[str, int]) -> str:
    units = {"CPU": "core", "GPU": "GPU"}
    said = [f"{amount} {units[what]}{'s' * (amount != 1)}" for what, amount in amounts.items()]
    return " and ".join(said)


def _answers(asked: Mapping[Node, ray.ObjectRef], timeout: float) -> dict[Node, str]:
    """What each node answers. Raises Fault naming one that does not."""
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout)
    answers = {}
    for node, reference in asked.items():
        if reference not in ready:
            raise Fault(f"node {node.name}: does not answer within {timeout:.0f} s; is it overloaded?")
        try:
            answers[node] = ray.get(reference)
        except Exception as failed:  # the process there, or Ray for it
            last = str(failed).strip().splitlines()[-1]
            missing = "ModuleNotFoundError" in str(failed) or "failed to import" in str(failed)
            what = "has no sonotrain for Ray's Python; install it there" if missing else "cannot be looked at"
            raise Fault(f"node {node.name}: {what} ({last})") from failed
    return answers


def _require_answer(address: str) -> None:
    """Join and leave in a process of its own, for Ray waits long where nothing or something else answers."""
    if address.startswith("ray://"):
        raise WrongCall(f"{ADDRESS}={address} is for Ray's client; run sonotrain tune on a machine of the cluster")
    host, _, port = address.rpartition(":")
    if address != "auto":
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, ValueError) as failed:
            raise Fault(_no_entry(address, str(failed))) from failed
    try:
        subprocess.run(
            [sys.executable, "-P", "-c", _JOIN, address],
            check=True,
            capture_output=True,
            text=True,
            timeout=ANSWER_TIMEOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"RAY_NUM_REDIS_GET_RETRIES": "3"},
        )
    except subprocess.TimeoutExpired as late:
        raise Fault(_no_entry(address, f"no answer within {ANSWER_TIMEOUT:.0f} s")) from late
    except subprocess.CalledProcessError as failed:
        raise Fault(_no_entry(address, failed.stderr)) from failed


def _no_entry(address: str, told: str) -> str:
    """One line for a cluster that lets nobody in. told: an error's text, or all that a process said of it."""
    differs = re.search(r"started with:\s*Ray: (\S+)\s*Python: (\S+)", told)
    if differs:
        python = ".".join(map(str, sys.version_info[:3]))
        return (
            f"{ADDRESS}={address}: that cluster has Ray {differs[1]} and Python {differs[2]}, here are Ray "
            f"{ray.__version__} and Python {python}; install the same on both"
        )
    why = (told.strip().splitlines() or ["no reason told"])[-1]
    return f"{ADDRESS}={address}: no Ray cluster that this machine belongs to ({why}); start it, or unset {ADDRESS}"


def _own_modules() -> JobConfig:
    """Have workers find modules where sonotrain is installed, and not in the working directory, as Ray would."""
    return JobConfig(_client_job=True)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have a new Ray listen on the loopback interface alone, which it does by itself on other systems than Linux.

    That, and the secret, are told by the environment, which this process has read already: so it reads it again.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    _read_secret_again()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _read_secret_again() -> None:
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Variables of this process, and of those that it starts, until the end of the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _folder() -> Iterator[Path]:
    """A new folder with a short name for a Ray's files. It goes with the block, and so does that Ray."""
    root = Path(tempfile.gettempdir()) / f"sonotrain-{os.getuid()}"
    if len(str(root)) > _LONGEST:
        root = Path("/tmp") / root.name  # noqa: S108
    root.mkdir(mode=0o700, exist_ok=True)
    about = root.lstat()
    if about.st_uid != os.getuid() or about.st_mode & 0o077 or root.is_symlink():
        raise Fault(f"{root}: belongs to others or is open to them; remove it, or set TMPDIR")
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir=root))
    # In a session of its own, or what kills the driver's process group would kill it too.
    sweeper = subprocess.Popen([*_SWEEPER, str(folder)], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield folder
    finally:
        sweeper.kill()
        sweeper.communicate()
        shutil.rmtree(folder, ignore_errors=True)
