"""What is tried next: a function of the search as it was asked for and of what its journal tells.

Nothing else is remembered, so a search that was interrupted proposes what it would have proposed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from tuning.journal import StudyRecord, TrialRecord
from tuning.settings import Tuning
from tuning.space import Range, Space, paper_values

REPEATS = 50
"""How often a proposal that was made before is drawn again: a small space may have no other left."""

_STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


def propose(tuning: Tuning, study: StudyRecord) -> tuple[dict[str, Any], str]:
    """Values of the next trial, by key, and where they are from: paper, random or tpe.

    The first trial has the paper's. Chance depends on the seed and the trial's number alone. The Parzen estimator
    (Optuna's, over all keys together) takes over when as many trials have ended as it needs; it takes those that are
    still at work for bad ones, so that it does not propose the same again. Where it does, chance has another try.
    """
    number = len(study.trials)
    if number == 0:
        return paper_values(tuning.space, tuning.config), "paper"
    ended = sum(trial.how in ("finished", "stopped") for trial in study.trials.values())
    if tuning.tune.searcher == "random" or ended < by_chance(tuning.tune.trials):
        return _random(tuning, number), "random"
    before = [trial.values for trial in study.trials.values()]
    for repeat in range(REPEATS):
        values = tuning.space.values(_estimated(tuning, study, repeat))
        if values not in before:
            return values, "tpe"
    return _drawn(tuning, number, before), "random"


def by_chance(trials: int) -> int:
    """How many of so many trials have to have ended before the Parzen estimator is asked: a third, 10 at most."""
    return min(10, math.ceil(trials / 3))


def _random(tuning: Tuning, number: int) -> dict[str, Any]:
    """Values of the trial with this number in a search by chance, which knows what those before it drew."""
    before = [paper_values(tuning.space, tuning.config)]
    for trial in range(1, number + 1):
        before.append(_drawn(tuning, trial, before))
    return before[-1]


def _drawn(tuning: Tuning, number: int, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Values that were not there before, if they can be found."""
    for repeat in range(REPEATS):
        chance = np.random.default_rng([tuning.config.seed, number, repeat])
        values = tuning.space.values(_point(tuning.space, chance))
        if values not in before:
            break
    return values


def _point(space: Space, chance: np.random.Generator) -> dict[str, float | int]:
    return {
        key: float(chance.random()) if isinstance(dimension, Range) else int(chance.integers(len(dimension.values)))
        for key, dimension in space.dimensions.items()
    }


def _estimated(tuning: Tuning, study: StudyRecord, repeat: int) -> Mapping[str, float | int]:
    """The point that the Parzen estimator names."""
    distributions = _distributions(tuning.space)
    number = len(study.trials)
    seed = int(np.random.SeedSequence([tuning.config.seed, number, repeat]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(n_startup_trials=0, multivariate=True, constant_liar=True, seed=seed)
    with _quiet():
        asked = optuna.create_study(direction="maximize", sampler=sampler)
        for _, trial in sorted(study.trials.items()):
            if tuning.space.holds(trial.values):
                asked.add_trial(_told(trial, tuning.space, distributions))
        return asked.ask(distributions).params


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {
        key: FloatDistribution(0.0, 1.0)
        if isinstance(dimension, Range)
        else CategoricalDistribution(tuple(range(len(dimension.values))))
        for key, dimension in space.dimensions.items()
    }


def _told(trial: TrialRecord, space: Space, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    """A trial as Optuna is told of it."""
    state = TrialState.RUNNING if trial.how is None else _STATES[trial.how]
    if state == TrialState.COMPLETE and (trial.dsc is None or math.isnan(trial.dsc)):
        state = TrialState.FAIL
    return optuna.create_trial(
        state=state,
        value=trial.dsc if state == TrialState.COMPLETE else None,
        params=space.point(trial.values),
        distributions=distributions,
        intermediate_values={report.epoch: report.dsc for report in trial.reports},
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna without what it says of each study."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
