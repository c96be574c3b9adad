import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.faults.conftest import Start
from tests.faults.sonotrain import NO_MOUNT
from tests.ranks import Job
from tests.waiting import wait_until
from trainer.checkpoint import newest

CHANGES = ("training.epochs=8", "checkpoints.every_steps=1")

pytestmark = [pytest.mark.slow]


@pytest.fixture
def on_a_small_disk(start: Start, tmp_path: Path) -> Callable[[str], tuple[Job, Path]]:
    """Start a run whose checkpoints go to a file system of 8 MB; gives it and that folder as it sees it."""

    def begin(name: str) -> tuple[Job, Path]:
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True)
        job = start(name, *CHANGES, rank=0, disk={"at": str(folder), "size": "8m"})
        seen = Path(f"/proc/{job.pids[0]}/root{folder}")
        wait_until(lambda: job.ended() or list(seen.glob("step-*")))
        if job.ended() and list(job.wait()) == [NO_MOUNT]:
            pytest.skip("this machine lets no user mount a file system")
        assert not job.ended(), job.errors()
        return job, seen

    return begin


def fill(disk: Path, until: Callable[[], bool]) -> None:
    """Write until the disk takes no more, and whatever becomes free."""
    with (disk / "filler").open("ab", buffering=0) as filler:
        while not until():
            try:
                filler.write(bytes(65536))
            except OSError:
                time.sleep(0.005)


def test_a_full_disk_costs_checkpoints_and_neither_the_run_nor_the_last_good_one(
    on_a_small_disk: Callable[[str], tuple[Job, Path]], start: Start, tmp_path: Path
):
    assert list(start("undisturbed", *CHANGES).wait()) == [0]
    job, disk = on_a_small_disk("full")
    fill(disk, lambda: job.ended() or job.errors()[0].count("stays the newest") > 2)
    assert not job.ended(), job.errors()
    last_good = newest(disk)
    assert last_good is not None
    assert load_file(last_good / "generator.safetensors")
    assert f"No space left on device (os error 28)); {last_good.name} stays the newest" in job.errors()[0]

    (disk / "filler").unlink()
    assert list(job.wait()) == [0], job.errors()
    judged = [(tmp_path / name / "validation.csv").read_text() for name in ("full", "undisturbed")]
    assert judged[0] == judged[1]


def test_a_disk_that_stays_full_ends_the_run_with_the_checkpoint_that_it_goes_on_from(
    on_a_small_disk: Callable[[str], tuple[Job, Path]],
):
    job, disk = on_a_small_disk("full")
    kept: list[Path] = []
    fill(disk, lambda: job.ended() or bool(kept.extend(filter(None, [newest(disk)]))))
    assert list(job.wait()) == [1]
    said = f"could not take the checkpoint of step 40; make room, and the run goes on from {kept[-1].name}"
    assert said in job.errors()[0]
