"""A supervisor and its nodes: real processes, which call it over loopback as they would over a network."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from data_pipeline import Fault, WrongCall
from launch import cluster
from launch.cluster import NotReady, run_cluster
from launch.control import Control
from launch.job import Host, Job, Meeting
from launch.node import free_port

NODE = """
import sys
from pathlib import Path
from data_pipeline import Fault
from launch.member import run_member
program, logs, control = sys.argv[1:]
try:
    sys.exit(run_member("deepspeed", 1, (sys.executable, program, logs), Path(logs), Path(control)))
except Fault as fault:
    sys.exit(f"error: {fault}")
"""

BOTH = """
import os, subprocess, sys
nodes = int(os.environ["WORLD_SIZE"])
own = [subprocess.Popen(sys.argv[1:-1] + [f"{sys.argv[-1]}-{node}"], env={**os.environ, "RANK": str(node)})
       for node in range(nodes)]
sys.exit(max(each.wait() for each in own))
"""

RANK = """
import json, os, signal, sys, time
from pathlib import Path
rank, logs = int(os.environ["RANK"]), Path(sys.argv[1])
attempt = sum(1 for _ in logs.glob(f"attempt-{rank}-*"))
(logs / f"attempt-{rank}-{attempt}").write_text(str(os.getpid()))
def pulse(step, kept=0, moves=None):
    told = {"beat": time.monotonic_ns(), "step": step, "steps": 9, "moves": moves or step, "kept": kept}
    partial = Path(os.environ["SONOTRAIN_PULSE"] + ".mine")
    partial.write_text(json.dumps(told))
    partial.replace(os.environ["SONOTRAIN_PULSE"])
