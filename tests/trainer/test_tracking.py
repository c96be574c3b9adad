import logging
import math
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import wait_until
from trainer import tracking
from trainer.tracking import Run, import_mlflow, start_run, without_credentials

CALL_SECONDS = 0.5
"""Longest that a training may be held by a call, on a busy machine."""


def client() -> Any:
    return import_mlflow().MlflowClient()


def history(run: Run, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client().get_metric_history(run.id, key))


def longest_call(run: Run, steps: range) -> float:
    """Seconds of the slowest of many calls, each with what a step tells."""
    slowest = 0.0
    for step in steps:
        started = time.perf_counter()
        run.metrics({"loss": float(step), **{f"stage{stage}": 0.5 for stage in range(19)}}, step)
        slowest = max(slowest, time.perf_counter() - started)
        time.sleep(0.005)
    return slowest


def wait_for(said: str, log: pytest.LogCaptureFixture, seconds: float = 40) -> None:
    until = time.monotonic() + seconds
    while said not in log.text:
        assert time.monotonic() < until, f"nothing said {said!r} in:\n{log.text}"
        time.sleep(0.05)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Where the tracker answers


def test_a_run_has_its_parameters_numbers_tags_and_files(tracker: Path, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "curve.svg").write_text("<svg/>")
    (tmp_path / "result.json").write_text("{}")
    run = start_run("fold 1", "whole", {"training.batch": 4}, {"dataset": "bus-bra"})
    for step in range(3):
        run.metrics({"loss": 1 / (step + 1)}, step)
    run.tags({"host": "here"})
    run.artifact(tmp_path / "result.json")
    run.artifact(tmp_path / "figures", "report")
    run.finish()
    written = client().get_run(run.id)
    assert written.info.status == "FINISHED"
    assert written.info.run_name == "fold 1"
    assert client().get_experiment(written.info.experiment_id).name == "whole"
    assert written.data.params == {"training.batch": "4"}
    assert written.data.tags.items() >= {"dataset": "bus-bra", "host": "here"}.items()
    assert history(run, "loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert [entry.path for entry in client().list_artifacts(run.id)] == ["report", "result.json"]
    assert [entry.path for entry in client().list_artifacts(run.id, "report")] == ["report/curve.svg"]


def test_without_a_setting_runs_go_to_mlflow_db_in_the_working_directory(tracker: Path) -> None:
    start_run("plain", "default", {}, {}).finish()
    with sqlite3.connect(tracker / "mlflow.db") as database:
        assert ("plain",) in database.execute("select name from runs").fetchall()


def test_processes_that_come_to_a_new_database_at_once_all_write_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new.db")
    program = (
        "import sys, time; from pathlib import Path; from trainer.tracking import import_mlflow, start_run\n"
        "import_mlflow().MlflowClient; Path(sys.argv[1] + '-ready').touch()\n"
        "while not Path('go').exists(): time.sleep(0.001)\n"
        "start_run(sys.argv[1], 'together', {}, {}).finish()"
    )
    names = ["one", "two"]
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", program, name],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    wait_until(lambda: all((tmp_path / f"{name}-ready").exists() for name in names))
    (tmp_path / "go").touch()
    for process in begun:
        assert "cannot be written to" not in process.communicate(timeout=100)[1]
    with sqlite3.connect(tmp_path / "new.db") as database:
        assert sorted(database.execute("select name from runs").fetchall()) == [("one",), ("two",)]


def test_other_ranks_write_nothing(tracker: Path, tmp_path: Path) -> None:
    run = start_run("silent", "ranks", {"seed": 1}, {}, rank=1)
    run.metrics({"loss": 1.0}, 0)
    run.tags({"a": "b"})
    run.artifact(tmp_path / "absent")
    run.finish()
    assert run.id is None
    assert client().get_experiment_by_name("ranks") is None


def test_without_an_experiment_nothing_is_written(tracker: Path) -> None:
    before = len(client().search_experiments())
    run = start_run("untracked", "", {"seed": 1}, {})
    run.metrics({"loss": 1.0}, 0)
    run.finish()
    assert run.id is None
    assert len(client().search_experiments()) == before


def test_a_child_names_its_parent(tracker: Path) -> None:
    parent = start_run("folds", "nested", {}, {})
    child = start_run("fold 1", "nested", {}, {}, parent=parent.id)
    child.finish()
    parent.finish()
    assert client().get_run(child.id).data.tags["mlflow.parentRunId"] == parent.id


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_ends_as_it_is_told(tracker: Path, status: tracking.Status) -> None:
    run = start_run("ends", "status", {}, {})
    run.finish(status)
    run.finish()
    assert client().get_run(run.id).info.status == status


def test_a_resumed_run_goes_on_and_tells_what_changed(tracker: Path) -> None:
    first = start_run("long", "resumed", {"epochs": 2, "seed": 0}, {})
    first.metrics({"loss": 1.0}, 0)
    first.finish("FAILED")
    second = start_run("long", "resumed", {"epochs": 3, "seed": 0, "batch": 4}, {"attempt": "2"}, resume=first.id)
    assert client().get_run(first.id).info.status == "RUNNING"
    second.metrics({"loss": 0.5}, 1)
    second.finish()
    run = client().get_run(first.id)
    assert second.id == first.id
    assert history(second, "loss") == [(0, 1.0), (1, 0.5)]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"epochs": "2", "seed": "0", "batch": "4"}
    assert run.data.tags["attempt"] == "2"
    assert run.data.tags["changed_on_resume"] == "epochs: 2 -> 3"


