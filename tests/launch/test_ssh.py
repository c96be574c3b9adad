"""The DeepSpeed launcher's call, and what a machine tells and ends, as far as one machine shows it."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline import WrongCall
from launch.deepspeed_launcher import deepspeed_command, deepspeed_environment
from launch.job import Job
from launch.probe import JOB, PROGRAM
from launch.remote import over_ssh
from launch.ssh import SshOptions, fitted, plan

AWKWARD = ("train", "quick", "data.size=[64, 64]", "output=  a   b's %n  of $HOME ", 'name="x"', "")


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hostfile"
    path.write_text("one slots=2\ntwo slots=4\nthree slots=4\n")
    return path


def ask(request: dict) -> dict:
    done = subprocess.run(PROGRAM, input=json.dumps(request), capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def test_a_nodes_shell_gets_the_verb_word_for_word(tmp_path: Path) -> None:
    job = Job(AWKWARD, nodes=1, processes=2, workdir=tmp_path / "work dir")
    command = deepspeed_command(job, tmp_path / "hosts", {"one": (1,)}, ("10.0.0.1", "29500"), "name", "/tmp/c-%n")
    words = command[command.index("--no_local_rank") + 1 :]
    # As the launcher does, which would quote a word with a space, and then pdsh.
    assert not [word for word in words if not word or " " in word]
    line = " ".join(words).replace("%%", "\0").replace("%n", "7").replace("\0", "%")
    said = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True).stdout
    got = said.removesuffix("\n").split("\n")
    assert got[:4] == ["env", "-C", str(tmp_path / "work dir"), f"{JOB}=name"]
    assert got[got.index("--control") + 1 :] == ["/tmp/c-7", "--", *AWKWARD]
    assert got[got.index("--procs") + 1] == "2"


def test_the_launcher_is_not_told_what_is_not_for_command_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_PASSWORD", "NCCL_SOCKET_IFNAME", "AWS_SECRET_ACCESS_KEY", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-v")
    environment = deepspeed_environment("name")
    assert "secret" not in environment.values()
    assert environment["SSH_AUTH_SOCK"] == "/agent"
    assert environment["PDSH_SSH_ARGS_APPEND"].startswith("-v -o BatchMode=yes")
    assert environment["DS_ENV_FILE"] == ".name"


def test_a_plan_shows_the_call_and_asks_nobody(hostfile: Path) -> None:
    job = Job(("train", "quick"), nodes=2, environment={"AWS_SECRET_ACCESS_KEY": "secret"})
    preview = plan(job, SshOptions(hostfile, exclude="one", ssh_port=2222), ["--log_level", "warning"])
    (command,) = preview.commands
    shown = shlex.join(command)
    assert "--include two:0@three:0 --launcher pdsh" in shown
    assert "--master_addr ADDRESS --master_port PORT --ssh_port 2222 --log_level warning" in shown
    assert shown.endswith("-- train quick")
    assert preview.environment == ["AWS_SECRET_ACCESS_KEY=(hidden)"]


def test_all_hosts_and_the_slots_that_each_has_are_taken_where_none_are_named(hostfile: Path) -> None:
    job = Job(("train",))
    whole = fitted(job, SshOptions(hostfile), nodes=True, processes=True)
    assert (whole.nodes, whole.processes) == (3, 2)
    larger = fitted(job, SshOptions(hostfile, include="two@three:1,2,3"), nodes=True, processes=True)
    assert (larger.nodes, larger.processes) == (2, 3)
    assert fitted(job, SshOptions(hostfile), nodes=False, processes=False) == job


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--num_nodes=2"], "--num_nodes of the DeepSpeed launcher is --nodes here"),
        (["-H", "x"], "-H of the DeepSpeed launcher is --hostfile here"),
        (["--launcher", "slurm"], "--launcher of the DeepSpeed launcher cannot be given"),
    ],
)
def test_options_that_would_start_something_else_are_refused(
    hostfile: Path, options: list[str], complaint: str
) -> None:
    with pytest.raises(WrongCall, match=complaint):
        plan(Job(("train",)), SshOptions(hostfile), options)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WrongCall, match="ssh is not installed here; install the Debian package openssh-client"):
        over_ssh("one", ("true",))


def test_a_machine_tells_what_it_has(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        told = ask({"do": "look", "job": "nobody", "workdir": str(tmp_path), "port": port})
    assert told["taken"]
    assert told["cores"] <= len(os.sched_getaffinity(0))
    assert told["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["workdir"]
    told = ask({"do": "look", "job": "nobody", "workdir": str(tmp_path / "none")})
    assert (told["taken"], told["workdir"]) == (False, False)
    assert told["port"] > 1023


def test_a_control_file_is_its_owners_alone_and_never_another_file(tmp_path: Path) -> None:
    path = tmp_path / "control"
    ask({"do": "write", "path": str(path), "text": "secret"})
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("secret", 0o600)
    with pytest.raises(subprocess.CalledProcessError):
        ask({"do": "write", "path": str(path), "text": "other"})
    assert path.read_text() == "secret"


def test_what_is_left_of_a_job_is_ended_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "control"
    path.write_text("never read")
    stubborn = [sys.executable, "-c", "import os, signal, time; signal.signal(15, 1); os.fork(); time.sleep(60)"]
    left = subprocess.Popen(stubborn, env={**os.environ, JOB: "this"}, start_new_session=True)
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, JOB: "this-other"})
    try:
        while len(members(left.pid)) < 2:
            time.sleep(0.05)
        assert ask({"do": "clean", "job": "this", "path": str(path), "patience": 0.2}) == {"ended": 2}
        assert left.wait(5) == -9
        assert members(left.pid) == []
        assert other.poll() is None
        assert not path.exists()
        assert ask({"do": "clean", "job": "this", "path": str(path), "patience": 0}) == {"ended": 0}
    finally:
        left.kill()
        other.kill()
        other.wait(5)


def members(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    said = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in said.splitlines() if not line.split()[1].startswith("Z")]
