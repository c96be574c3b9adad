import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from data_pipeline import Dataset, Scan
from tests.trainer.conftest import Ranks

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def dataset(packed: Callable[..., Dataset]) -> Dataset:
    """30 scans in three folds: five iterations of four scans to an epoch."""
    return packed(30)


@pytest.fixture
def training(run_ranks: Ranks, dataset: Dataset, tmp_path: Path, tracked: None) -> Train:
    """Train on the dataset into a folder of that name; gives the folder."""

    def run(name: str, *changes: str, world: int = 1, kill_when: Callable[[Path], bool] | None = None) -> Path:
        output = tmp_path / name
        run_ranks(
            "training.py",
            f"data.uri={dataset.uri}",
            f"output={output}",
            *changes,
            world=world,
            kill_when=(lambda: kill_when(output)) if kill_when else None,
        )
        return output

    return run


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").glob("step-*"))


def in_the_second_epoch(output: Path) -> bool:
    return "step-00000008" in checkpoints(output)


ALL_THAT_LASTS = ("training.ema=0.9", "objective.noise=0.1", "objective.beta_warmup_steps=9", "optimizer.clip=1")
"""Settings with something to remember from step to step, or to draw anew."""


@pytest.mark.parametrize(("world", "zero", "more"), [(1, 0, ALL_THAT_LASTS), (2, 0, ()), (2, 2, ALL_THAT_LASTS)])
def test_a_run_killed_in_the_middle_of_an_epoch_ends_with_the_same_weights_to_the_bit(
    training: Train, world: int, zero: int, more: tuple[str, ...]
):
    stages = (f"training.generator_zero={zero}", f"training.discriminator_zero={zero}", *more)
    undisturbed = training("undisturbed", *stages, world=world)

    disturbed = training("disturbed", *stages, world=world, kill_when=in_the_second_epoch)
    assert not (disturbed / "result.json").exists()
    training("disturbed", *stages, world=world)

    last = checkpoints(undisturbed)[-1]
    assert last == checkpoints(disturbed)[-1] == "step-00000010"
    sides = ["generator", "discriminators", "generator.moments", "discriminators.moments"]
    for side in [*sides, "generator.live"] if more else sides:
        expected, found = (
            load_file(output / "checkpoints" / last / f"{side}.safetensors") for output in (undisturbed, disturbed)
        )
        assert expected.keys() == found.keys()
        for name, values in expected.items():
            assert values.tobytes() == found[name].tobytes(), f"{side} {name}"


def test_scans_that_stay_in_memory_change_nothing_that_is_learnt(training: Train):
    runs = {size: training(f"with-{size}", f"data.resident_gb={size}", world=2) for size in (0, 1)}
    weights = [(run / "checkpoints" / "step-00000010" / "generator.safetensors").read_bytes() for run in runs.values()]
    assert weights[0] == weights[1]
    reads = {}
    for size, run in runs.items():
        points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        reads[size] = [point["data/requests"] for point in points if "data/requests" in point]
    # Rank 0 reads its ten training scans in each epoch; kept, only those of the first, and fill-ups.
    assert reads[0][1] - reads[0][0] >= reads[1][1] - reads[1][0] + 10


def test_several_datasets_are_trained_on_as_often_as_their_weights_say(
    training: Train, packed: Callable[..., Dataset], scans: Callable[..., list[Scan]]
):
    other = packed(scans(12, seed=5))
    first = packed(30)
    output = training("run", f"data.uri=[{first.uri},{other.uri}]", "data.weights=[0.5,2]")
    # Of 20 scans half, of 8 scans each twice: 26, in batches of four.
    assert json.loads((output / "result.json").read_text())["checkpoint"].endswith("step-00000014")
    judged = [line.split(",")[0] for line in (output / "validation.csv").read_text().splitlines()[1:]]
    assert len(judged) == len(set(judged)) == 14
    assert {key.split("/")[0] for key in judged} == {"noise", "noise-2"}
    network = json.loads((output / "checkpoints" / "step-00000014" / "network.json").read_text())
    assert network["learnt_from"] == {dataset.index.digest: [2, 3] for dataset in (first, other)}


