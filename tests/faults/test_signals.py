import json
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.faults.checkpoints import checkpoints, same_to_the_bit, tensors
from tests.faults.conftest import Start

STOPPED = 75

pytestmark = [pytest.mark.slow]


def progress(output: Path) -> dict[str, float]:
    newest = output / "checkpoints" / checkpoints(output)[-1]
    told: dict[str, float] = json.loads((newest / "state.json").read_text())["progress"]
    return told


def test_two_ranks_stop_after_the_same_step_and_go_on_to_the_same_weights(start: Start, tmp_path: Path):
    changes = ("training.epochs=3", "training.generator_zero=2", "network.norm=batch", "checkpoints.every_steps=0")
    assert list(start("undisturbed", *changes, world=2).wait()) == [0, 0]

    # One rank gets a signal in its third pass; both have heard of it a step later.
    stopped = start("stopped", *changes, world=2, rank=1, signals={3: [signal.SIGTERM]})
    assert list(stopped.wait()) == [STOPPED, STOPPED], stopped.errors()
    assert checkpoints(tmp_path / "stopped") == ["step-00000004"]
    assert "SIGTERM: stopped after step 4; started again, it goes on" in stopped.outputs()[0]

    # The first pass is the one that fills the optimizers; the seventh is step 10, the last of an epoch.
    stopped = start("stopped", *changes, world=2, rank=0, signals={6: [signal.SIGUSR1]})
    assert list(stopped.wait()) == [STOPPED, STOPPED], stopped.errors()
    assert progress(tmp_path / "stopped")["step"] == 10
    assert "SIGUSR1: stopped after step 10" in stopped.outputs()[0]

    assert list(start("stopped", *changes, world=2).wait()) == [0, 0]
    ours, theirs = tensors(tmp_path / "stopped", 15), tensors(tmp_path / "undisturbed", 15)
    # Each checkpoint averages the ranks' statistics, which nothing learns from; the undisturbed run had fewer of them.
    for name in [name for name in ours if "running_" in name]:
        np.testing.assert_allclose(ours.pop(name), theirs.pop(name), rtol=1e-5, atol=1e-7)
    assert same_to_the_bit(ours, theirs)


def test_one_process_stops_at_once_and_a_second_sigterm_ends_it(start: Start, tmp_path: Path):
    changes = ("training.epochs=3",)
    assert list(start("stopped", *changes, rank=0, signals={3: [signal.SIGUSR1, signal.SIGTERM]}).wait()) == [STOPPED]
    assert checkpoints(tmp_path / "stopped") == ["step-00000003"]
    ended = start("stopped", *changes, rank=0, signals={3: [signal.SIGTERM, signal.SIGTERM]})
    assert list(ended.wait()) == [-signal.SIGTERM]
    assert checkpoints(tmp_path / "stopped") == ["step-00000003"]


def test_a_run_moved_from_two_processes_at_zero_2_to_one_and_back_follows_it(start: Start, tmp_path: Path):
    changes = ("training.epochs=4", "checkpoints.every_steps=0", "optimizer.generator_rate=1e-4")
    shared = (*changes, "training.generator_zero=2", "training.discriminator_zero=2")
    assert list(start("at home", *shared, world=2).wait()) == [0, 0]

    assert list(start("moved", *shared, world=2, rank=0, signals={5: [signal.SIGTERM]}).wait()) == [STOPPED] * 2
    first = tensors(tmp_path / "moved", 6)
    assert list(start("moved", *changes, rank=0, signals={8: [signal.SIGTERM]}).wait()) == [STOPPED]
    assert progress(tmp_path / "moved")["step"] == 13
    assert list(start("moved", *shared, world=2).wait()) == [0, 0]

    ours, theirs = tensors(tmp_path / "moved", 20), tensors(tmp_path / "at home", 20)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=0, atol=1e-4, err_msg=name)
    assert max(float(np.abs(ours[name] - values).max()) for name, values in first.items()) > 1e-3


def test_a_run_goes_on_from_its_mirror_on_an_empty_disk(start: Start, tmp_path: Path):
    changes = ("training.epochs=2", "checkpoints.every_steps=2", f"checkpoints.mirror={tmp_path / 'mirror'}")
    assert list(start("here", *changes, world=2, rank=0, signals={6: [signal.SIGTERM]}).wait()) == [STOPPED] * 2
    assert "step-00000007" in checkpoints(tmp_path / "here")

    moved = start("elsewhere", *changes, world=2)
    assert list(moved.wait()) == [0, 0]
    assert f"going on from step-00000007, fetched from {tmp_path / 'mirror'}" in moved.errors()[0]
    assert list(start("here", *changes[:2], "checkpoints.mirror=''", world=2).wait()) == [0, 0]
    assert same_to_the_bit(tensors(tmp_path / "elsewhere", 10), tensors(tmp_path / "here", 10))

    another = start("another", *changes, "seed=1", world=2)
    assert another.wait()[0] == 2
    assert f"{tmp_path / 'mirror'} holds a run with seed=0, and this one has 1" in another.errors()[0]


def test_a_rank_whose_loss_is_not_a_number_makes_all_skip_the_step(start: Start, tmp_path: Path):
    job = start("run", "training.epochs=2", world=2, rank=1, nan=[2, 3, 7])
    assert list(job.wait()) == [0, 0], job.errors()
    assert progress(tmp_path / "run")["skipped"] == 3
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000010" / "state.json").read_text())
    assert state["adam_steps"] == {"generator": 7, "discriminators": 7}
    assert all(np.isfinite(values).all() for values in tensors(tmp_path / "run", 10).values())
    assert "not finite and were skipped on all ranks; 3 so far" in job.errors()[0]


def test_a_loss_that_stays_no_number_ends_the_run_with_a_sound_checkpoint_to_go_on_from(start: Start, tmp_path: Path):
    changes = ("training.epochs=8", "training.skips=10", "checkpoints.every_steps=5")
    job = start("run", *changes, world=2, rank=0, nan=list(range(12, 41)))
    assert list(job.wait()) == [1, 1], job.errors()
    assert "training.skips" in job.errors()[0]
    newest = int(progress(tmp_path / "run")["step"])
    assert all(np.isfinite(values).all() for values in tensors(tmp_path / "run", newest).values())
