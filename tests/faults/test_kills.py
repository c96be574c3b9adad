import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.checkpoints import checkpoints, same_to_the_bit, tensors
from tests.faults.conftest import Start

KILLS = 50
EPOCHS = 20
STEPS = 5 * EPOCHS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def newest(output: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none."""
    return int(checkpoints(output)[-1][5:]) if checkpoints(output) else 0


def test_a_run_killed_fifty_times_ends_with_the_weights_of_one_that_never_was(start: Start, tmp_path: Path):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"the kills follow from the seed {seed}")
    chance = random.Random(seed)
    changes = (f"training.epochs={EPOCHS}", "objective.stages=1", "checkpoints.every_steps=1")
    assert list(start("undisturbed", *changes).wait()) == [0]

    output = tmp_path / "killed"
    for _ in range(KILLS):
        began = time.monotonic()
        before = newest(output)
        job = start("killed", *changes)
        # At any moment: while it starts and loads, between two checkpoints, or while it writes one.
        further = chance.choice((0, 0, 0, 0, 1, 1, 2))
        latest = began + (chance.uniform(0, 1.5) if further == 0 else 60)
        while time.monotonic() < latest and newest(output) < before + max(further, 1):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05) if further else 0)
        job.send(signal.SIGKILL)
        assert list(job.wait()) == [-signal.SIGKILL], job.errors()
        print(f"{time.monotonic() - began:.1f} s: from {before} to {newest(output)}")
    assert not (output / "result.json").exists()

    assert list(start("killed", *changes).wait()) == [0]
    assert same_to_the_bit(tensors(output, STEPS), tensors(tmp_path / "undisturbed", STEPS))


def test_a_truncated_newest_checkpoint_is_named_and_the_one_before_it_used(start: Start, tmp_path: Path):
    changes = ("training.epochs=2", "checkpoints.every_steps=2")
    assert list(start("undisturbed", *changes).wait()) == [0]
    output = tmp_path / "truncated"
    job = start("truncated", *changes, rank=0, signals={9: [signal.SIGKILL]})
    assert list(job.wait()) == [-signal.SIGKILL]
    damaged = output / "checkpoints" / checkpoints(output)[-1]
    file = damaged / "generator.moments.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    again = start("truncated", *changes)
    assert list(again.wait()) == [0]
    assert f"checkpoint {damaged} is damaged ({file.name} is not what was written)" in again.errors()[0]
    assert same_to_the_bit(tensors(output, 10), tensors(tmp_path / "undisturbed", 10))
