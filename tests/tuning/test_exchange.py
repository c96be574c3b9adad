"""Weights handed on from trial to trial: all of a checkpoint or nothing, and no longer than they are of use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tuning.trainings import order_of
from trainer.checkpoint_files import begin, damage, name_of, publish
from tuning.exchange import forget, forget_aside, has_weights, put_aside, take_over
from tuning.training import Order


@pytest.fixture
def order(tmp_path: Path) -> Order:
    """A training of trial 3, of five steps to an epoch."""
    return order_of(tmp_path / "0003", "fold-1", [0.1] * 8)


def checkpoint(order: Order, step: int) -> Path:
    """What a training writes after a step."""
    target = order.folder.checkpoints / name_of(step)
    (begin(target) / "generator.zero3").mkdir()
    (target.with_name(f".{target.name}.partial") / "generator.zero3/rank-0").write_bytes(b"a share")
    publish(target, {"generator.safetensors": {"weight": torch.full((3,), float(step))}}, {"state.json": {}})
    return target


def test_what_is_put_aside_stays_when_the_training_removes_it(order: Order, tmp_path: Path) -> None:
    written = checkpoint(order, 10)
    assert put_aside(order, 2)
    shutil.rmtree(written)
    assert put_aside(order, 2)
    assert has_weights(tmp_path / "0003", 2, ["fold-1"])
    assert not has_weights(tmp_path / "0003", 2, ["fold-1", "fold-2"])
    take_over(tmp_path / "0003", 2, tmp_path / "0007/generation-02")
    taken = tmp_path / "0007/generation-02/fold-1/checkpoints/step-00000010"
    assert damage(taken) == ""
    assert load_file(taken / "generator.safetensors")["weight"].tolist() == [10.0] * 3
    aside = tmp_path / "0003/exchange/epoch-0002/fold-1/step-00000010"
    assert (taken / "generator.zero3/rank-0").samefile(aside / "generator.zero3/rank-0")


def test_a_checkpoint_is_waited_for_only_while_it_may_come(order: Order, tmp_path: Path) -> None:
    assert not put_aside(order, 1)
    checkpoint(order, 4)
    assert not put_aside(order, 1)
    checkpoint(order, 7)  # the training has gone on without it
    assert put_aside(order, 1)
    assert not has_weights(tmp_path / "0003", 1, ["fold-1"])


def test_a_damaged_checkpoint_is_not_handed_on(order: Order, tmp_path: Path) -> None:
    (checkpoint(order, 5) / "generator.safetensors").unlink()
    assert put_aside(order, 1)
    assert not has_weights(tmp_path / "0003", 1, ["fold-1"])
    assert list((tmp_path / "0003/exchange/epoch-0001/fold-1").iterdir()) == []


def test_only_the_last_two_stay_aside_and_nothing_of_a_trial_that_needs_none(order: Order, tmp_path: Path) -> None:
    for epoch in range(1, 5):
        checkpoint(order, 5 * epoch)
        assert put_aside(order, epoch)
    assert [has_weights(tmp_path / "0003", epoch, ["fold-1"]) for epoch in range(1, 5)] == [False, False, True, True]
    forget_aside(tmp_path / "0003")
    assert not has_weights(tmp_path / "0003", 4, ["fold-1"])
    assert order.folder.checkpoints.is_dir()
    forget(tmp_path / "0003")
    assert not order.folder.checkpoints.exists()


def test_what_a_killed_search_had_begun_to_take_over_is_taken_over_anew(order: Order, tmp_path: Path) -> None:
    checkpoint(order, 5)
    put_aside(order, 1)
    left = tmp_path / "0007/generation-02/fold-1/checkpoints/step-00000009"
    left.mkdir(parents=True)
    take_over(tmp_path / "0003", 1, tmp_path / "0007/generation-02")
    assert [path.name for path in left.parent.iterdir()] == ["step-00000005"]
