"""Hosts of a cluster for tests, on one machine: namespaces, each with a hostname, an address and an sshd of its own.

The network that joins them lies in a namespace too, so nothing of it is seen outside, and any number of test runs may
do this at once. `head` is the host that people sit at; node1, node2, ... are those that work. They share the disk, as
over a perfect NFS, and have /dev/shm and /run to themselves. Everything ends with the block that started it; should the
tests be killed, the kernel ends it with them.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = "openssh-server openssh-client pdsh iproute2 iptables"
PROGRAMS = ("/usr/sbin/sshd", "ssh", "ssh-keygen", "pdsh", "ip", "tc", "iptables", "setpriv", "unshare")

HEAD = "head"

_NETWORK = "10.77.0"
_CLONE_FS = 0x200

# The first process of a host. All others end with it, and it reaps those whose parents are gone.
_FIRST = """
set -e
hostname "$1"
mount --bind hosts /etc/hosts
mount --bind nsswitch.conf /etc/nsswitch.conf
if [ -e /etc/resolv.conf ]; then mount --bind resolv.conf /etc/resolv.conf; fi
mount --bind ssh_config /etc/ssh/ssh_config
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
ip link set lo up
/usr/sbin/sshd -D -f sshd_config -E "$1.sshd.log" &
echo ready
exec >/dev/null
wait
"""

_SWITCH = "set -e; ip link add switch type bridge; ip link set switch up; echo ready; exec sleep infinity >/dev/null"

_SSHD = """
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
PrintMotd no
"""

_SSH = """
Host *
  IdentityFile {folder}/user_key
  UserKnownHostsFile {folder}/known_hosts
"""

_DYING = ("setpriv", "--pdeathsig", "KILL", "--")


def why_impossible() -> str | None:
    """What is missing for hosts on this machine, and what to do about it."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"{', '.join(missing)} not installed; needs the Debian packages {PACKAGES}"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "true"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    return f"needs root, and the right to make namespaces: {tried.stderr.strip()}" if tried.returncode else None


@dataclass
class _Host:
    number: int
    first: subprocess.Popen[str] | None = None
    """The parent of the host's first process; None while the power is off."""
    pid: int = 0
    """The host's first process, as it is numbered outside."""
    visitors: list[subprocess.Popen[str]] = field(default_factory=list)
    """Processes on it whose parent is outside."""

    @property
    def outlet(self) -> str:
        """Where its cable ends at the switch."""
        return f"outlet{self.number}"


