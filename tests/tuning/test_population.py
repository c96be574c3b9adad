"""A population: what a trial makes of another's values, whose weights it goes on from, and that a kill loses none."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial

from data_pipeline import Dataset
from tests.searches import Search, require_two_cores
from tests.tuning.studies import tuning_of
from tests.tuning.trainings import start
from trainer.checkpoint_files import begin, name_of, publish
from trainer.config import load_config
from tuning.exchange import put_aside
from tuning.journal import Journal
from tuning.orders import Desk
from tuning.population import Population, PopulationNotes, explored, order_of
from tuning.running import Crew
from tuning.settings import Tuning, load_tuning
from tuning.space import with_values

SPACE = {
    "objective.alpha.2": {"low": 0.01, "high": 1.0, "log": True, "zero": True},
    "objective.beta.1": {"low": 0.01, "high": 1.0, "log": True, "zero": True},
    "objective.beta_warmup_steps": {"low": 0, "high": 3},
    "optimizer.schedule": ["constant", "cosine", "polynomial"],
    "discriminators.norm": ["batch", "instance", "group"],
    "training.batch": [4, 8],
}
TUNING = tuning_of(f"tune.space={SPACE}", "objective.beta=[0.1, 0, 0, 0]", "tune.scheduler=population")


@st.composite
def values_of(draw: st.DrawFn) -> dict[str, Any]:
    """Values in the space."""
    return {
        key: dimension.value(draw(st.floats(0, 1)) if key in NUMBERS else draw(st.integers(0, len(SPACE[key]) - 1)))
        for key, dimension in TUNING.space.dimensions.items()
    }


NUMBERS = [key for key, asked in SPACE.items() if isinstance(asked, dict)]


@given(values_of(), st.integers(0, 1000), st.integers(0, 1000))
def test_explored_values_are_in_the_space_follow_from_what_is_told_and_fit_the_donor_s_weights(
    values: dict[str, Any], number: int, epoch: int
) -> None:
    before = dict(values)
    found = explored(TUNING, values, number, epoch)
    assert TUNING.space.holds(found)
    assert found == explored(TUNING, values, number, epoch)
    assert values == before
    assert {key: found[key] for key in ("discriminators.norm", "training.batch")} == {
        key: values[key] for key in ("discriminators.norm", "training.batch")
    }
    judged = [any(with_values(TUNING.config, each).objective.beta) for each in (values, found)]
    assert judged[0] == judged[1]


def test_exploring_moves_a_step_or_draws_anew() -> None:
    """Of a thousand trials: three quarters move by a tenth of the range either way, a choice to one beside it."""
    values = {"objective.alpha.2": 0.1, "optimizer.schedule": "constant"}
    tuning = tuning_of(f"tune.space={ {key: SPACE[key] for key in values} }")
    found = [explored(tuning, values, number, 1) for number in range(1000)]
    alpha = [each["objective.alpha.2"] for each in found]
    # 0.1 is in the middle of 0.01 to 1 by logarithm; a tenth of the places is 1/9 of those above zero.
    down, up = (float(f"{0.1 * 100 ** (sign / 9):.4g}") for sign in (-1, 1))
    assert 300 < alpha.count(down) < 450
    assert 300 < alpha.count(up) < 450
    assert 10 < alpha.count(0.0) < 50  # a tenth of those that are drawn anew
    schedules = [each["optimizer.schedule"] for each in found]
    assert schedules.count("constant") + schedules.count("cosine") > 875  # the third has a twelfth, drawn anew
    assert 50 < schedules.count("polynomial") < 125


def test_zero_is_come_to_and_left_step_by_step() -> None:
    tuning = tuning_of(f"tune.space={ {'objective.alpha.2': SPACE['objective.alpha.2']} }")
    below = {explored(tuning, {"objective.alpha.2": 0.011}, number, 1)["objective.alpha.2"] for number in range(50)}
    above = {explored(tuning, {"objective.alpha.2": 0.0}, number, 1)["objective.alpha.2"] for number in range(50)}
    assert 0.0 in below
    assert any(value > 0 for value in above)


class Play:
    """A study whose trials' results are told by hand to what Ray would tell them."""

    def __init__(self, folder: Path, dataset: Dataset, trials: int, room: int = 1) -> None:
        asked = [
            "tune.space={objective.alpha.2: {low: 0.1, high: 1.0}}",
            f"data.uri={dataset.uri}",
            "data.size=[64, 64]",
        ]
        kind = ["tune.scheduler=population", f"tune.trials={trials}", "tune.exchange_epochs=2", "tune.unseen=[]"]
        own = [f"output={folder}/study", "training.epochs=6", "tune.folds=[1, 2]", "training.batch=4"]
        self.tuning: Tuning = load_tuning("quick", [*asked, *kind, *own])
        self.desk = Desk(self.tuning, dataset, ())
        self.journal = Journal(self.desk.output)
        self.crew = Crew(PlacementGroupFactory([{"CPU": 1}]), room, start, self.tuning.tune, [], self.desk.output)
        self.population = Population(self.desk, self.journal, self.crew)
        self.notes = PopulationNotes(self.desk, self.journal, self.crew, [], self.population.exchanges)
        self.paused: list[tuple[int, bool]] = []
        self.trials: list[Trial] = []
        self.controller = SimpleNamespace(search_alg=None, get_trials=lambda: self.trials, pause_trial=self.pause)
        for number in range(trials):
            if number not in self.journal.study.trials:
                values = {"objective.alpha.2": 0.1 + 0.1 * number}
                self.journal.write("trial", number=number, values=values, origin="random")
            order = order_of(self.desk, self.crew, self.journal.study.trials[number])
            config = {"number": number, "order": order}
            self.trials.append(Trial("trial", config=config, stub=True, trial_id=str(number)))
            self.trials[-1].set_status(Trial.RUNNING)
            self.population.on_trial_add(self.controller, self.trials[-1])

    def pause(self, trial: Trial, should_checkpoint: bool) -> None:
        trial.set_status(Trial.PAUSED)
        self.paused.append((trial.config["number"], should_checkpoint))

    def tells(self, number: int, epoch: int, dsc: float, weights: bool = True, **more: Any) -> str:
        """The decision on what a trial tells; it puts weights aside before."""
        trial = self.trials[number]
        trial.set_status(Trial.RUNNING)
        order = trial.config["order"]
        for training in order.trainings:
            if weights and epoch % order.exchange_epochs == 0:
                step = epoch * training.steps_per_epoch
                checkpoint = training.folder.checkpoints / name_of(step)
                begin(checkpoint)
                publish(checkpoint, {"weights.safetensors": {"of": torch.tensor([float(number)])}}, {})
                put_aside(training, epoch)
        result = {"epoch": epoch, "dsc": dsc, "trained": epoch, "busy": 10.0, "iterations_since_restore": 2, **more}
        decision = self.population.on_trial_result(self.controller, trial, dict(result))
        self.notes.on_trial_result(trial=trial, result={**result, "trainings": {"fold-1": dsc, "fold-2": dsc}})
        return decision

    def exchanged(self) -> list[tuple[int, int, int]]:
        """Of each exchange the trial, its donor, and the donor's epoch, in the journal's order."""
        lines = map(json.loads, self.journal.path.read_text().splitlines())
        return [(each["trial"], each["donor"], each["epoch"]) for each in lines if each["event"] == "exchanged"]

    def folder(self, number: int, place: str) -> Path:
        return self.desk.folder(number) / place


