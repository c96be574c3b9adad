"""A Ray cluster on hosts of a cluster for tests: the head gives nothing away, each of the others what is asked.

Every node keeps Ray's files in a folder of its own, for hosts share their disk. A host that is lost is missed within
seconds, where Ray would by itself wait for half a minute.
"""

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.system.hosts import HEAD, Hosts

PORT = 6379

_RAY = (sys.executable, "-P", "-m", "ray.scripts.scripts")
_COMMON = ("--disable-usage-stats", "--object-store-memory=80000000", "--block", "--log-color=false")
_ATTEMPTS = 6
_GAVE_UP = "Timed out waiting for file"
_MISSED_SOON = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}


@contextmanager
def ray_cluster(hosts: Hosts, names: Sequence[str], cpus: int = 1, **variables: str) -> Iterator[dict[str, str]]:
    """A cluster of the head and these hosts, each with so many cores: gives the environment in which it is joined.

    variables are set on each of them, and so in the processes of Ray there.
    """
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment = own | secret | variables | {"OMP_NUM_THREADS": "1"}
        address = f"{hosts.address(HEAD)}:{PORT}"
        head = (HEAD, "--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
        started: list[subprocess.Popen[str]] = []
        try:
            # One after the other: a node that has not started within half a minute gives up.
            started.append(_started(hosts, Path(folder), environment | _MISSED_SOON, *head))
            for name in names:
                options = (f"--address={address}", f"--num-cpus={cpus}")
                started.append(_started(hosts, Path(folder), environment, name, *options))
            yield environment | {"RAY_ADDRESS": address}
        finally:
            for process in started:
                process.kill()  # and Ray's own processes end with it
                process.wait(20)


def _started(
    hosts: Hosts, folder: Path, environment: dict[str, str], name: str, *options: str
) -> subprocess.Popen[str]:
    """`ray start` on a host, when it has said that all is up.

    Ray gives up where its own processes take more than 15 s to start, as on a machine that is at work for others.
    """
    log = folder / f"{name}.log"
    for attempt in range(_ATTEMPTS):
        at = (f"--node-ip-address={hosts.address(name)}", f"--temp-dir={folder}/{name}-{attempt}")
        program = (*_RAY, "start", *options, *at, *_COMMON)
        with log.open("wb") as said:
            process = hosts.start(name, *program, env=environment, stdout=said, stderr=said, start_new_session=True)
        while process.poll() is None and not any(_GAVE_UP in text for text in _told(folder, name, attempt)):
            if "Ray runtime started" in log.read_text():
                return process
            time.sleep(0.2)
        process.kill()  # and Ray's own processes end with it
        process.wait(20)
    raise AssertionError(log.read_text())


def _told(folder: Path, name: str, attempt: int) -> Iterator[str]:
    """What Ray's daemon on a host has written."""
    for path in folder.glob(f"{name}-{attempt}/session_2*/logs/raylet.out"):
        yield path.read_text(errors="replace")
