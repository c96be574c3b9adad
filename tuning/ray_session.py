"""How this process comes to a Ray: as a member of a cluster, or to a private one that ends with the block.

A private Ray listens on the loopback interface, asks for a secret that only this user can read, keeps its files in a
folder of its own, and ends with the block that started it, also where that is killed.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.job_config import JobConfig

from data_pipeline import Fault, WrongCall

ADDRESS = "RAY_ADDRESS"
"""Ray's own variable for the cluster that is to be used."""

ANSWER_TIMEOUT = 60.0
"""Seconds that a cluster has to let us in."""

STARTS = 4
"""How often a Ray of this machine alone is started before that is given up."""

LOOPBACK = "127.0.0.1"
"""Where a private Ray listens."""

_OBJECT_STORE = 80_000_000  # bytes; trials hand over a few numbers at a time
_SOCKET = "/ray-01234567/session_2026-11-28_13-15-42_835512_4194304/sockets/plasma_store"
_LONGEST = 107 - len(_SOCKET)  # characters of our folder's name, for a socket's may not be longer

_JOIN = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"

_SWEEPER = (sys.executable, "-I", "-S", str(Path(__file__).with_name("sweeper.py")))


@contextmanager
def member_of(address: str) -> Iterator[None]:
    """Belong to the cluster of that address. Raises WrongCall for one of Ray's client, and Fault for no entry."""
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


@contextmanager
def private_ray(cores: int) -> Iterator[None]:
    """Have so many cores of this machine under a Ray of our own.

    Raises Fault where it does not start, and where this process belongs to another one.
    """
    if ray.is_initialized():
        raise Fault("this process belongs to a Ray already; call ray.shutdown() first")
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
                _node_ip_address=LOOPBACK,
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


def _start(**asked: Any) -> None:
    """Join or start a Ray, which leaves the terminal and modules as they are."""
    ray.init(log_to_driver=False, logging_level=logging.ERROR, job_config=_own_modules(), **asked)


def _own_modules() -> JobConfig:
    """Have workers find modules where sonotrain is installed, and not in the working directory, as Ray would."""
    return JobConfig(_client_job=True)


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