PlayOf = Callable[..., Play]


@pytest.fixture(scope="module")
def dataset(packed: Callable[..., Dataset]) -> Dataset:
    """30 scans in three folds."""
    return packed(30)


@pytest.fixture
def play(dataset: Dataset, tmp_path: Path) -> Iterator[PlayOf]:
    """Begins a study, or goes on with the one before as after a kill."""
    begun: list[Play] = []

    def make(trials: int = 4, **more: int) -> Play:
        for before in begun:
            before.journal.__exit__(None, None, None)
        begun[:] = [Play(tmp_path, dataset, trials, **more)]
        return begun[0]

    yield make
    for before in begun:
        before.journal.__exit__(None, None, None)


def test_the_worst_goes_on_from_the_best_one_s_weights_with_values_of_its_own(play: PlayOf) -> None:
    a = play()
    for number, dsc in ((1, 0.5), (2, 0.6), (3, 0.7), (0, 0.1)):
        assert a.tells(number, 1, dsc) == "CONTINUE"
        assert a.tells(number, 2, dsc) == ("NOOP" if number == 0 else "CONTINUE")
    assert a.exchanged() == [(0, 3, 2)]
    assert a.paused == [(0, False)]
    record, config = a.journal.study.trials[0], a.trials[0].config
    assert (record.epoch, record.donors) == (2, [(3, 2)])
    assert record.values == explored(a.tuning, {"objective.alpha.2": 0.4}, 0, 2)
    order = config["order"]
    assert (config["number"], order.reported, order.legs) == (0, 2, [(4, 2), (6, 2)])
    for training in order.trainings:
        assert training.folder.path == a.folder(0, f"generation-02/{training.name}")
        assert training.config["objective"]["alpha"][1] == record.values["objective.alpha.2"]
        name = name_of(2 * training.steps_per_epoch)
        taken = training.folder.checkpoints / name / "weights.safetensors"
        assert taken.samefile(a.folder(3, f"exchange/epoch-0002/{training.name}/{name}/weights.safetensors"))


