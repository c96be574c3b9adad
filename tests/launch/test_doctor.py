"""What `sonotrain doctor` finds on this machine, and what it says of things that are wrong with it."""

import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import Fault
from launch.doctor.clock import Offset, judge_clock, offset
from launch.doctor.conversation import PROGRAM, Conversation
from launch.doctor.devices import look_at_cores, look_at_device, look_at_memory
from launch.doctor.examine import Machine, examine
from launch.doctor.finding import Wanted, failure
from launch.doctor.limits import look_at_compiler, look_at_disks, look_at_open_files, look_at_shared_memory
from launch.doctor.links import Listener, Peer, bandwidth, latency
from launch.doctor.network import judge_links, judge_ports, next_in_ring
from launch.doctor.node import _within_its_time
from launch.doctor.services import look_at_configuration, look_at_tracker
from launch.doctor.training import trained_config
from launch.doctor.versions import compare, look_at_versions
from tests.launch.command import Command
from trainer.config import load_config

TINY = ("data.size=64x64", "network.widths=[4,8,8,8]", "discriminators.widths=[4,4,4,4]", "training.batch=2")


@pytest.fixture
def wanted() -> Wanted:
    return Wanted(load_config("quick", TINY), given=True, nodes=1, processes=1)


def changed(wanted: Wanted, *changes: str) -> Wanted:
    return replace(wanted, config=load_config("quick", [*TINY, *changes]))


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# The whole command


def test_a_machine_that_is_fit_passes_and_trains(sonotrain: Command, dataset: Path, tmp_path: Path) -> None:
    told = sonotrain("doctor", "quick", *TINY, f"data.uri={dataset}", "data.resident_gb=0.01", "--procs", 2,
                     "--json", "out.json")  # fmt: skip
    assert told.status == 0, told.output + told.errors
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["ok"]
    assert written["counts"]["failed"] == 0
    found = {finding["check"]: finding for finding in written["findings"]}
    assert {"versions", "device", "shared memory", "open files", "disk: output", "ports", "tracker"} <= set(found)
    assert found["dataset"]["values"]["scans"] == 12
    training = found["training"]["values"]
    assert training["steps"] == 2
    assert training["images_per_second"] > 0
    assert training["exchange_seconds"] > 0
    assert found["open files"]["values"]["needed"] > training["open_files"], "what a process is said to need is enough"
    assert "images/s" in told.output
    assert not list(tmp_path.glob("runs")), "nothing is left behind"
    assert not list(tmp_path.glob("mlflow*"))


