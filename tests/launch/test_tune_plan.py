"""What is said of a search before it starts: `sonotrain tune --dry-run`, without the verb."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline import Dataset, Fault, Scan, WrongCall, open_dataset, write_dataset
from data_pipeline.phantom import phantom
from launch.tune_plan import UNMEASURED, show_plan
from tuning.journal import Journal
from tuning.settings import Tuning, load_tuning

SPACE = (
    "tune.space={objective.alpha.2: {low: 0.01, high: 1.0, log: true, zero: true}, discriminators.norm: [batch, group]}"
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve phantoms in three folds."""
    made = []
    for number in range(12):
        scan = phantom(number, (48, 64))
        made.append(Scan(f"scan-{number}", scan.image, scan.mask, f"p{number}", f"p{number}", "benign", None))
    folder = str(tmp_path_factory.mktemp("phantoms"))
    write_dataset(folder, "phantoms", made, {scan.key: number % 3 + 1 for number, scan in enumerate(made)}, {})
    return open_dataset(folder)


@pytest.fixture
def tuning(dataset: Dataset, tmp_path: Path) -> Callable[..., Tuning]:
    """A search of nine epochs over two keys, with changes."""

    def load(*changes: str) -> Tuning:
        own = [f"output={tmp_path}/study", f"data.uri={dataset.uri}", "training.epochs=9", "tune.trials=6", SPACE]
        return load_tuning("quick", [*own, *changes])

    return load


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A study of two trials, 30 s an epoch and 6 s for the start."""
    with Journal(tmp_path / "measured") as journal:
        for number in range(2):
            journal.write("trial", number=number, values={}, origin="random")
            journal.write("began", trial=number, attempt=1, node="here")
            for epoch in range(1, 10):
                dsc = 0.5 + epoch / 100 + number / 10
                told = {"dsc": dsc, "trainings": {"fold-1": dsc}, "trained": epoch, "seconds": 6.0 + 30 * epoch}
                journal.write("report", trial=number, epoch=epoch, **told)
            journal.write("ended", trial=number, how="finished", why="")
    return tmp_path / "measured"


def test_the_space_the_rungs_and_the_trials_are_told(
    tuning: Callable[..., Tuning], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    size = ["tune.processes=2", "tune.cpus=3", "tune.folds=[1, 2]", "tune.trainings_by_rung=[1]"]
    show_plan(tuning(*size), slots_per_node=2, json=tmp_path / "plan.json")
    said = capsys.readouterr().out
    for line in (
        "epochs: 9, judged after 1 (1 training), 3 (2 trainings), where about one in 3 goes on",
        "judged by: folds 1, 2 held out, with seed 0: 2 trainings a trial, at most 108 epochs in all",
        "unseen: fold 3, kept for the comparison of the best with the paper's weights",
        "a trial takes: 2 x 3 cores = 6 cores; at the same time 2 on a node",
        UNMEASURED,
    ):
        assert line in said.splitlines()
    assert "0.01 to 1, logarithmic, and 0" in said
    assert "batch | group" in said
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["space"]["objective.alpha.2"]["first"] == 0.1
    assert (told["rungs"], told["unseen"], told["trial"]["cores"]) == ([1, 3], [3], 6)
    assert "forecasts" not in told


def test_hours_are_forecast_for_more_and_more_nodes_until_all_trials_run_at_once(
    tuning: Callable[..., Tuning], measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    show_plan(tuning("tune.cpus=2"), measured=measured, slots_per_node=2, gpus=1, json=tmp_path / "plan.json")
    said = capsys.readouterr().out
    assert f"measured: 2 trials in {measured}, 18 epochs; an epoch takes 30 s, a training's start 6 s" in said
    assert "the comparison at the end: 2 trainings, 0.15 hours one by one" in said
    told = json.loads((tmp_path / "plan.json").read_text())
    full = {each["nodes"]: each for each in told["forecasts"] if each["scheduler"] == "none"}
    halving = {each["nodes"]: each for each in told["forecasts"] if each["scheduler"] == "asha"}
    assert {nodes: each["slots"] for nodes, each in full.items()} == {1: 2, 2: 4, 4: 6}
    # 276 s a trial: six in turns of two, of four, and all at once.
    assert {nodes: each["forecast"]["seconds"]["median"] for nodes, each in full.items()} == {1: 828, 2: 552, 4: 276}
    assert full[1]["forecast"]["core_hours"]["median"] == pytest.approx(6 * 276 * 2 / 3600)
    assert full[1]["forecast"]["gpu_hours"]["median"] == pytest.approx(6 * 276 / 3600)
    assert all(halving[nodes]["forecast"]["share"]["median"] < 1 for nodes in full)


def test_one_number_of_nodes_and_a_limit_of_trials_are_kept_to(
    tuning: Callable[..., Tuning], measured: Path, tmp_path: Path
):
    wanted = tuning("tune.nodes=2", "tune.concurrent=3")
    show_plan(wanted, nodes=7, measured=measured, slots_per_node=1, json=tmp_path / "plan.json")
    told = json.loads((tmp_path / "plan.json").read_text())["forecasts"]
    assert [(each["nodes"], each["slots"]) for each in told] == [(7, 3), (7, 3)]
    with pytest.raises(WrongCall, match=r"--nodes 1 is less than a trial has; tune\.nodes=2"):
        show_plan(wanted, nodes=1)


def test_what_was_measured_otherwise_is_named(
    tuning: Callable[..., Tuning], measured: Path, capsys: pytest.CaptureFixture[str]
):
    from tuning.study_folder import begin

    begin(measured, tuning("training.batch=4", "tune.trials=2", "tune.scheduler=none", "tune.cpus=2"), "digest")
    show_plan(tuning("tune.cpus=2"), measured=measured)
    assert "measured otherwise: training.batch=4 (here 8); what follows" in capsys.readouterr().out


def test_the_output_itself_is_measured_where_a_study_lies_there(
    tuning: Callable[..., Tuning], measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    measured.rename(tmp_path / "study")
    show_plan(tuning())
    assert f"measured: 2 trials in {tmp_path / 'study'}" in capsys.readouterr().out


def test_a_folder_without_trials_is_refused_in_a_line(tuning: Callable[..., Tuning], tmp_path: Path):
    with pytest.raises(Fault, match="holds no study"):
        show_plan(tuning(), measured=tmp_path)
    with Journal(tmp_path / "begun"), pytest.raises(Fault, match="no trial has reported an epoch"):
        show_plan(tuning(), measured=tmp_path / "begun")
