import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.checkpoints import checkpoints, same_to_the_bit, tensors
from tests.faults.conftest import Start
from tests.ranks import wait_until

KILLS = 50
EPOCHS = 18
STEPS = 5 * EPOCHS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_run_killed_fifty_times_ends_with_the_weights_of_one_that_never_was(start: Start, tmp_path: Path):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"the kills follow from the seed {seed}")
    chance = random.Random(seed)
    quick = ("data.size=[64, 64]", "objective.stages=1", "discriminators.strides=[1, 1, 1, 1, 1]")
    changes = (*quick, f"training.epochs={EPOCHS}", "checkpoints.every_steps=2")
    assert list(start("undisturbed", *changes).wait()) == [0]

    output = tmp_path / "killed"
    for _ in range(KILLS):
        began = time.monotonic()
        before = len(checkpoints(output)) and int(checkpoints(output)[-1][5:])
        job = start("killed", *changes)
        # At any moment: while it starts and loads, between two checkpoints, or while it writes one.
        further = chance.choice((0, 0, 0, 0, 1, 1, 2))
        if further:
            wait_until(lambda: (kept := checkpoints(output)) and int(kept[-1][5:]) >= before + further)  # noqa: B023
            time.sleep(chance.uniform(0, 0.1))
        else:
            time.sleep(chance.uniform(0, 1.5))
        job.send(signal.SIGKILL)
        assert list(job.wait()) == [-signal.SIGKILL], job.errors()
        print(f"{time.monotonic() - began:.1f} s: from {before} to {checkpoints(output)[-1:]}")
    assert not (output / "result.json").exists()

    assert list(start("killed", *changes).wait()) == [0]
    assert same_to_the_bit(tensors(output, STEPS), tensors(tmp_path / "undisturbed", STEPS))


def test_a_truncated_newest_checkpoint_is_named_and_the_one_before_it_used(start: Start, tmp_path: Path):
    changes = ("training.epochs=2", "checkpoints.every_steps=2")
    assert list(start("undisturbed", *changes).wait()) == [0]
    output = tmp_path / "truncated"
    job = start("truncated", *changes, rank=0, signals={9: [signal.SIGKILL]})
    assert list(job.wait()) == [-signal.SIGKILL]
    newest = output / "checkpoints" / checkpoints(output)[-1]
    file = newest / "generator.moments.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    again = start("truncated", *changes)
    assert list(again.wait()) == [0]
    assert f"checkpoint {newest} is damaged ({file.name} is not what was written)" in again.errors()[0]
    assert same_to_the_bit(tensors(output, 10), tensors(tmp_path / "undisturbed", 10))