def test_what_is_wrong_is_told_with_what_to_do_and_keeps_no_other_check_from_its_work(
    sonotrain: Command, tmp_path: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch, files_limit: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://name:hidden@127.0.0.1:{closed_port}")
    (tmp_path / "file").touch()
    told = sonotrain("doctor", "quick", *TINY, f"data.uri={tmp_path}/nowhere", f"output={tmp_path}/file/run",
                     "--procs", 1, "--json", "out.json")  # fmt: skip
    assert told.status == 1
    found = {finding["check"]: finding for finding in json.loads((tmp_path / "out.json").read_text())["findings"]}
    failed = {check for check, finding in found.items() if finding["state"] == "failed"}
    assert failed == {"tracker", "dataset", "disk: output", "open files"}
    assert told.error.startswith(f"error: {len(failed)} of {len(found)} checks failed: ")
    assert all(found[check]["advice"] for check in failed)
    assert f"ulimit -n {found['open files']['values']['needed']}" in found["open files"]["advice"]
    assert "refused" in found["tracker"]["found"]
    assert "nowhere" in found["dataset"]["found"]
    assert found["training"]["state"] == "ok"
    assert "hidden" not in told.output + told.errors + (tmp_path / "out.json").read_text()


@pytest.fixture
def files_limit() -> Iterator[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (280, hard))
    yield 280
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_hosts_that_cannot_be_reached_are_lines_of_the_table(wanted: Wanted, tmp_path: Path) -> None:
    gone = ("/bin/sh", "-c", "echo 'ssh: connect to host node1 port 22: No route to host' >&2; exit 255")
    began = time.monotonic()
    findings = examine(wanted, [Machine("node1", gone), Machine("node2", ("/bin/true",))], tmp_path)
    assert time.monotonic() - began < 30
    assert [(each.check, each.host, each.state) for each in findings if each.check == "reach"] == [
        ("reach", "node1", "failed"),
        ("reach", "node2", "failed"),
    ]
    told = next(finding for finding in findings if finding.host == "node1")
    assert told.found == "ssh: connect to host node1 port 22: No route to host"
    assert "without a password" in told.advice


def test_a_wrong_configuration_is_a_wrong_call(sonotrain: Command) -> None:
    told = sonotrain("doctor", "quick", "data.urn=x")
    assert told.status == 2
    assert "data.uri" in told.error


# The node's process


def test_a_node_ends_when_nobody_asks_any_more() -> None:
    with Conversation("here", PROGRAM) as talk:
        talk.say("clock")
        assert abs(talk.answer(60)["time"] - time.time()) < 30
        process = talk._process
    assert process.returncode == 0


def test_a_silent_node_is_given_up_and_not_asked_again() -> None:
    with Conversation("here", ("/bin/sleep", "60")) as talk:
        talk.say("clock")
        with pytest.raises(Fault, match="no answer after"):
            talk.answer(0.2)
        began = time.monotonic()
        talk.say("clock")
        with pytest.raises(Fault, match="no answer after"):
            talk.answer(60)
    assert time.monotonic() - began < 30


def test_a_check_that_hangs_or_breaks_is_a_failed_line() -> None:
    held = threading.Event()
    (hung,) = _within_its_time("tracker", lambda: held.wait(30) and [], 0.1)  # type: ignore[arg-type,return-value]
    held.set()
    assert (hung.check, hung.state) == ("tracker", "failed")
    assert "no answer after 0.1 s" in hung.found
    (broken,) = _within_its_time("device", lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert (broken.check, broken.state) == ("device", "failed")
    assert "ZeroDivisionError" in broken.found


# What a node sees by itself


def test_another_version_than_is_asked_for_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "webdataset-0.9.9.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: webdataset\nVersion: 0.9.9\n")
    assert look_at_versions().state == "ok"
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = look_at_versions()
    assert finding.state == "failed"
    assert finding.found == "webdataset 0.9.9 is not ==1.0.2"
    assert "pip install 'webdataset==1.0.2'" in finding.advice


def test_the_host_that_differs_from_most_is_named() -> None:
    same = {"python": "3.11.2", "numpy": "2.4.6", "sources": "abc"}
    (equal,) = compare({"head": same, "node1": same})
    assert (equal.state, equal.host) == ("ok", "all")
    others = {"head": same, "node1": {**same, "numpy": "2.4.5"}, "node2": same, "node3": {**same, "sources": "abd"}}
    unequal = compare(others)
    assert [(each.host, each.state) for each in unequal] == [("node1", "failed"), ("node3", "failed")]
    assert unequal[0].found == "numpy 2.4.5, elsewhere 2.4.6"
    assert "sources" in unequal[1].advice


def test_more_processes_than_cores_fail(wanted: Wanted) -> None:
    assert look_at_cores(wanted).state == "ok"
    cores = len(os.sched_getaffinity(0))
    finding = look_at_cores(replace(wanted, processes=cores + 1))
    assert finding.state == "failed"
    assert f"--procs {look_at_cores(wanted).values['cores']}" in finding.advice


def test_scans_that_memory_cannot_hold_are_a_warning(wanted: Wanted) -> None:
    huge = changed(wanted, "data.resident_gb=1e6")
    for look in (look_at_memory, look_at_shared_memory):
        assert look(changed(wanted, "data.resident_gb=0")).state == "ok"
        finding = look(huge)
        assert finding.state == "warning"
        assert "data.resident_gb=" in finding.advice
    processes = replace(changed(wanted, "data.resident_gb=0"), processes=10**6)
    assert look_at_memory(processes).state == "failed"


def test_a_machine_without_shared_memory_is_a_warning(wanted: Wanted, tmp_path: Path) -> None:
    finding = look_at_shared_memory(wanted, tmp_path / "none")
    assert finding.state == "warning"
    assert "none" in finding.found


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to limit it for one process")
def test_a_small_shared_memory_is_measured_as_it_is(wanted: Wanted) -> None:
    program = (
        "from launch.doctor.finding import Wanted; from launch.doctor.limits import look_at_shared_memory;"
        "from trainer.config import Config; import json;"
        "print(json.dumps(look_at_shared_memory(Wanted(Config(), True, 1, 1)).as_json()))"
    )
    command = f"mount -t tmpfs -o size=8m tmpfs /dev/shm && exec {sys.executable} -c '{program}'"
    told = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    if "unshare failed" in told.stderr:
        pytest.skip(told.stderr)
    finding = json.loads(told.stdout)
    assert finding["values"]["total"] == 8 << 20
    assert finding["state"] == "warning"


def test_a_limit_of_open_files_that_is_high_enough_passes(wanted: Wanted, files_limit: int) -> None:
    assert look_at_open_files(changed(wanted, "data.readers=1")).state == "ok"
    finding = look_at_open_files(changed(wanted, "data.readers=100"))
    assert finding.state == "failed"
    assert str(files_limit) in finding.found


def test_disks_that_are_too_small_for_cache_or_checkpoints(wanted: Wanted, tmp_path: Path) -> None:
    places = (f"output={tmp_path}/a/b", f"data.cache={tmp_path}/cache", f"checkpoints.mirror={tmp_path}/mirror")
    small = changed(wanted, *places, "data.uri=s3://bucket/x", "data.cache_gb=0.001")
    assert {each.check: each.state for each in look_at_disks(small)} == {
        "disk: output": "ok",
        "disk: mirror": "ok",
        "disk: cache": "ok",
    }
    large = changed(wanted, *places, "data.uri=s3://bucket/x", "data.cache_gb=1e6", "checkpoints.keep=1000000000")
    found = {each.check: each for each in look_at_disks(large)}
    assert (found["disk: output"].state, found["disk: cache"].state) == ("failed", "warning")
    assert "data.cache_gb=" in found["disk: cache"].advice
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_compiler_is_asked_for_only_where_it_is_needed(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert list(look_at_compiler(wanted)) == []
    (finding,) = look_at_compiler(changed(wanted, "training.compile=true"))
    assert finding.state == "failed"


def test_bf16_is_asked_of_hardware_that_has_it(wanted: Wanted) -> None:
    finding = look_at_device(changed(wanted, "training.precision=bf16"))
    assert finding.state == ("ok" if finding.values["bf16"] else "warning")


# What lies outside


def test_a_batch_that_processes_cannot_share_fails_and_is_rounded_for_the_training(wanted: Wanted) -> None:
    odd = replace(changed(wanted, "training.batch=8"), processes=3)
    (finding,) = look_at_configuration(odd)
    assert finding.state == "failed"
    assert "training.batch=8" in finding.found
    assert trained_config(odd, "phantoms").training.batch == 6


def test_a_tracking_database_that_is_none_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    assert look_at_tracker().state == "ok"
    assert not file.exists(), "it is MLflow's to make it"
    file.write_text("this is no database, and long enough to be seen as none " * 10)
    finding = look_at_tracker()
    assert finding.state == "failed"
    assert "not a database" in finding.found


def test_the_advice_of_a_fault_is_told_as_advice() -> None:
    finding = failure("store", Fault("s3://a/b: no connection to x; is the server up?"), "other")
    assert (finding.found, finding.advice) == ("s3://a/b: no connection to x", "is the server up?")
    assert failure("store", Fault("s3://a/b is missing"), "name another").advice == "name another"


# Nodes and each other


@given(ahead=st.floats(-1e4, 1e4), trips=st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=1, max_size=5))
def test_a_clock_is_known_within_half_of_the_shortest_round_trip(
    ahead: float, trips: list[tuple[float, float]]
) -> None:
    asked = [
        (at := 1000.0 * number, at + there + ahead, at + there + back) for number, (there, back) in enumerate(trips)
    ]
    found = offset(asked)
    assert abs(found.seconds - ahead) <= found.uncertainty + 1e-6
    assert found.uncertainty == pytest.approx(min(there + back for there, back in trips) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("seconds", "state"), [(0.4, "ok"), (-0.9, "ok"), (2.0, "warning"), (-299.0, "warning"), (301.0, "failed")]
)
def test_clocks_apart_warn_and_then_fail(seconds: float, state: str) -> None:
    finding = judge_clock(Offset(seconds, 0.001))
    assert finding.state == state
    assert ("ahead" if seconds > 0 else "behind") in finding.found
    assert bool(finding.advice) == (state != "ok")


def test_a_listener_answers_who_knows_the_word_and_nobody_else(closed_port: int) -> None:
    with Listener("127.0.0.1") as listener:
        assert 0 < latency(listener.peer) < 1
        assert bandwidth(listener.peer, seconds=0.1) > 1e6
        with pytest.raises(OSError, match=r"ended the connection|reset"):
            latency(replace(listener.peer, word="x" * 32))
    with pytest.raises(ConnectionRefusedError):
        latency(Peer("127.0.0.1", closed_port, "x" * 32))


def test_a_link_that_is_late_shows_as_latency() -> None:
    with Listener("127.0.0.1") as listener, late_link(listener.peer, seconds=0.02) as late:
        prompt = latency(listener.peer)
        assert 0.02 <= latency(late) < 0.2
        assert prompt < 0.02


@contextmanager
def late_link(peer: Peer, seconds: float) -> Iterator[Peer]:
    """A way to a peer on which everything that is said to it comes so late."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def relay() -> None:
            near, _ = server.accept()
            with near, socket.create_connection((peer.address, peer.port)) as far, suppress(OSError):
                while said := near.recv(1 << 16):
                    time.sleep(seconds)
                    far.sendall(said)
                    if said.endswith(b"p"):  # a question, which has an answer
                        near.sendall(far.recv(1))

        thread = threading.Thread(target=relay)
        thread.start()
        yield replace(peer, port=server.getsockname()[1])
        thread.join(10)


def test_a_port_that_is_shut_to_one_host_is_told_with_that_host() -> None:
    peers = {name: {"address": f"10.0.0.{place}", "port": 40000} for place, name in enumerate(("a", "b", "c"), 1)}
    trips = {"a": {"b": 1e-4, "c": "timed out"}, "b": {"a": 1e-4, "c": 1e-4}, "c": {"a": 1e-4, "b": 1e-4}}
    found = {each.host: each for each in judge_ports(peers, trips)}
    assert [found[name].state for name in "abc"] == ["ok", "ok", "failed"]
    assert "port 40000 of 10.0.0.3 is not reached from a (timed out)" in found["c"].found


def test_slow_links_are_a_warning_that_says_what_a_step_would_take() -> None:
    names = {name: {"address": "10.0.0.1", "port": 1} for name in "abc"}
    assert [next(iter(next_in_ring(name, names))) for name in names] == ["b", "c", "a"]
    trips = {"a": {"b": 1e-4, "c": 5e-4}, "b": {"a": 1e-4, "c": 1e-4}, "c": {"a": 5e-2, "b": 1e-4}}
    rates = {"a": {"b": 2e9}, "b": {"c": 2e9}, "c": {"a": 3e8}}
    found = {each.host: each for each in judge_links(trips, rates, 10**6)}
    assert [found[name].state for name in "abc"] == ["ok", "ok", "warning"]
    assert found["a"].found == "16.00 Gbit/s to b; 0.50 ms there and back to c, the farthest"
    assert "slower than half" in found["c"].advice
    assert "round trips" in found["c"].advice
    (slow,) = judge_links({"a": {"b": 1e-4}}, {"a": {"b": 1e6}}, 5 * 10**6)
    assert slow.state == "warning"
    assert "a step's gradients of 5 MB take 5 s" in slow.advice