class Hosts:
    """Hosts that are up, what can be run on them, and what may happen to them."""

    def __init__(self, folder: Path, switch: int, count: int) -> None:
        self._switch = switch
        self.folder = folder
        """Files of these hosts, seen by all of them; tests may put more there."""
        self.names = [f"node{number}" for number in range(1, count + 1)]
        """The hosts that work: all but the head."""
        self._hosts = {name: _Host(number) for number, name in enumerate([HEAD, *self.names], start=1)}

    def address(self, name: str) -> str:
        """The IPv4 address of a host."""
        return f"{_NETWORK}.{self._hosts[name].number}"

    def hostfile(self, slots: int = 1, names: Sequence[str] | None = None) -> Path:
        """A new hostfile as DeepSpeed has it, of all working hosts or those given."""
        names = self.names if names is None else names
        path = self.folder / f"hostfile-{slots}-{'-'.join(names)}"
        path.write_text("".join(f"{name} slots={slots}\n" for name in names))
        return path

    def start(self, name: str, *program: str, **options: Any) -> subprocess.Popen[str]:
        """A program on a host, without ssh, as by a person who is logged in there; options are those of Popen.

        Its process id is that outside, so it can be signalled from here.
        """
        host = self._hosts[name]
        assert host.first is not None, f"{name} is off"
        started: list[subprocess.Popen[str]] = []
        failed: list[Exception] = []

        def enter_and_start() -> None:
            try:
                _enter(host.pid)
                started.append(subprocess.Popen(program, **{"text": True, "cwd": Path.cwd(), **options}))
            except Exception as error:
                failed.append(error)

        # A thread has namespaces of its own, and its children begin in them.
        thread = threading.Thread(target=enter_and_start)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        host.visitors = [process for process in host.visitors if process.returncode is None] + started
        return started[0]

    def run(
        self, name: str, *program: str, text: str | None = None, timeout: float = 60, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """The same, given `text` to read and awaited: its exit status, output and errors."""
        stdin = subprocess.DEVNULL if text is None else subprocess.PIPE
        pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.start(name, *program, **{**pipes, **options}) as process:
            try:
                out, err = process.communicate(text, timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(program, process.returncode, out, err)

    def processes(self, name: str) -> dict[int, str]:
        """What runs on a host beside its first process and sshd: process ids as they are outside, command lines."""
        first = self._hosts[name].pid
        namespace = Path(f"/proc/{first}/ns/pid").readlink()
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "ns/pid").readlink() == namespace and int(process.name) != first:
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if command and not command.startswith(("sshd:", "/usr/sbin/sshd ")):
                        found[int(process.name)] = command
        return found

    def is_up(self, name: str) -> bool:
        """Whether its power is on."""
        return self._hosts[name].first is not None

    def cut(self, name: str) -> None:
        """Pull the host's network cable."""
        self._at_switch("ip", "link", "set", self._hosts[name].outlet, "down")

    def drop(self, name: str) -> None:
        """Lose every packet to and from a host, which sees its link up."""
        self._iptables(name, "-I", "INPUT", "-i", "eth0", "-j", "DROP")
        self._iptables(name, "-I", "OUTPUT", "-o", "eth0", "-j", "DROP")

    def throttle(self, name: str, megabits: float) -> None:
        """Have a host send no more than so many megabits in a second."""
        rate = ("rate", f"{megabits}mbit", "burst", "32kbit", "latency", "400ms")
        self._do(name, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *rate)

    def heal(self, name: str) -> None:
        """Undo `cut`, `drop` and `throttle`, and let a host without power start."""
        if not self.is_up(name):
            self.boot(name)
        self._at_switch("ip", "link", "set", self._hosts[name].outlet, "up")
        self._iptables(name, "-F")
        self.run(name, "tc", "qdisc", "del", "dev", "eth0", "root")

    def power_off(self, name: str) -> None:
        """End everything on a host at once, without a word to the others."""
        host = self._hosts[name]
        assert host.first is not None, f"{name} is off"
        self._at_switch("ip", "link", "del", host.outlet)  # first, or the kernel would close its connections politely
        os.kill(host.pid, signal.SIGKILL)
        # The first process is gone when all others have been reaped.
        for process in host.visitors:
            process.wait(10)
        host.first.wait(10)
        host.first, host.visitors = None, []

    def end(self, name: str) -> None:
        """Have a host's power off, whether it was on or not."""
        if self.is_up(name):
            self.power_off(name)

    def boot(self, name: str) -> None:
        """Start a host, and return when its sshd answers. The kernel ends it with the thread that calls this."""
        host = self._hosts[name]
        assert host.first is None, f"{name} is on"
        separate = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
        host.first = _holder([*_DYING, "unshare", *separate, "bash", "-c", _FIRST, "host", name], self.folder)
        host.pid = int(Path(f"/proc/{host.first.pid}/task/{host.first.pid}/children").read_text())
        plug = ("type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        # The same card as before, for the others remember it.
        card = ("address", f"02:00:00:00:00:{host.number:02x}")
        self._at_switch("ip", "link", "add", host.outlet, *plug[:2], *plug[2:5], *card, *plug[5:])
        self._at_switch("ip", "link", "set", host.outlet, "master", "switch", "up")
        self._do(name, "ip", "address", "add", f"{self.address(name)}/24", "dev", "eth0")
        self._do(name, "ip", "link", "set", "eth0", "up")
        deadline = time.monotonic() + 20
        while (tried := self.run(name, "ssh", name, "true")).returncode:
            assert time.monotonic() < deadline, f"sshd of {name} does not answer: {tried.stderr}"
            time.sleep(0.05)

    def _do(self, name: str, *program: str) -> None:
        done = self.run(name, *program)
        assert done.returncode == 0, f"{' '.join(program)} on {name}: {done.stderr}"

    def _iptables(self, name: str, *rule: str) -> None:
        # It keeps its lock in /run, where each host has its own.
        self._do(name, "iptables", *rule)

    def _at_switch(self, *program: str) -> None:
        subprocess.run(["nsenter", "--net", "--target", str(self._switch), *program], check=True, timeout=30)


@contextmanager
def hosts_on_a_switch(folder: Path, count: int) -> Iterator[Hosts]:
    """A head and so many more hosts, whose files lie in an empty folder, until the end of the block."""
    _write_files(folder, {HEAD: 1} | {f"node{number - 1}": number for number in range(2, count + 2)})
    with ExitStack() as ends:
        switch = _holder([*_DYING, "unshare", "--net", "sh", "-c", _SWITCH], folder)
        ends.callback(switch.wait, 10)
        ends.callback(switch.kill)
        hosts = Hosts(folder, switch.pid, count)
        for name in (HEAD, *hosts.names):
            hosts.boot(name)
            ends.callback(hosts.end, name)
        yield hosts


def _write_files(folder: Path, numbers: Mapping[str, int]) -> None:
    for key in ("user_key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True, timeout=30)
    addresses = {name: f"{_NETWORK}.{number}" for name, number in numbers.items()}
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    public = (folder / "host_key.pub").read_text()
    known = "".join(f"{name},{address} {public}" for name, address in addresses.items())
    (folder / "known_hosts").write_text(known)
    (folder / "ssh_config").write_text(_SSH.format(folder=folder))
    (folder / "sshd_config").write_text(_SSHD.format(folder=folder))
    # No name is asked for outside, where an answer would take seconds.
    (folder / "resolv.conf").write_text("")
    (folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nshadow: files\nhosts: files\n")


def _holder(command: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """A process that holds namespaces, when it has said that they are ready."""
    with (folder / "holders.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert process.stdout is not None
    with process.stdout as said:
        line = said.readline()
    assert line == "ready\n", f"{' '.join(command[:6])} ... failed: {(folder / 'holders.log').read_text()}"
    return process


def _enter(pid: int) -> None:
    """Move this thread, and what it starts, to the namespaces of a process."""
    system = ctypes.CDLL(None, use_errno=True)
    with ExitStack() as opened:
        # All are opened before the first is entered, where /proc is another.
        kinds = [opened.enter_context(Path(f"/proc/{pid}/ns/{kind}").open()) for kind in ("net", "uts", "ipc", "pid")]
        mounts = opened.enter_context(Path(f"/proc/{pid}/ns/mnt").open())
        if system.unshare(_CLONE_FS):
            raise OSError(ctypes.get_errno(), "unshare")
        for kind in (*kinds, mounts):
            if system.setns(kind.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"setns {kind.name}")
