"""A real S3 server for tests: a Ceph RADOS Gateway with one monitor and one store in memory, on loopback.

It needs no root, no service manager and no fixed port, and ends with the block that started it; should the tests be
killed, the kernel ends it with them.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PACKAGES = "radosgw ceph-mon ceph-osd ceph-common"
PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "ceph-authtool", "monmaptool", "setpriv")

_CONFIGURATION = """
[global]
fsid = {fsid}
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
crash_dir = {folder}
keyring = {folder}/keyring
mon_host = [v2:127.0.0.1:{port_v2},v1:127.0.0.1:{port_v1}]
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_allow_insecure_global_id_reclaim = false
mon_allow_pool_size_one = true
mon_data_avail_warn = 1
mon_data_avail_crit = 1
mon_max_pg_per_osd = 2000
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
rgw_rados_pool_pg_num_min = 1
[mon]
mon_data = {folder}/mon
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
[osd]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 8589934592
osd_class_load_list = *
osd_op_num_shards = 2
[client]
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{port_s3} tcp_nodelay=1
rgw_thread_pool_size = 64
rgw_override_bucket_index_max_shards = 1
rgw_dynamic_resharding = false
"""


class Gateway:
    """Where the server listens, the key of its one user, and what may happen to a server."""

    def __init__(self, port: int, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.port = port
        self.access_key, self.secret_key = secrets.token_hex(8), secrets.token_hex(16)
        self._start = start
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """As AWS_ENDPOINT_URL_S3 has it."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server, and return when it answers; what was stored before is there.

        The kernel ends it with the thread that calls this.
        """
        self._process = self._start()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(self.endpoint, timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise TimeoutError("the S3 server did not answer within a minute")

    def freeze(self) -> None:
        """Stop it as SIGSTOP does: connections are taken and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash does."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)

    def restore(self) -> None:
        """Have it well again."""
        self.thaw()
        if self._process is None or self._process.poll() is not None:
            self.start()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)


def missing_programs() -> list[str]:
    """The programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextmanager
def rados_gateway(folder: Path) -> Iterator[Gateway]:
    """A gateway whose files lie in an empty folder, from its first answer until the end of the block."""
    port_v2, port_v1, port_s3 = _free_ports(3)
    fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
    configuration = folder / "ceph.conf"
    configuration.write_text(
        _CONFIGURATION.format(folder=folder, fsid=fsid, port_v2=port_v2, port_v1=port_v1, port_s3=port_s3)
    )
    environment = {**os.environ, "CEPH_CONF": str(configuration), "CEPH_ARGS": ""}

    def run(*command: str) -> None:
        with (folder / "commands.log").open("ab") as log:
            subprocess.run(command, env=environment, stdout=log, stderr=log, check=True, timeout=60)

    with ExitStack() as daemons:

        def serve(*command: str) -> subprocess.Popen[bytes]:
            return daemons.enter_context(_daemon(command, environment, folder / f"{command[0]}.out"))

        gateway = Gateway(port_s3, lambda: serve("radosgw", "--foreground", "--name", "client.rgw.a"))

        keyring, monitor_map = str(folder / "keyring"), str(folder / "monmap")
        run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "--name", "mon.", "--cap", "mon", "allow *")
        for name in ("client.admin", "osd.0", "client.rgw.a"):
            rights = [word for daemon in ("mon", "osd", "mgr") for word in ("--cap", daemon, "allow *")]
            run("ceph-authtool", keyring, "--gen-key", "--name", name, *rights)
        addresses = f"[v2:127.0.0.1:{port_v2},v1:127.0.0.1:{port_v1}]"
        run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", addresses, monitor_map)
        run("ceph-mon", "--mkfs", "--id", "a", "--monmap", monitor_map, "--keyring", keyring)
        serve("ceph-mon", "--foreground", "--id", "a")
        run("ceph", "osd", "new", osd)
        (folder / "osd").mkdir()
        run("ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", osd)
        serve("ceph-osd", "--foreground", "--id", "0")
        user = ("--uid=tests", "--display-name=tests")
        run(
            *("radosgw-admin", "user", "create", *user),
            *(f"--access-key={gateway.access_key}", f"--secret-key={gateway.secret_key}"),
        )
        gateway.start()
        yield gateway


@contextmanager
def _daemon(command: tuple[str, ...], environment: dict[str, str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("ab") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command], env=environment, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        process.send_signal(signal.SIGCONT)  # or a frozen one would not end
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _free_ports(count: int) -> list[int]:
    """Ports of loopback that were free a moment ago."""
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