"""


class Here:
    """A cluster of nodes that are processes of this machine."""

    def __init__(self, folder: Path, program: Path) -> None:
        self.folder, self.program = folder, program
        self.usable = ["one", "two"]
        self.started = 0
        self.processes: list[subprocess.Popen[bytes]] = []

    def ready(self, sizes: range) -> list[Host]:
        usable = self.usable[: sizes[-1]]
        if len(usable) not in sizes:
            raise NotReady(f"{len(usable)} hosts are there and {sizes[0]} are needed")
        return [Host(name, "127.0.0.1", 1) for name in usable]

    def meeting(self, hosts: Sequence[Host]) -> Meeting:
        return Meeting("127.0.0.1", free_port())

    def start(
        self, hosts: Sequence[Host], meeting: Meeting, control: Control, processes: int, verb: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        self.started += 1
        for node in range(len(hosts)):
            (self.folder / f"control-{node}").write_text(control.to_json())
        place = {"WORLD_SIZE": str(len(hosts)), "MASTER_ADDR": meeting.address, "MASTER_PORT": str(meeting.port)}
        node = [sys.executable, "-c", NODE, str(self.program), str(self.folder), str(self.folder / "control")]
        with (self.folder / "starter").open("ab") as sink:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", BOTH, *node],
                    env=os.environ | place,
                    stdout=sink,
                    stderr=sink,
                    start_new_session=True,
                )
            )
        return self.processes[-1]

    def clean(self, hosts: Sequence[Host]) -> None:
        pass


@pytest.fixture
def here(tmp_path: Path) -> Callable[[str], Here]:
    """A cluster whose ranks, one on each of two nodes, are a program that begins as RANK does."""

    def make(program: str) -> Here:
        script = tmp_path / "program.py"
        script.write_text(RANK + textwrap.dedent(program))
        return Here(tmp_path, script)

    return make


def run(here: Here, restarts: int = 0, elastic: range | None = None) -> tuple[int, str]:
    """The status of a job, and what was on the terminal."""
    screen = io.StringIO()
    job = Job(("train",), nodes=2, environment={"WORD": "s3cret"}, restarts=restarts, elastic=elastic)
    return run_cluster(job, here, here.folder / "starter", screen, first_pause=0.1), screen.getvalue()


def test_every_rank_of_every_node_learns_its_place_and_is_seen(here: Callable[[str], Here], tmp_path: Path) -> None:
    program = (
        "print(*(os.environ[each] for each in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'WORD', 'GLOO_SOCKET_IFNAME')))"
    )
    status, screen = run(here(program))
    assert status == 0
    assert sorted(screen.splitlines()) == ["0 2 0 s3cret lo", "[rank 1] 1 2 0 s3cret lo"]
    assert not list(tmp_path.glob("control-*")), "a control file is read once"
    assert "s3cret" not in (tmp_path / "starter").read_text()


def test_a_rank_that_dies_is_named_with_its_host_and_step_and_the_others_are_ended(
    here: Callable[[str], Here], tmp_path: Path
) -> None:
    cluster_here = here("""
        pulse(17)
        print("about to train")
        time.sleep(2.5)
        os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)
    """)
    began = time.monotonic()
    with pytest.raises(
        Fault, match=r"rank 1 on two was killed by SIGKILL after step 17; its log is .*rank-1\.log there"
    ):
        run(cluster_here)
    assert time.monotonic() - began < 25
    for each in tmp_path.glob("attempt-*"):
        assert not Path(f"/proc/{each.read_text()}").exists()


def test_a_job_is_started_again_until_it_is_done(here: Callable[[str], Here]) -> None:
    cluster_here = here("""
        pulse(3 + attempt, kept=1)
        time.sleep(1.5)
        sys.exit(attempt == 0 and rank == 1)
    """)
    assert run(cluster_here, restarts=2)[0] == 0
    assert cluster_here.started == 2


def test_a_wrong_call_of_the_ranks_is_the_jobs(here: Callable[[str], Here]) -> None:
    assert run(here("sys.exit(2)"), restarts=5)[0] == 2


def test_a_node_that_is_gone_is_named_and_the_job_goes_on_when_it_is_back_or_without_it(
    here: Callable[[str], Here], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_ASKING", (0.2, 0.2))
    cluster_here = here("""
        pulse(5, kept=1)
        if attempt == 0:
            time.sleep(2.5)
            os.kill(os.getppid(), signal.SIGKILL) if rank else time.sleep(60)
        print("world", os.environ["WORLD_SIZE"])
    """)
    begun = cluster_here.start

    def start(*arguments: object) -> subprocess.Popen[bytes]:
        if cluster_here.started == 0:
            cluster_here.usable.pop()
            threading.Timer(8, lambda: cluster_here.usable.append("two")).start()
        return begun(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cluster_here, "start", start)
    status, screen = run(cluster_here, restarts=1)
    assert (status, cluster_here.started) == (0, 2)
    assert "world 2" in screen

    for each in tmp_path.glob("attempt-*"):
        each.unlink()
    cluster_here.usable, cluster_here.started = ["one", "two"], 0
    monkeypatch.setattr(
        cluster_here, "start", lambda *given: (cluster_here.usable.__delitem__(slice(1, None)), begun(*given))[1]
    )
    status, screen = run(cluster_here, restarts=1, elastic=range(1, 3))
    assert (status, cluster_here.started) == (0, 2)
    assert "world 1" in screen


def test_a_job_asked_to_stop_stops_on_every_node(here: Callable[[str], Here], tmp_path: Path) -> None:
    cluster_here = here("""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        pulse(5)
        print("ready", flush=True)
        time.sleep(60)
    """)

    def ask() -> None:
        while not all(
            (tmp_path / f"rank-{rank}.log").exists() and "ready" in (tmp_path / f"rank-{rank}.log").read_text()
            for rank in (0, 1)
        ):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    assert run(cluster_here)[0] == 75


def test_a_job_asked_to_stop_before_its_nodes_have_called_does_not_go_on(
    here: Callable[[str], Here], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_here = here("time.sleep(300)")
    begun = cluster_here.start

    def start(*arguments: object) -> subprocess.Popen[bytes]:
        os.kill(os.getpid(), signal.SIGTERM)
        return begun(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cluster_here, "start", start)
    assert run(cluster_here, restarts=5) == (75, "")
    assert cluster_here.started == 1


def test_hosts_that_are_not_there_are_a_failure_before_anything_starts(here: Callable[[str], Here]) -> None:
    cluster_here = here("")
    cluster_here.usable.pop()
    with pytest.raises(NotReady, match="1 hosts are there"):
        run(cluster_here, restarts=5)
    assert cluster_here.started == 0


def test_a_starter_that_fails_is_told_of(here: Callable[[str], Here], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.BOTH", "import sys; sys.exit(7)")
    with pytest.raises(Fault, match="the nodes' starter ended with status 7, without a word from one, two"):
        run(here(""))


def test_whoever_lacks_the_key_is_not_listened_to(here: Callable[[str], Here]) -> None:
    from launch.control import Line, Switchboard

    with Switchboard("127.0.0.1") as board:
        control = board.control({})
        forged = Control(control.address, control.port, "0" * 64)
        lost = threading.Event()
        line = Line(forged, 0, {}, lambda _: None, lost.set)
        assert lost.wait(30)
        line.close()
        with socket.create_connection((control.address, control.port)) as stranger:
            stranger.sendall(b'{"node": 0, "proof": null}\n{"ended": {}}\n')
            time.sleep(0.2)
        assert board.heard.empty()
        honest = Line(control, 1, {"host": "here"}, lambda _: None, lambda: None)
        assert board.heard.get(timeout=30).message["host"] == "here"  # type: ignore[index]
        honest.close()
        assert board.heard.get(timeout=30).message is None


def test_a_control_never_shows_its_key_or_environment() -> None:
    control = Control("127.0.0.1", 1, "key-of-attempt", {"AWS_SECRET_ACCESS_KEY": "hidden-value"})
    assert "key-of-attempt" not in repr(control)
    assert "hidden-value" not in repr(control)
    assert Control.from_json(control.to_json(), "here") == control
    with pytest.raises(WrongCall, match="some file is not what a supervisor wrote"):
        Control.from_json(json.dumps({"address": "x"}), "some file")
