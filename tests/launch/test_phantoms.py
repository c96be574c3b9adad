"""Datasets of phantoms: the same whoever draws them, never held as a whole, and how their making ends early."""

import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import open_dataset
from data_pipeline.phantom import phantom
from launch import phantoms
from launch.cores import Cores
from launch.phantoms import Phantoms, write_phantoms
from tests.waiting import wait_until

PROGRAM = (
    "import launch.phantoms as p; from launch.cores import Cores; from launch.cli import main;"
    "p.WORTH_A_PROCESS = 1; p.usable_cores = lambda: Cores(2, ()); main()"
)


def wanted(destination: Path, **changes: object) -> Phantoms:
    given = {"count": 30, "size": (40, 48), "seed": 3, "folds": 3, "codec": "png", "shard_mb": 1} | changes
    return Phantoms(str(destination), **given)  # type: ignore[arg-type]


def test_a_dataset_holds_the_phantoms_of_its_seed_by_fold_and_key(tmp_path: Path) -> None:
    write_phantoms(wanted(tmp_path))
    dataset = open_dataset(str(tmp_path))
    samples = dataset.index.samples
    assert sorted(sample.key for sample in samples) == [f"phantom-{number:05d}" for number in range(30)]
    assert [(sample.fold, sample.key) for sample in samples] == sorted((sample.fold, sample.key) for sample in samples)
    for position, sample in enumerate(samples):
        expected = phantom(int(sample.key[-5:]), (40, 48), seed=3)
        scan = dataset.scan(position)
        np.testing.assert_array_equal(scan.image, expected.image)
        np.testing.assert_array_equal(scan.mask, expected.mask)
        assert (scan.patient, scan.group, scan.label) == (expected.patient, expected.group, expected.label)


def test_processes_write_the_same_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = write_phantoms(wanted(tmp_path / "alone"))
    monkeypatch.setattr(phantoms, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(phantoms, "usable_cores", lambda: Cores(2, ()))
    assert write_phantoms(wanted(tmp_path / "together")).digest == alone.digest


def test_codec_and_size_of_shards_are_kept(tmp_path: Path) -> None:
    index = write_phantoms(wanted(tmp_path, count=24, size=(400, 400), folds=2, codec="npy"))
    assert index.codec == "npy"
    assert all(shard.bytes < 1.5e6 for shard in index.shards)
    assert len(index.shards) >= 24 * 400 * 400 / 1.5e6


def test_what_is_held_at_a_time_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        write_phantoms(wanted(tmp_path / str(count), count=count, size=(300, 300), folds=2, shard_mb=32))
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    few = peak(40)
    assert peak(120) < few + 20 * 2 * 300 * 300


# -- how it ends early -----------------------------------------------------------------------------------------------


@pytest.fixture
def drawing(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The command in the midst of its work with two processes that draw, in a group of its own."""
    call = ["data", "phantom", "phantoms", "--count", "100000", "--size", "200x200", "--shard-mb", "1"]
    command = [sys.executable, "-c", PROGRAM, *call]
    project = Path(__file__).parents[2]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait_until(lambda: any((tmp_path / "phantoms").glob("shard-*")), 120)
        yield running
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


def is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
def test_an_interruption_publishes_nothing_and_leaves_no_process(
    drawing: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.killpg(drawing.pid, signal.SIGINT)
    _, errors = drawing.communicate(timeout=60)
    assert drawing.returncode == 130
    assert "Traceback" not in errors
    assert not (tmp_path / "phantoms" / "index.json").exists()
    wait_until(lambda: is_gone(drawing.pid))


@pytest.mark.slow
def test_processes_that_draw_end_with_the_one_that_is_killed(drawing: subprocess.Popen[str]) -> None:
    drawing.kill()
    drawing.wait()
    wait_until(lambda: is_gone(drawing.pid))


@pytest.mark.slow
def test_a_process_that_is_ended_from_outside_is_a_fault(drawing: subprocess.Popen[str], tmp_path: Path) -> None:
    children = Path(f"/proc/{drawing.pid}/task/{drawing.pid}/children").read_text().split()
    drawers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(drawers[0]), signal.SIGKILL)
    _, errors = drawing.communicate(timeout=60)
    assert drawing.returncode == 1
    assert (
        errors.splitlines()[-1]
        == "error: a process that draws phantoms has ended before its work; nothing is published"
    )
    assert "Traceback" not in errors
    assert not (tmp_path / "phantoms" / "index.json").exists()
