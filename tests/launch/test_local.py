"""Jobs of real processes on this machine."""

import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from data_pipeline import Fault, WrongCall
from launch.cores import Cores, usable_cores
from launch.local import run_local
from launch.node import free_port
from tests.waiting import wait_until

Program = tuple[str, ...]

pytestmark = pytest.mark.skipif(usable_cores().count < 2, reason="two processes need two cores")


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Program]:
    """How to call a small program, which gets tmp_path as its argument."""

    def make(program: str) -> Program:
        script = tmp_path / "program.py"
        script.write_text("import os, signal, sys, time\nrank = int(os.environ['RANK'])\n" + textwrap.dedent(program))
        return (sys.executable, str(script), str(tmp_path))

    return make


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_rank_learns_its_place(written: Callable[[str], Program], tmp_path: Path) -> None:
    names = "LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS"
    screen = io.StringIO()
    program = f"print(*(os.environ[name] for name in {names.split()!r}), os.environ['MASTER_PORT'])"
    assert run_local(written(program), 2, tmp_path / "logs", terminal=screen) == 0
    threads = max(1, usable_cores().count // 2)
    first, second = ((tmp_path / "logs" / f"rank-{rank}.log").read_text() for rank in (0, 1))
    assert first.startswith(f"0 2 2 127.0.0.1 {threads} ")
    assert second.startswith(f"1 2 2 127.0.0.1 {threads} ")
    assert first.split()[-1] == second.split()[-1]


def test_a_thread_count_of_the_user_is_kept(
    written: Callable[[str], Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    screen = io.StringIO()
    run_local(written("print(os.environ['OMP_NUM_THREADS'])"), 2, tmp_path, terminal=screen)
    assert sorted(screen.getvalue().split("\n")) == ["", "7", "[rank 1] 7"]


def test_ranks_share_the_cores_and_no_core_is_shared(written: Callable[[str], Program], tmp_path: Path) -> None:
    cores = usable_cores()
    if not cores.numbers:
        pytest.skip("a quota names no cores")
    run_local(written("print(*sorted(os.sched_getaffinity(0)))"), 2, tmp_path, terminal=io.StringIO())
    bound = [[int(core) for core in (tmp_path / f"rank-{rank}.log").read_text().split()] for rank in (0, 1)]
    assert bound[0] + bound[1] == list(cores.numbers)
    assert bound[0]
    assert bound[1]


def test_seven_cores_go_to_three_processes_without_one_left_over() -> None:
    cores = Cores(7, (0, 1, 2, 3, 8, 9, 10))
    assert [cores.share(rank, 3) for rank in range(3)] == [(0, 1), (2, 3), (8, 9, 10)]


def test_rank_0_speaks_plainly_and_the_others_behind_their_names(
    written: Callable[[str], Program], tmp_path: Path
) -> None:
    screen = io.StringIO()
    run_local(written("print(f'hello from {rank}'); print('Düsseldorf', end='')"), 2, tmp_path, terminal=screen)
    assert sorted(screen.getvalue().splitlines()) == [
        "Düsseldorf",
        "[rank 1] Düsseldorf",
        "[rank 1] hello from 1",
        "hello from 0",
    ]
    assert (tmp_path / "rank-1.log").read_text() == "hello from 1\nDüsseldorf"


def test_progress_drawn_over_itself_becomes_lines(written: Callable[[str], Program], tmp_path: Path) -> None:
    screen = io.StringIO()
    run_local(written("print('step 1\\rstep 2\\r\\nstep 3') if rank else None"), 2, tmp_path, terminal=screen)
    assert screen.getvalue() == "[rank 1] step 1\n[rank 1] step 2\n[rank 1] step 3\n"


def test_logs_of_an_earlier_job_are_kept_and_not_shown_again(written: Callable[[str], Program], tmp_path: Path) -> None:
    run_local(written("print('first')"), 2, tmp_path, terminal=io.StringIO())
    screen = io.StringIO()
    run_local(written("print('second')"), 2, tmp_path, terminal=screen)
    assert "first" not in screen.getvalue()
    assert (tmp_path / "rank-0.log").read_text() == "first\nsecond\n"


def test_a_killed_rank_is_named_and_the_others_are_ended(written: Callable[[str], Program], tmp_path: Path) -> None:
    program = """
        print("step 1 of 9", flush=True)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    """
    screen = io.StringIO()
    began = time.monotonic()
    with pytest.raises(Fault, match=r"rank 1 was killed by SIGKILL; the other processes were ended; .*rank-1\.log"):
        run_local(written(program), 2, tmp_path, terminal=screen)
    assert time.monotonic() - began < 60
    assert screen.getvalue().endswith("The last lines of rank 1:\n    step 1 of 9\n")


def test_a_rank_that_ignores_sigterm_is_killed_with_its_whole_group(
    written: Callable[[str], Program], tmp_path: Path
) -> None:
    program = """
        import subprocess
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if rank == 0:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            open(f"{sys.argv[1]}/pids", "w").write(f"{os.getpid()} {child.pid} .")
            time.sleep(600)
        while not (os.path.exists(f"{sys.argv[1]}/pids") and "." in open(f"{sys.argv[1]}/pids").read()):
            time.sleep(0.01)
        sys.exit(3)
    """
    began = time.monotonic()
    with pytest.raises(Fault, match="rank 1 exited with status 3"):
        run_local(written(program), 2, tmp_path, terminal=io.StringIO(), grace=0.5)
    assert time.monotonic() - began < 60
    for pid in (tmp_path / "pids").read_text().split()[:2]:
        wait_until(lambda pid=pid: not is_running(int(pid)))  # type: ignore[misc]


def test_a_wrong_call_is_told_once_and_gives_status_2(written: Callable[[str], Program], tmp_path: Path) -> None:
    program = """
        print("error: there is no key data.urn; the nearest is data.uri", file=sys.stderr)
        sys.exit(2)
    """
    screen = io.StringIO()
    assert run_local(written(program), 2, tmp_path, terminal=screen) == 2
    assert screen.getvalue() == "error: there is no key data.urn; the nearest is data.uri\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_that_stop_when_asked_have_the_time_to_and_are_no_failure(
    written: Callable[..., Program], tmp_path: Path, number: int
) -> None:
    program = """
        def stop(number, frame):
            time.sleep(1 + rank)
            print("stopped by", signal.Signals(number).name)
            sys.exit(75)
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGUSR1, stop)
        print("ready", flush=True)
        time.sleep(600)
    """
    launcher, logs = start_launcher(written(program), tmp_path, "grace=0.1")
    launcher.send_signal(number)
    output, _ = launcher.communicate(timeout=60)
    assert output.splitlines()[-1] == "status 75"
    for log in logs:
        assert log.read_text().splitlines() == ["ready", f"stopped by {signal.Signals(number).name}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_that_are_asked_before_they_listen_have_stopped(
    written: Callable[..., Program], tmp_path: Path, number: int
) -> None:
    launcher, _ = start_launcher(written("print('ready', flush=True); time.sleep(600)"), tmp_path)
    launcher.send_signal(number)
    output, _ = launcher.communicate(timeout=60)
    assert output.splitlines()[-1] == "status 75"


def test_a_rank_that_is_killed_by_such_a_signal_when_it_had_done_something_has_failed(
    written: Callable[..., Program], tmp_path: Path
) -> None:
    program = """
        from pathlib import Path
        from trainer.pulse import PULSE, pulse_of, read_pulse
        with pulse_of(os.environ) as pulse:
            pulse.moved(step=1)
            while not ((seen := read_pulse(Path(os.environ[PULSE]))) and seen.moves):
                time.sleep(0.1)
            print("ready", flush=True)
            time.sleep(600)
    """
    launcher, _ = start_launcher(written(program), tmp_path)
    launcher.send_signal(signal.SIGTERM)
    output, _ = launcher.communicate(timeout=60)
    assert "stopped by SIGTERM; the logs are in " in output


def test_ranks_that_were_asked_without_the_launcher_are_waited_for(
    written: Callable[..., Program], tmp_path: Path
) -> None:
    assert run_local(written("time.sleep(rank); sys.exit(75)"), 2, tmp_path, terminal=io.StringIO(), grace=0.1) == 75


def test_a_rank_that_fails_while_others_stop_is_the_failure(written: Callable[..., Program], tmp_path: Path) -> None:
    with pytest.raises(Fault, match="rank 1 exited with status 3"):
        run_local(written("time.sleep(rank); sys.exit(3 if rank else 75)"), 2, tmp_path, terminal=io.StringIO())


def test_a_rank_that_does_not_stop_in_time_is_ended(written: Callable[..., Program], tmp_path: Path) -> None:
    program = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(600)
    """
    launcher, _ = start_launcher(written(program), tmp_path, "grace=0.1, stopping=0.5")
    launcher.send_signal(signal.SIGTERM)
    output, _ = launcher.communicate(timeout=60)
    assert "stopped by SIGTERM; the logs are in " in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_is_handed_on(written: Callable[[str], Program], tmp_path: Path, number: int) -> None:
    program = """
        def leave(number, frame):
            print("told", signal.Signals(number).name)
            sys.exit(0)
        signal.signal(signal.SIGTERM, leave)
        signal.signal(signal.SIGINT, leave)
        print("ready", flush=True)
        time.sleep(600)
    """
    launcher, logs = start_launcher(written(program), tmp_path)
    launcher.send_signal(number)
    output, _ = launcher.communicate(timeout=60)
    name = signal.Signals(number).name
    assert f"stopped by {name}; the logs are in " in output
    for log in logs:
        assert log.read_text().splitlines() == ["ready", f"told {name}"]


def test_nobody_outlives_a_killed_launcher(written: Callable[[str], Program], tmp_path: Path) -> None:
    launcher, logs = start_launcher(written("print(os.getpid(), 'ready', flush=True); time.sleep(600)"), tmp_path)
    pids = [int(log.read_text().split()[0]) for log in logs]
    assert all(is_running(pid) for pid in pids)
    launcher.kill()
    launcher.communicate(timeout=60)
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_more_processes_than_cores_are_a_wrong_call(tmp_path: Path) -> None:
    count = usable_cores().count
    with pytest.raises(WrongCall, match=f"{count + 1} processes are more than the {count} cores"):
        run_local((sys.executable, "-c", ""), count + 1, tmp_path)


def test_the_port_is_free_to_listen_on() -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
        server.listen()


def test_a_rank_that_freezes_is_named_and_killed(written: Callable[[str], Program], tmp_path: Path) -> None:
    program = """
        import json
        def tell(beat):
            with open(os.environ["SONOTRAIN_PULSE"], "w") as pulse:
                json.dump({"beat": beat, "step": 8, "steps": 9, "moves": 8, "kept": 0}, pulse)
        for beat in range(1000):
            tell(beat)
            if rank == 1 and beat == 5:
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.1)
    """
    with pytest.raises(Fault, match="rank 1 gave no sign of life for 2 s after step 8"):
        run_local(written(program), 2, tmp_path, terminal=io.StringIO(), frozen=2, grace=1)


def test_a_job_that_fails_is_started_again_with_pauses(written: Callable[[str], Program], tmp_path: Path) -> None:
    program = """
        import json
        from pathlib import Path
        with open(os.environ["SONOTRAIN_PULSE"], "w") as pulse:
            json.dump({"beat": 1, "step": 8, "steps": 9, "moves": 8, "kept": 1}, pulse)
        before = Path(sys.argv[1], f"before-{rank}")
        time.sleep(1.5)
        if not before.exists():
            before.touch()
            print("about to fail")
            sys.exit(rank)
    """
    screen = io.StringIO()
    assert run_local(written(program), 2, tmp_path, terminal=screen, restarts=1, first_pause=0.1) == 0
    assert "The last lines of rank 1:\n    about to fail\n" in screen.getvalue()


def test_the_time_limit_asks_ranks_to_stop(written: Callable[[str], Program], tmp_path: Path) -> None:
    program = """
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
        time.sleep(60)
    """
    began = time.monotonic()
    limit = timedelta(seconds=2)
    assert run_local(written(program), 2, tmp_path, terminal=io.StringIO(), time_limit=limit) == 75
    assert time.monotonic() - began < 20


def start_launcher(program: Program, folder: Path, settings: str = "") -> tuple[subprocess.Popen[str], list[Path]]:
    """A launcher in a process of its own, after both of its ranks have said that they are ready."""
    script = f"""
        import signal
        from pathlib import Path
        from data_pipeline import Fault
        from launch.local import run_local
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored
        try:
            print("status", run_local({program!r}, 2, Path({str(folder)!r}), {settings}))
        except Fault as fault:
            print(fault)
    """
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    logs = [folder / f"rank-{rank}.log" for rank in (0, 1)]
    wait_until(lambda: all(log.exists() and re.search("ready", log.read_text()) for log in logs))
    return launcher, logs