def test_a_trial_s_report_comes_before_its_exchange(play: PlayOf) -> None:
    a = play(2)
    a.tells(1, 2, 0.5)
    a.tells(0, 2, 0.1)
    events = [json.loads(line)["event"] for line in a.journal.path.read_text().splitlines()]
    assert events[-2:] == ["report", "exchanged"]


def test_a_donor_without_weights_is_none(play: PlayOf) -> None:
    a = play(2)
    a.tells(1, 2, 0.5, weights=False)
    assert a.tells(0, 2, 0.1) == "CONTINUE"
    assert a.exchanged() == []
    assert not a.folder(0, "generation-02").exists()


def test_a_trial_makes_room_for_one_that_waits_and_goes_on_from_where_it_is(play: PlayOf) -> None:
    a = play(4)
    a.trials[3].set_status(Trial.PENDING)
    assert a.tells(0, 1, 0.4) == "CONTINUE"
    assert a.tells(0, 2, 0.5) == "NOOP"
    assert a.paused == [(0, False)]
    assert a.trials[0].config["order"].reported == 2
    assert a.trials[0].config["order"].trainings[0].folder.path == a.folder(0, "fold-1")
    a.tells(0, 3, 0.5, busy=2.0, iterations_since_restore=1)  # by another worker
    a.tells(0, 4, 0.5, busy=3.0)
    assert [report.seconds for report in a.journal.study.trials[0].reports] == [10.0, 10.0, 12.0, 13.0]


def test_nobody_makes_room_where_there_is_room_for_all(play: PlayOf) -> None:
    a = play(2, room=2)
    a.trials[1].set_status(Trial.PAUSED)
    assert a.tells(0, 2, 0.5) == "CONTINUE"
    assert a.paused == []


def test_a_trial_may_go_back_and_what_it_has_told_is_not_told_again(play: PlayOf) -> None:
    a = play(2)
    a.tells(1, 2, 0.5)
    a.tells(0, 4, 0.1)
    assert a.exchanged() == [(0, 1, 2)]
    assert a.tells(0, 4, 0.2) == "CONTINUE"
    assert [(report.epoch, report.dsc) for report in a.journal.study.trials[0].reports] == [(4, 0.1)]
    a.tells(0, 5, 0.9)
    assert a.journal.study.trials[0].dsc == 0.9


def test_a_killed_population_remembers_what_each_trial_came_to(play: PlayOf) -> None:
    a = play()
    for number, dsc in ((1, 0.5), (2, 0.6), (3, 0.7), (0, 0.1)):
        a.tells(number, 2, dsc)
    a = play()
    assert a.trials[0].config["order"].trainings[0].folder.path == a.folder(0, "generation-02/fold-1")
    assert a.trials[0].config["order"].reported == 2
    assert a.tells(1, 2, 0.0) == "CONTINUE"  # was judged then
    assert a.tells(1, 4, 0.05) == "NOOP"
    assert a.exchanged() == [(0, 3, 2), (1, 3, 2)]