def test_an_unseen_fold_is_not_learnt_from(training: Train, dataset: Dataset):
    output = training("run", "training.epochs=1", "data.unseen=[3]", 'tracking.experiment=""')
    network = json.loads(next((output / "checkpoints").glob("step-*/network.json")).read_text())
    assert network["learnt_from"] == {dataset.index.digest: [2]}
    assert "run_id" not in json.loads((output / "run.json").read_text())


def test_the_curves_of_a_run_that_went_on_hold_each_step_once(training: Train):
    output = training("run", "training.epochs=5", kill_when=lambda output: "step-00000018" in checkpoints(output))
    training("run", "training.epochs=5")
    points = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points if "dice_loss/stage_1" in point] == [10, 20]
    assert [point["step"] for point in points if "validation/dsc" in point] == [5, 10, 15, 20, 25]


def test_a_finished_run_is_not_trained_again(training: Train):
    output = training("run")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    training("run")
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


def test_a_run_that_ended_before_its_result_was_written_writes_the_same(training: Train):
    output = training("run", "training.epochs=1")
    before = json.loads((output / "result.json").read_text())
    (output / "result.json").unlink()
    training("run", "training.epochs=1")
    after = json.loads((output / "result.json").read_text())
    assert {**after, "seconds": None} == {**before, "seconds": None}


def test_the_newest_checkpoints_and_the_best_are_kept(training: Train):
    output = training("run", "checkpoints.keep=2", "training.epochs=3")
    result = json.loads((output / "result.json").read_text())
    best = Path(result["best_checkpoint"]).name
    assert checkpoints(output) == sorted({best, "step-00000014", "step-00000015"})
    assert Path(result["checkpoint"]).name == "step-00000015"


def test_a_run_without_progress_ends_early_and_stays_ended(training: Train):
    stalls = ("training.patience=2", "training.epochs=9", "optimizer.generator_rate=1e-12")
    output = training("run", *stalls)
    result = json.loads((output / "result.json").read_text())
    assert (result["epochs"], result["best_epoch"]) == (3, 1)
    (output / "result.json").unlink()
    training("run", *stalls)
    assert json.loads((output / "result.json").read_text())["epochs"] == 3


def test_the_running_average_is_what_is_kept_to_use(training: Train):
    output = training("run", "training.epochs=1", "training.ema=0.5", "validation.threshold=chosen")
    checkpoint = output / "checkpoints" / "step-00000005"
    used, live = (load_file(checkpoint / f"generator{kind}.safetensors") for kind in ("", ".live"))
    assert used.keys() == live.keys()
    assert any((used[name] != live[name]).any() for name in used)
    described = json.loads((checkpoint / "network.json").read_text())
    assert 0.05 <= described["threshold"] <= 0.95


def test_without_an_adversary_there_is_nothing_of_discriminators(training: Train):
    output = training("run", "training.epochs=2", "objective.beta=[0,0,0,0]")
    assert not list((output / "checkpoints" / "step-00000010").glob("discriminators*"))
    points = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert any("dice_loss/stage_4" in point for point in points)
    assert not any("discriminator" in name or "adversarial" in name for point in points for name in point)


def test_every_scan_of_the_held_out_fold_is_judged_once_at_two_ranks(training: Train, dataset: Dataset):
    output = training("run", "data.fold=2", "training.epochs=1", world=2)
    assert (output / "outlines.png").read_bytes().startswith(b"\x89PNG")
    judged = [line.split(",")[0] for line in (output / "validation.csv").read_text().splitlines()[1:]]
    held_out = [dataset.index.samples[position].key for position in dataset.positions([2])]
    assert sorted(judged) == sorted(held_out)


def test_a_checkpoint_of_another_world_size_and_zero_stage_is_loaded_to_the_bit(
    training: Train, run_ranks: Ranks, tmp_path: Path
):
    output = training("run", "training.epochs=1", "training.generator_zero=2", world=2)
    source = output / "checkpoints"
    for world, stages in ((1, ("02", "11")), (2, ("11", "20"))):
        target = tmp_path / f"by-{world}"
        run_ranks("resaving.py", str(source), str(target), str(output / "config.yaml"), *stages, world=world)
        for stage in stages:
            for file in (source / "step-00000005").glob("*.safetensors"):
                again = target / stage / "step-00000005" / file.name
                assert file.read_bytes() == again.read_bytes(), f"{file.name} by {world} at ZeRO {stage}"
