import json
from pathlib import Path

import pytest
import torch

from data_pipeline import Fault
from trainer.curves import EVERY_STEPS, Curves
from trainer.processes import World
from trainer.step import StepLosses
from trainer.tracking import start_run

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def curves(tmp_path: Path) -> Curves:
    """The curves of a run that nothing is tracked of, in which three steps in a row may be skipped."""
    silent = start_run(name="run", experiment="", params={}, tags={}, rank=1)
    return Curves(tmp_path / "metrics.jsonl", silent, ALONE, done_steps=0, skipped=0, most_skips=3)


def points(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def taken(curves: Curves, dices: list[float], first: int = 1) -> None:
    """Steps with these Dice losses; NaN is one that was refused."""
    for step, dice in enumerate(dices, start=first):
        broken = torch.tensor(float(dice != dice))
        curves.add([StepLosses(torch.tensor([dice, dice / 2]))], broken)
        curves.step(step)


def test_a_point_is_the_mean_of_its_steps(curves: Curves, tmp_path: Path):
    taken(curves, [0.1 * step for step in range(1, EVERY_STEPS + 1)])
    (point,) = points(tmp_path)
    assert point["dice_loss/stage_1"] == pytest.approx(0.55)
    assert point["dice_loss/stage_2"] == pytest.approx(0.275)


def test_the_losses_of_micro_batches_are_averaged(curves: Curves, tmp_path: Path):
    for step in range(1, EVERY_STEPS + 1):
        curves.add([StepLosses(torch.tensor([dice])) for dice in (0.2, 0.4)], torch.zeros(()))
        curves.step(step)
    assert points(tmp_path)[0]["dice_loss/stage_1"] == pytest.approx(0.3)


def test_skipped_steps_are_counted_and_left_out_of_the_mean(
    curves: Curves, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    taken(curves, [float("nan"), float("nan"), *[0.5] * (EVERY_STEPS - 2)])
    counted, point = points(tmp_path)
    assert counted["skipped_steps"] == 2
    assert point["dice_loss/stage_1"] == pytest.approx(0.5)
    assert "2 of the last 10 steps" in caplog.text
    taken(curves, [0.5] * (EVERY_STEPS - 1) + [float("nan")], first=EVERY_STEPS + 1)
    assert curves.skipped == 3


def test_too_many_skipped_in_a_row_end_the_run_and_say_what_to_change(curves: Curves):
    taken(curves, [0.5] * (EVERY_STEPS - 1))
    with pytest.raises(Fault, match=r"3 steps in a row .* optimizer\.clip=1"):
        taken(curves, [0.5, float("nan"), float("nan"), float("nan"), *[0.5] * 7], first=EVERY_STEPS)


def test_as_many_apart_do_not(curves: Curves):
    taken(curves, [float("nan"), 0.5] * EVERY_STEPS)
    assert curves.skipped == EVERY_STEPS


def test_a_point_of_skipped_steps_alone_has_no_losses(curves: Curves, tmp_path: Path):
    lenient = Curves(tmp_path / "lenient.jsonl", curves._run, ALONE, 0, 0, most_skips=100)
    taken(lenient, [float("nan")] * EVERY_STEPS)
    assert lenient.skipped == EVERY_STEPS
    assert lenient.latest == {}


def test_a_discriminator_that_has_won_is_written_down(curves: Curves, tmp_path: Path):
    won = StepLosses(torch.ones(1), -torch.ones(1), torch.ones(1), torch.ones(2, 1))
    for step in range(1, 6 * EVERY_STEPS + 1):
        curves.add([won], torch.zeros(()))
        curves.step(step)
    reports = [point for point in points(tmp_path) if "discriminator_saturated/stage_1" in point]
    assert [point["step"] for point in reports] == [5 * EVERY_STEPS]
    assert points(tmp_path)[0]["discriminator_accuracy/stage_1"] == 1
