"""A population: trials that train side by side, of which the worst go on from the best ones' weights.

Every few epochs a trial in the lowest quarter takes over the weights of one in the highest, with that one's values, of
which those that may change while a network is trained are moved a little (Jaderberg et al., 2017). Nobody waits for
anybody: a trial is held against what the others came to when they were last judged. So it may go on from an epoch
before its own, or behind it; epochs that it has told before are not told again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune import grid_search, sample_from
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from trainer.config import Config
from trainer.engines import has_adversary
from trainer.networks.settings import supervised_stages
from tuning.driving import Notes, Onlooker
from tuning.exchange import forget, forget_aside, has_weights, take_over
from tuning.journal import Journal, TrialRecord
from tuning.orders import Desk
from tuning.running import Crew
from tuning.searcher import propose
from tuning.settings import Tuning
from tuning.space import Choices, Range, with_values
from tuning.trial import TrialOrder

log = logging.getLogger("sonotrain")

STEP = 0.1
"""How far a value is moved, of the whole range."""

RESAMPLED = 0.25
"""The part of values that are drawn anew instead, wherever they were."""

_CHANGES = ("objective.", "optimizer.", "augmentation.")
_BUT = ("objective.stages",)
"""Keys that may have another value from one step to the next: no weights, and no count of steps, depend on them."""


def run_population(desk: Desk, journal: Journal, crew: Crew, onlookers: Iterable[Onlooker]) -> None:
    """Run what the study lacks: all trials are proposed at once. Raises Stopped where a signal has come."""
    study, tuning = journal.study, desk.tuning
    while len(study.trials) < tuning.tune.trials:
        values, origin = propose(tuning, study)
        journal.write("trial", number=len(study.trials), values=values, origin=origin)
    orders = {number: order_of(desk, crew, trial) for number, trial in study.trials.items() if trial.how is None}
    if orders:
        population = Population(desk, journal, crew)
        notes = PopulationNotes(desk, journal, crew, onlookers, population.exchanges)
        together = {"number": grid_search(list(orders)), "order": sample_from(lambda config: orders[config["number"]])}
        crew.run(1, None, population, notes, together)


def order_of(desk: Desk, crew: Crew, trial: TrialRecord, reported: int | None = None) -> TrialOrder:
    """A trial as it is to be carried out: its newest generation. reported are the epochs it has told of."""
    begun = trial.donors[-1][1] if trial.donors else 0
    legs = [(epoch, count) for epoch, count in desk.legs() if epoch > begun]
    trainings = desk.orders(trial.number, trial.values, trial.generation)
    order = crew.order(trainings, legs, trial.epoch if reported is None else reported)
    return replace(order, exchange_epochs=desk.tuning.tune.exchange_epochs)


def explored(tuning: Tuning, values: Mapping[str, Any], number: int, epoch: int) -> dict[str, Any]:
    """What a trial that takes over these values after an epoch makes of them; a function of its arguments alone.

    A number is moved by STEP of its range, or further where that leaves it what it was, a choice to one beside it;
    RESAMPLED of both are drawn anew. Others than _CHANGES stay, and so does beta where without it one side would be
    trained with discriminators and the other not.
    """
    chance = np.random.default_rng([tuning.config.seed, number, epoch])
    found = dict(values)
    for key, dimension in tuning.space.dimensions.items():
        if key.startswith(_CHANGES) and key not in _BUT:
            found[key] = _moved(dimension, values[key], chance)
    if _is_judged(with_values(tuning.config, found)) != _is_judged(with_values(tuning.config, values)):
        found |= {key: value for key, value in values.items() if key.startswith("objective.beta")}
    return found


def _moved(dimension: Range | Choices, value: Any, chance: np.random.Generator) -> Any:
    anew, up = chance.random() < RESAMPLED, chance.random() < 0.5
    if isinstance(dimension, Choices):
        last = len(dimension.values) - 1
        place = dimension.place(value) + (1 if up else -1)
        return dimension.value(int(chance.integers(last + 1)) if anew else min(max(place, 0), last))
    if anew:
        return dimension.value(float(chance.random()))
    at, step = dimension.place(value), STEP if up else -STEP
    moved = value
    while moved == value and 0 <= at <= 1:
        at += step
        moved = dimension.value(min(max(at, 0.0), 1.0))
    return moved


def _is_judged(config: Config) -> bool:
    """Whether it trains with discriminators."""
    return has_adversary(config.objective, supervised_stages(config.network, config.objective.stages))


@dataclass(frozen=True)
class Exchange:
    """That a trial goes on from a donor's weights after an epoch of that one, with these values."""

    donor: int
    epoch: int
    values: Mapping[str, Any]