def test_a_trial_that_is_tried_again_is_not_judged_again(play: PlayOf) -> None:
    a = play(2)
    a.tells(1, 2, 0.5)
    a.tells(0, 2, 0.6)
    a.population.on_trial_add(a.controller, a.trials[1])
    assert a.tells(1, 2, 0.1) == "CONTINUE"
    assert a.exchanged() == []


def test_weights_that_nobody_goes_on_from_are_removed(play: PlayOf) -> None:
    a = play(2)
    for epoch in (2, 4):
        a.tells(1, epoch, 0.5)
        a.tells(0, epoch, 0.1)
    assert a.journal.study.trials[0].generation == 3
    assert not a.folder(0, "fold-1/checkpoints").exists()
    a.tells(0, 6, 0.6)
    a.notes.on_trial_complete(trial=a.trials[0])
    assert a.journal.study.trials[0].how == "finished"
    assert not list(a.desk.folder(0).glob("**/exchange"))
    assert [path.parent.parent.name for path in a.desk.folder(0).glob("**/checkpoints")] == ["generation-03"] * 2


class Killed(Search):
    """A search by the command, and what was seen of it after it was killed in the middle."""

    receiver: int
    """The trial that had just been given another's weights."""
    weights: list[tuple[bytes, bytes]]
    """Of that exchange each file of safetensors: the donor's, and that in the receiver's new folder."""


@pytest.fixture(scope="module")
def killed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    """A population of two, of which one has a rate with which it learns nothing; gone on with to its end."""
    require_two_cores()
    tune = {
        "scheduler": "population",
        "trials": 2,
        "unseen": [],
        "space": {"optimizer.generator_rate": [5e-3, 1e-9]},
    }
    search = Killed(tmp_path_factory.mktemp("killed"), dataset.uri, tune)
    try:
        search.start()
        search.until(lambda: (search.output / "journal.jsonl").exists() and search.events("exchanged"))
        search.send(signal.SIGKILL)
        assert search.ended() == -signal.SIGKILL
        exchange = search.events("exchanged")[0]
        search.receiver = exchange["trial"]
        donor = search.training(exchange["donor"]).parent / f"exchange/epoch-{exchange['epoch']:04d}/fold-1"
        given = [*donor.glob("step-*/*.safetensors")]
        folder = search.training(search.receiver).parent / "generation-02/fold-1/checkpoints"
        search.weights = [(file.read_bytes(), (folder / file.parent.name / file.name).read_bytes()) for file in given]
        search.start()
        assert search.ended() == 0, search.said()
        yield search
    finally:
        search.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_population_that_is_killed_after_an_exchange_goes_on_from_the_donor_s_weights(killed: Killed) -> None:
    trials = killed.study().trials
    assert [trial.how for trial in trials.values()] == ["finished", "finished"]
    assert [trial.epoch for trial in trials.values()] == [3, 3]
    assert len(killed.weights) == 4  # of both sides their weights and moments
    assert all(given == taken for given, taken in killed.weights)
    first = killed.events("exchanged")[0]
    own = killed.training(first["trial"]).parent / "generation-02/fold-1"
    config = load_config(str(own / "config.yaml"))
    assert config.optimizer.generator_rate == first["values"]["optimizer.generator_rate"]
    steps = [json.loads(line)["step"] for line in (own / "metrics.jsonl").read_text().splitlines()]
    per_epoch = 5  # of 20 scans, four an iteration
    assert steps
    assert min(steps) > first["epoch"] * per_epoch
    for trial in trials.values():
        folder = killed.output / f"trials/{trial.number:04d}"
        last = folder if trial.generation == 1 else folder / f"generation-{trial.generation:02d}"
        assert (last / "fold-1/result.json").exists()
    assert "error" not in killed.said()