@pytest.mark.parametrize("gone", ["deleted", "unknown"])
def test_a_run_that_is_gone_is_replaced_with_a_warning(
    tracker: Path, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    old = "0" * 32
    if gone == "deleted":
        before = start_run("old", "gone", {}, {})
        before.finish()
        client().delete_run(old := before.id or "")
    run = start_run("new", "gone", {"seed": 1}, {}, resume=old)
    run.finish()
    assert run.id not in (None, old)
    assert client().get_run(run.id).data.params == {"seed": "1"}
    assert f"run {old} is gone from the tracker" in caplog.text


def test_values_that_are_no_numbers_do_not_keep_others_out(tracker: Path) -> None:
    run = start_run("diverged", "finite", {}, {})
    run.metrics({"loss": math.nan, "norm": math.inf, "low": -math.inf, "dsc": 0.25}, 3)
    run.finish()
    values = client().get_run(run.id).data.metrics
    assert math.isnan(values["loss"])
    assert values["norm"] > 1e308
    assert values["low"] < -1e308
    assert values["dsc"] == 0.25


def test_more_than_mlflow_takes_at_once_is_written_in_parts(tracker: Path, caplog: pytest.LogCaptureFixture) -> None:
    params = {f"key{number}": number for number in range(250)}
    run = start_run("large", "limits", {**params, "long": "x" * 7000}, {"long": "y" * 9000})
    run.metrics({f"value{number}": float(number) for number in range(2500)}, 0)
    run.tags({f"tag{number}": "z" * 9000 for number in range(150)})
    run.finish()
    data = client().get_run(run.id).data
    assert len(data.params) == 251
    assert data.params["long"] == "x" * 5999 + "…"
    assert data.metrics == {f"value{number}": float(number) for number in range(2500)}
    assert len([tag for tag in data.tags if tag.startswith("tag")]) == 150
    assert caplog.text == ""


def test_a_file_that_is_gone_is_left_out_and_named(
    tracker: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "there.txt").write_text("there")
    run = start_run("files", "absent", {}, {})
    run.artifact(tmp_path / "absent.txt")
    run.artifact(tmp_path / "there.txt")
    run.finish()
    assert [entry.path for entry in client().list_artifacts(run.id)] == ["there.txt"]
    assert f"{tmp_path / 'absent.txt'} does not exist any more" in caplog.text


# Where it does not


def test_a_locked_database_holds_nothing_and_loses_nothing(tracker: Path) -> None:
    run = start_run("locked", "outage", {}, {})
    lock = sqlite3.connect(tracker / "mlflow.db", isolation_level=None)
    lock.execute("begin exclusive")
    slowest = longest_call(run, range(100))
    lock.execute("rollback")
    lock.close()
    run.finish()
    assert slowest < CALL_SECONDS
    assert history(run, "loss") == [(step, float(step)) for step in range(100)]


def test_a_disk_without_room_holds_nothing_and_loses_nothing(tracker: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = start_run("full", "outage", {}, {})
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond 4 KiB, which SQLite's journal needs at once.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, room[1]))
    try:
        slowest = longest_call(run, range(100))
        wait_for("cannot be written to", caplog)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
    run.finish()
    assert slowest < CALL_SECONDS
    assert history(run, "loss") == [(step, float(step)) for step in range(100)]
    assert caplog.text.count("WARNING") == 1


def test_a_tracker_that_never_answers_is_told_once_without_its_password(
    tracker: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:hunter2@127.0.0.1:{unused_port}")
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 2.0)
    monkeypatch.setattr(tracking, "LARGEST_BACKLOG", 50)
    started = time.monotonic()
    run = start_run("nobody", "outage", {"seed": 1}, {})
    assert time.monotonic() - started < tracking.START_SECONDS
    assert longest_call(run, range(100)) < CALL_SECONDS
    run.tags({"a": "b"})
    started = time.monotonic()
    run.finish()
    assert time.monotonic() - started < 10
    assert run.id is None
    told, ended = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"http://***@127.0.0.1:{unused_port} cannot be written to: [Errno 111] Connection refused." in told
    # The parameters, 100 steps and the tags: in memory, or dropped because there were 50.
    assert "ended with 102 entries not written" in ended
    assert "hunter2" not in caplog.text


def test_a_tracker_that_takes_connections_and_is_silent_holds_only_the_start(
    tracker: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "START_SECONDS", 1.0)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        run = start_run("silence", "outage", {}, {})
        assert time.monotonic() - started < 10
        assert longest_call(run, range(20)) < CALL_SECONDS
        started = time.monotonic()
        run.finish()
        assert time.monotonic() - started < 10
    assert "no answer from the tracker after 1 s" in caplog.text


def test_a_process_ends_although_its_tracker_never_answers(unused_port: int, tmp_path: Path) -> None:
    code = (
        "from trainer.tracking import start_run; start_run('n', 'e', {}, {}).metrics({'loss': 1.0}, 0); print('done')"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{unused_port}"}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, timeout=60, capture_output=True, text=True
    )
    assert ended.returncode == 0
    assert ended.stdout == "done\n"
    assert ended.stderr.count("\n") == 1, ended.stderr


@pytest.fixture
def server(tmp_path: Path, unused_port: int) -> Iterator[Callable[[], Any]]:
    """Starts MLflow's server over SQLite, as often as it is called, and ends what is left of it."""
    running: list[subprocess.Popen[bytes]] = []
    where = f"http://127.0.0.1:{unused_port}"

    @contextmanager
    def start() -> Iterator[str]:
        with (tmp_path / "server.log").open("ab") as log:
            # fmt: off
            process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(unused_port),
                 "--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
                 "--artifacts-destination", str(tmp_path / "artifacts")],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log, stderr=log, start_new_session=True,
            )
            # fmt: on
        running.append(process)
        until = time.monotonic() + 90
        while not _healthy(where):
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < until, (tmp_path / "server.log").read_text()
            time.sleep(0.2)
        yield where
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _healthy(where: str) -> bool:
    try:
        with urlopen(f"{where}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_a_server_killed_in_the_middle_and_started_again_has_every_value(
    tracker: Path,
    server: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "result.json").write_text("{}")
    with server() as where:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", where.replace("://", "://someone:hunter2@"))
        run = start_run("killed", "outage", {"seed": 1}, {})
        assert run.id is not None
        assert longest_call(run, range(100)) < CALL_SECONDS
        time.sleep(2)
    assert longest_call(run, range(100, 200)) < CALL_SECONDS
    run.metrics({"loss": math.nan, "norm": math.inf}, 200)
    run.artifact(tmp_path / "result.json")
    wait_for("cannot be written to", caplog)
    with server():
        run.finish()
        assert history(run, "loss")[:200] == [(step, float(step)) for step in range(200)]
        assert math.isnan(history(run, "loss")[200][1])
        assert [entry.path for entry in client().list_artifacts(run.id)] == ["result.json"]
        assert client().get_run(run.id).info.status == "FINISHED"
    assert caplog.text.count("WARNING") == 1
    printed = capfd.readouterr()
    assert "hunter2" not in printed.out + printed.err + caplog.text


# What may be told


@given(
    st.text("abcXYZ019.:@!$&*()+,;=-_~%", min_size=8), st.sampled_from(["http", "https", "postgresql+psycopg2", "s3"])
)
def test_a_password_never_shows(password: str, scheme: str) -> None:
    shown = without_credentials(f"API request to {scheme}://user:{password}@host:5000/path failed")
    assert shown == f"API request to {scheme}://***@host:5000/path failed"


def test_secrets_in_a_query_never_show() -> None:
    shown = without_credentials("postgresql://host/mlflow?user=me&password=hunter2&sslmode=require")
    assert shown == "postgresql://host/mlflow?user=me&password=***&sslmode=require"
