"""The hosts that other tests of this folder rest on."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.system.hosts import HEAD, Hosts

QUICK = ("-o", "ConnectTimeout=1", "-o", "BatchMode=yes")


def reaches(hosts: Hosts, name: str) -> bool:
    return hosts.run(HEAD, "ssh", *QUICK, name, "true").returncode == 0


def test_a_host_has_a_name_and_an_address_and_is_reached_by_ssh_from_any_other(hosts: Hosts) -> None:
    for here, there in ((HEAD, "node1"), ("node1", "node2"), ("node2", HEAD)):
        said = hosts.run(here, "ssh", *QUICK, there, "hostname; hostname -I")
        assert said.stdout.split() == [there, hosts.address(there)], said.stderr


def test_pdsh_asks_all_hosts_at_once(hosts: Hosts) -> None:
    said = hosts.run(HEAD, "pdsh", "-R", "ssh", "-w", ",".join(hosts.names), "echo number %n")
    assert sorted(said.stdout.splitlines()) == [f"node{n + 1}: number {n}" for n in range(3)], said.stderr


@pytest.mark.parametrize("fault", [Hosts.cut, Hosts.drop])
def test_a_host_that_is_cut_off_is_not_reached_and_keeps_working(hosts: Hosts, fault) -> None:
    with hosts.start("node2", "sleep", "60") as working:
        fault(hosts, "node2")
        assert not reaches(hosts, "node2")
        assert reaches(hosts, "node1")
        hosts.heal("node2")
        assert reaches(hosts, "node2")
        assert working.poll() is None
        working.kill()


def test_a_host_can_be_slow_to_send(hosts: Hosts) -> None:
    hosts.throttle("node1", 2)
    begun = time.monotonic()
    sent = hosts.run("node1", "ssh", *QUICK, "node2", "wc -c", text="x" * 500_000)
    assert sent.stdout.strip() == "500000", sent.stderr
    assert time.monotonic() - begun > 1.5, "half a megabyte at 2 megabits a second"


def test_power_off_ends_everything_on_a_host_and_it_starts_anew(hosts: Hosts) -> None:
    with hosts.start("node1", "setsid", "sh", "-c", "sleep 61 & wait") as working:
        while len(hosts.processes("node1")) < 2:
            time.sleep(0.01)
        assert sorted(hosts.processes("node1").values()) == ["sh -c sleep 61 & wait", "sleep 61"]
        hosts.power_off("node1")
        assert working.wait(10) == -9
    assert not reaches(hosts, "node1")
    hosts.boot("node1")
    assert hosts.processes("node1") == {}
    assert reaches(hosts, "node1")


def test_hosts_end_with_tests_that_are_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from tests.system.hosts import hosts_on_a_switch
        with hosts_on_a_switch(Path({str(tmp_path)!r}), 1) as hosts:
            hosts.start("node1", "sleep", "62.5")
            print("up", flush=True)
            input()
        """
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as tests:  # type: ignore[call-overload]
        assert tests.stdout.readline() == "up\n"
        assert left(tmp_path)
        tests.kill()
    deadline = time.monotonic() + 5
    while running := left(tmp_path):
        assert time.monotonic() < deadline, running
        time.sleep(0.05)


def left(folder: Path) -> list[str]:
    """Processes of the hosts of a folder: those that work in it, and the sleep above."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if b"sleep\x0062.5" in command or (process / "cwd").resolve() == folder:
                found.append(command.decode())
        except OSError:
            continue
    return found
