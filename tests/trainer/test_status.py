import pytest

from trainer import status
from trainer.config import Training
from trainer.status import StatusLine

LATEST = {
    "dice_loss/stage_1": 0.2,
    "dice_loss/stage_2": 0.4,
    "adversarial_loss/stage_1": -0.5,
    "adversarial_loss/stage_2": -0.7,
    "discriminator_loss/stage_1": 1.25,
    "discriminator_loss/stage_2": 1.35,
    "discriminator_accuracy/stage_1": 0.75,
    "discriminator_accuracy/stage_2": 0.5,
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, to be set."""
    now = [0.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    return now


def line(flops: float = 0.0, done: int = 0) -> StatusLine:
    return StatusLine(True, Training(epochs=2, batch=4), steps=100, done_steps=done, flops=flops)


def test_tells_everything_about_where_a_run_stands(clock: list[float], capsys: pytest.CaptureFixture[str]):
    shown = line(flops=5e11)
    clock[0] = 20.0
    shown.step(0, 10, LATEST)
    assert capsys.readouterr().out.strip() == (
        "epoch 1/2  step 10/100  loss dice 0.300 adversarial -0.600 discriminator 1.300 right 75/50 %  "
        "2.0 scans/s  data 0 %  1 TFLOP/s  0:03:00 left"
    )


def test_speed_leaves_out_what_is_done_aside_and_the_time_left_does_not(
    clock: list[float], capsys: pytest.CaptureFixture[str]
):
    shown = line()
    with shown.aside():
        clock[0] = 20.0
    clock[0] = 40.0
    shown.step(0, 10, {"dice_loss/stage_1": 0.5})
    said = capsys.readouterr().out
    assert "loss dice 0.500  2.0 scans/s" in said
    assert "0:06:00 left" in said


def test_waiting_for_data_is_its_share_of_training(clock: list[float], capsys: pytest.CaptureFixture[str]):
    def slow():
        clock[0] += 5.0
        yield 1

    shown = line()
    for _ in shown.waited_for(slow()):
        clock[0] += 15.0
    shown.step(0, 1, {})
    assert "data 25 %" in capsys.readouterr().out


def test_a_run_that_goes_on_counts_its_own_steps(clock: list[float], capsys: pytest.CaptureFixture[str]):
    shown = line(done=50)
    clock[0] = 20.0
    shown.step(1, 60, {})
    said = capsys.readouterr().out
    assert "goes on after step 50 of 100" in said
    assert "2.0 scans/s" in said
    assert "0:01:20 left" in said


def test_other_ranks_show_nothing(capsys: pytest.CaptureFixture[str]):
    silent = StatusLine(False, Training(), steps=10, done_steps=5, flops=1.0)
    silent.step(0, 6, LATEST)
    silent.close()
    assert capsys.readouterr().out == ""
