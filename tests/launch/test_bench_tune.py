"""`sonotrain bench tune`: a trial and the same training without Ray, and what is told of their times."""

import json
from pathlib import Path

import pytest

from data_pipeline import Fault
from launch.bench_verbs import show_trials
from launch.benches.tune import Taken, Way, compared, taken
from tests.launch.command import Command
from trainer.run_folder import RunFolder, TrainingResult

SMALL = (
    *("data.size=[64, 64]", "network.widths=[4, 6, 8, 10, 12]", "discriminators.widths=[4, 6, 8, 10]"),
    *("discriminators.strides=[1, 1, 1, 1, 1]", "training.batch=4", "training.epochs=3", "training.precision=fp32"),
)


def took(training: float, start: float = 10.0, end: float = 2.0) -> Taken:
    return Taken(start=start, training=training, end=end, steps=20, told=training + 1)


@pytest.mark.parametrize(("trial", "met"), [(104.9, True), (105.1, False)])
def test_a_trial_may_take_five_hundredths_more(trial: float, met: bool, capsys: pytest.CaptureFixture[str]) -> None:
    result = compared(
        Way("launch local", [took(100), took(200), took(100)]),
        Way("a trial", [took(trial, 25, 8), took(200, 23, 9), took(2 * trial, 24, 10)]),
    )
    assert result["trial_of_alone"]["training"]["median"] == pytest.approx(trial / 100)
    assert result["trial_of_alone"]["whole"]["median"] == pytest.approx((trial + 25 + 8) / 112)
    assert (result["more_seconds"]["start"]["median"], result["more_seconds"]["end"]["median"]) == (14, 7)
    assert result["ways"][0]["seconds"]["step"]["rounds"] == [5, 10, 5]
    (promise,) = result["criteria"]
    assert promise["met"] is met
    show_trials(result)
    shown = capsys.readouterr().out
    assert f"{trial / 100:.3f} x" in shown
    assert "+14.0 s" in shown
    assert ("MISSED" in shown) is not met


def test_an_interval_is_of_the_ratios_within_rounds() -> None:
    alone = Way("launch local", [took(100 * slow) for slow in (1, 2, 3, 4, 5, 6)])
    trial = Way(
        "a trial", [took(100 * slow * ratio) for slow, ratio in zip((1, 2, 3, 4, 5, 6), range(1, 7), strict=True)]
    )
    ratio = compared(alone, trial)["trial_of_alone"]["training"]
    assert (ratio["median"], ratio["low"], ratio["high"]) == (3.5, 1, 6)


def folder_with(path: Path, *points: tuple[float, int]) -> RunFolder:
    path.mkdir()
    folder = RunFolder(path)
    folder.curves.write_text("".join(json.dumps({"time": time, "step": step}) + "\n" for time, step in points))
    result = TrainingResult(str(path), "c", 3, {}, 1, 0.5, "b", 31.5, "d")
    folder.result.write_text(json.dumps({name: getattr(result, name) for name in result.__dataclass_fields__}))
    return folder


def test_time_is_told_by_the_points_of_the_curves(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "run", (1012.0, 10), (1020.0, 20), (1033.0, 24), (1042.0, 48))
    assert taken(1000.0, 1045.0, folder) == Taken(start=12, training=30, end=3, steps=38, told=31.5)
    assert taken(1000.0, 1045.0, folder).whole == 45


@pytest.mark.parametrize("points", [(), ((1012.0, 10),), ((1012.0, 10), (1013.0, 10))])
def test_a_training_that_is_too_short_is_not_timed(points: tuple[tuple[float, int], ...], tmp_path: Path) -> None:
    with pytest.raises(Fault, match="too short to be timed"):
        taken(1000.0, 1045.0, folder_with(tmp_path / "run", *points))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("nosuch",), "nosuch: neither a file nor a preset"),
        (("quick", "tune.nodes=2"), "tune.nodes=2: a trial is measured on one machine"),
        (("quick", "data.uri=phantoms", "tune.folds=[9]"), "has the folds 1, 2, 3"),
        (("quick", "data.uri=phantoms", "tune.processes=64"), "64 processes"),
    ],
)
def test_a_wrong_call_is_told_before_any_training(
    arguments: tuple[str, ...], error: str, sonotrain: Command, dataset: Path
) -> None:
    ended = sonotrain("bench", "tune", *arguments)
    assert ended.status == 2
    assert error in ended.error


@pytest.mark.slow
@pytest.mark.timeout(900)  # it starts a Ray of its own
def test_a_benchmark_times_the_same_training_twice(sonotrain: Command, dataset: Path) -> None:
    # The search is another than that which is measured, of which the first trial's first training is left.
    search = ("tune.folds=[2, 3]", "tune.trials=4", "tune.unseen=[]", "tune.first_rung=2")

    ended = sonotrain(
        "bench", "tune", "quick", f"data.uri={dataset}", *SMALL, *search, "--rounds", 1, "--json", "result.json"
    )

    assert ended.status == 0, ended.errors
    assert ended.output.splitlines()[-1] == "1 rounds, written to result.json"
    result = json.loads(Path("result.json").read_text())
    alone, trial = (way["seconds"] for way in result["ways"])
    assert [way["name"] for way in result["ways"]] == ["launch local", "a trial"]
    for seconds in (alone, trial):
        parts = [seconds[part]["median"] for part in ("start", "training", "end")]
        assert all(part > 0 for part in parts)
        assert seconds["whole"]["rounds"] == [pytest.approx(sum(parts))]
    ratio = result["trial_of_alone"]["training"]["median"]
    assert ratio == pytest.approx(trial["training"]["median"] / alone["training"]["median"])
    assert result["settings"] | {"dataset": ""} == {
        "rounds": 1,
        "config": "quick",
        "changes": [f"data.uri={dataset}", *SMALL, *search],
        "processes": 1,
        "cores_of_a_process": 1,
        "epochs": 3,
        "dataset": "",
    }
    assert {path.name for path in Path.cwd().iterdir()} == {"cache", "phantoms", "result.json"}