class Population(PopulationBasedTraining):
    """Ray's population-based training, which remembers by the journal, and hands weights on as files.

    Ray's own would have each donor save for others, what it saved restored, and lose both with the driver. Here a
    trial puts its weights aside by itself, and what it goes on from is in its folder; so nothing is saved or restored.
    Of a trial only an epoch of exchange beyond those before counts.
    """

    def __init__(self, desk: Desk, journal: Journal, crew: Crew) -> None:
        super().__init__(
            time_attr="epoch",
            metric="dsc",
            mode="max",
            perturbation_interval=desk.tuning.tune.exchange_epochs,
            custom_explore_fn=dict,  # _get_new_config explores
            log_config=False,
        )
        self.exchanges: dict[int, Exchange] = {}
        """By trial, those that the journal has yet to be told of."""
        self._desk = desk
        self._study = journal.study
        self._crew = crew
        self._judged: dict[int, int] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take a trial in, with what it came to when it was last judged; one that is tried again is in."""
        if trial in self._trial_state:
            return
        super().on_trial_add(tune_controller, trial)
        state, record = self._trial_state[trial], self._record(trial)
        state.last_result = {}
        for report in record.reports:
            if report.epoch % self._perturbation_interval == 0:
                state.last_score = report.dsc
                state.last_train_time = state.last_perturbation_time = report.epoch
        self._judged[record.number] = state.last_train_time

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether it goes on, makes room for another, or has been given another's weights."""
        number, epoch = trial.config["number"], result["epoch"]
        if epoch <= self._judged[number] or epoch % self._perturbation_interval:
            return TrialScheduler.CONTINUE
        self._judged[number] = epoch
        decision: str = super().on_trial_result(tune_controller, trial, result)
        live = [each for each in tune_controller.get_trials() if not each.is_finished()]
        if decision == TrialScheduler.PAUSE and len(live) <= self._crew.at_once:
            return TrialScheduler.CONTINUE  # what waits has room as well, and has only just been given weights
        if decision == TrialScheduler.PAUSE:
            trial.set_config(trial.config | {"order": replace(trial.config["order"], reported=epoch)})
            tune_controller.pause_trial(trial, should_checkpoint=False)
            return TrialScheduler.NOOP
        return decision

    def _checkpoint_or_exploit(
        self, trial: Any, tune_controller: Any, upper_quantile: list[Any], lower_quantile: list[Any]
    ) -> None:
        """Give a trial in the lowest quarter the weights of one in the highest, if one has any."""
        donors = [each for each in upper_quantile if self._has_weights(each)]
        if trial not in lower_quantile or not donors:
            return
        record = self._record(trial)
        chance = np.random.default_rng([self._desk.tuning.config.seed, record.number, self._judged[record.number], 1])
        donor = donors[int(chance.integers(len(donors)))]
        folder = self._desk.folder(record.number, record.generation + 1)
        try:
            take_over(self._folder(donor), self._trial_state[donor].last_train_time, folder)
        except OSError as failed:
            log.warning("%s: weights could not be taken over (%s); the trial goes on with its own", folder, failed)
            return
        self._exploit(tune_controller, trial, donor)
        # What it goes on from lies in its folder: there is nothing for Ray to restore.
        trial.run_metadata.checkpoint_manager._latest_checkpoint_result = None

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a trial is told that goes on from a donor's weights."""
        record, donor = self._record(trial), self._record(trial_to_clone)
        now, epoch = self._judged[record.number], self._trial_state[trial_to_clone].last_train_time
        values = explored(self._desk.tuning, donor.values, record.number, now)
        self.exchanges[record.number] = Exchange(donor.number, epoch, values)
        renewed = replace(record, values=values, donors=[*record.donors, (donor.number, epoch)])
        return {"number": record.number, "order": order_of(self._desk, self._crew, renewed, now)}, {}

    def _has_weights(self, trial: Any) -> bool:
        names = [order.name for order in trial.config["order"].trainings]
        return has_weights(self._folder(trial), self._trial_state[trial].last_train_time, names)

    def _folder(self, trial: Any) -> Path:
        record = self._record(trial)
        return self._desk.folder(record.number, record.generation)

    def _record(self, trial: Any) -> TrialRecord:
        return self._study.trials[trial.config["number"]]

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray writes its scheduler down for a restore of its own, which is not used


class PopulationNotes(Notes):
    """Writes down exchanges as well, each behind the report that led to it, and removes weights of no further use."""

    def __init__(
        self,
        desk: Desk,
        journal: Journal,
        crew: Crew,
        onlookers: Iterable[Onlooker],
        exchanges: dict[int, Exchange],
    ) -> None:
        super().__init__(journal, desk.tuning.config.training.epochs, crew.received, onlookers)
        self._desk = desk
        self._exchanges = exchanges

    def on_trial_result(self, trial: Any, result: Mapping[str, Any], **_: Any) -> None:
        """A sign of life, a further epoch, or one after which it goes on from another's weights."""
        record = self._journal.study.trials[trial.config["number"]]
        if result["iterations_since_restore"] == 1 and record.number in self._seconds and record.reports:
            self._seconds[record.number] = record.reports[-1].seconds  # its worker is a new one
        super().on_trial_result(trial=trial, result=result)
        if exchange := self._exchanges.pop(record.number, None):
            for generation in range(1, record.generation):
                forget(self._desk.folder(record.number, generation))
            self._journal.write(
                "exchanged",
                trial=record.number,
                donor=exchange.donor,
                epoch=exchange.epoch,
                values=exchange.values,
            )
            for onlooker in self._onlookers:
                onlooker.exchanged(record)

    def _end(self, record: TrialRecord, how: str, why: str) -> None:
        for generation in range(1, record.generation):
            forget(self._desk.folder(record.number, generation))
        forget_aside(self._desk.folder(record.number, record.generation))
        super()._end(record, how, why)
