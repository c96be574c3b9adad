"""`sonotrain doctor` on several hosts: what it finds when all is well, and when it is not."""

import json
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from tests.system.hosts import HEAD, Hosts

SONOTRAIN = (sys.executable, "-P", "-m", "launch.cli")

Findings = dict[tuple[str, str], dict[str, Any]]


def doctor(hosts: Hosts, folder: Path, hostfile: Path, *arguments: str) -> tuple[int, Findings, str]:
    """The doctor's exit status, what it found by check and host, and all that it wrote."""
    call = (*SONOTRAIN, "doctor", *arguments, "--hostfile", str(hostfile), "--json", str(folder / "found.json"))
    told = hosts.run(HEAD, *call, cwd=folder, timeout=240)
    written = told.stdout + told.stderr
    assert (folder / "found.json").exists(), written
    found = json.loads((folder / "found.json").read_text())["findings"]
    return told.returncode, {(finding["check"], finding["host"]): finding for finding in found}, written


def failed(found: Findings) -> set[tuple[str, str]]:
    return {place for place, finding in found.items() if finding["state"] == "failed"}


def test_hosts_that_are_well_pass_and_train_together(hosts: Hosts, tmp_path: Path) -> None:
    hostfile = hosts.hostfile(names=["node1", "node2"])
    status, found, written = doctor(hosts, tmp_path, hostfile, "--env", "MLFLOW_TRACKING_URI=sqlite:///own.db")
    assert status == 0, written
    for name, other in (("node1", "node2"), ("node2", "node1")):
        assert found["reach", name]["state"] == "ok"
        assert hosts.address(name) in found["reach", name]["found"]
        assert found["versions", name]["values"]["torch"].startswith("2.13.0")
        assert abs(found["clock", name]["values"]["seconds_ahead"]) < 0.1
        assert f"reached from {other}" in found["ports", name]["found"]
        assert found["network", name]["values"]["to"] == other
        assert found["network", name]["values"]["bytes_per_second"] > 1e6
        assert 0 < found["network", name]["values"]["latency"][other] < 0.05
        assert "own.db" in found["tracker", name]["found"], "variables of the job are there"
    assert "reached from node1, node2" in found["ports", "this machine"]["found"]
    assert found["equal versions", "all"]["state"] == "ok"
    assert found["launcher", "this machine"]["state"] == "ok"
    training = found["training", "all"]
    assert "2 processes" in training["found"]
    assert training["values"]["images_per_second"] > 0
    assert training["values"]["exchange_seconds"] > 0
    assert {name: hosts.processes(name) for name in hosts.names} == {name: {} for name in hosts.names}


def test_what_is_wrong_with_one_host_is_told_and_the_others_are_examined_all_the_same(
    hosts: Hosts, tmp_path: Path
) -> None:
    about = Path(str(distribution("webdataset")._path)) / "METADATA"  # type: ignore[attr-defined]
    other = tmp_path / "METADATA"
    other.write_text(about.read_text().replace("Version: 1.0.2\n", "Version: 1.0.1\n"))
    hosts.throttle("node1", 200)
    assert hosts.run("node2", "mount", "--bind", str(other), str(about)).returncode == 0
    assert hosts.run("node2", "mount", "-o", "remount,size=8m", "/dev/shm").returncode == 0
    hosts.cut("node3")
    try:
        status, found, written = doctor(hosts, tmp_path, hosts.hostfile())
    finally:
        hosts.run("node2", "umount", str(about))
        hosts.run("node2", "mount", "-o", "remount,size=4g", "/dev/shm")
    assert status == 1
    assert failed(found) == {("reach", "node3"), ("versions", "node2"), ("equal versions", "node2")}, written
    assert found["equal versions", "node2"]["found"] == "webdataset 1.0.1, elsewhere 1.0.2"
    assert found["shared memory", "node1"]["state"] == "ok"
    assert found["shared memory", "node2"]["state"] == "warning"
    assert found["shared memory", "node2"]["values"]["total"] == 8 << 20
    slow = found["network", "node1"]
    assert slow["state"] == "warning"
    assert 10e6 < slow["values"]["bytes_per_second"] < 30e6, "of 25 MB a second"
    assert "a step's gradients of" in slow["advice"]
    assert found["network", "node2"]["values"]["bytes_per_second"] > 40e6, "what comes to node1 is not throttled"
    assert found["training", "all"]["state"] == "ok", "by those that are left"
    assert "node3" in written.splitlines()[-1]


def test_a_firewall_between_hosts_is_found_from_either_side(hosts: Hosts, tmp_path: Path) -> None:
    for rule in (("--dport", "22", "-j", "ACCEPT"), ("--syn", "-j", "DROP")):
        assert hosts.run("node2", "iptables", "-A", "INPUT", "-i", "eth0", "-p", "tcp", *rule).returncode == 0
    status, found, written = doctor(hosts, tmp_path, hosts.hostfile(names=["node1", "node2"]))
    assert status == 1
    assert {check for check, _ in failed(found)} == {"ports", "network"}, written
    assert found["ports", "node1"]["state"] == "ok"
    assert "not reached from node1 (timed out)" in found["ports", "node2"]["found"]
    assert "ip_local_port_range" in found["ports", "node2"]["advice"]
    assert found["training", "all"]["state"] == "warning"


def test_a_hostfile_that_is_none_is_a_wrong_call(hosts: Hosts, tmp_path: Path) -> None:
    (tmp_path / "hostfile").write_text("node1 slots=0")
    told = hosts.run(HEAD, *SONOTRAIN, "doctor", "--hostfile", str(tmp_path / "hostfile"))
    assert told.returncode == 2
    assert "hostfile, line 1" in told.stderr
