"""Studies for tests: a journal's events, made up of what each trial came to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tuning.journal import StudyRecord
from tuning.settings import Tuning, load_tuning
from tuning.space import Choices, paper_values

SPACE = {
    "objective.alpha.2": {"low": 0.01, "high": 1.0, "log": True, "zero": True},
    "optimizer.generator_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "discriminators.norm": ["batch", "instance", "group"],
    "discriminators.widths": [[4, 8, 16, 32], [8, 16, 32, 64]],
}


def tuning_of(*changes: str) -> Tuning:
    """A search over four keys, of three epochs and two folds."""
    asked = [f"tune.space={SPACE}", "training.epochs=3", "tune.folds=[1, 2]", "tune.trials=8", "data.uri=/sets/one"]
    return load_tuning("quick", [*asked, *changes])


def study_of(tuning: Tuning, curves: Sequence[Mapping[str, Any]]) -> StudyRecord:
    """A trial for each: values that are not the paper's, dsc (by epoch, {training: DSC}), how, why, failures."""
    paper = paper_values(tuning.space, tuning.config)
    events: list[dict[str, Any]] = []
    for number, told in enumerate(curves):
        values = paper | told.get("values", {})
        events.append({"event": "trial", "number": number, "values": values, "origin": "tpe" if number else "paper"})
        for attempt, why in enumerate(["", *told.get("failures", [])], start=1):
            if why:
                events.append({"event": "failed", "trial": number, "why": why})
            events.append({"event": "began", "trial": number, "attempt": attempt, "node": "here"})
        for epoch, trainings in enumerate(told.get("dsc", []), start=1):
            events.append(
                {
                    "event": "report",
                    "trial": number,
                    "epoch": epoch,
                    "dsc": float(np.mean(list(trainings.values()))),
                    "trainings": trainings,
                    "trained": epoch * len(trainings),
                    "seconds": 60.0 * epoch,
                }
            )
        if how := told.get("how", "finished"):
            events.append({"event": "ended", "trial": number, "how": how, "why": told.get("why", "")})
    return StudyRecord(events)


def searched(tuning: Tuning, trials: int, seed: int = 0, matters: bool = True) -> StudyRecord:
    """A search at random whose rate decides how good a trial is, of which a third finish, as successive halving has it;
    if it does not matter, chance alone decides.
    """
    random = np.random.default_rng(seed)
    epochs = tuning.config.training.epochs
    curves = []
    for number in range(trials):
        point = {
            key: int(random.integers(len(of.values))) if isinstance(of, Choices) else float(random.random())
            for key, of in tuning.space.dimensions.items()
        }
        place = tuning.space.point(paper_values(tuning.space, tuning.config)) if number == 0 else point
        loss = 0.6 * (place["optimizer.generator_rate"] - 0.55) ** 2 if matters else 0.0
        end = 0.84 - loss + random.normal(0, 0.01)
        reached = epochs if number < 2 or random.random() < 0.3 else max(1, int(epochs * random.choice([0.1, 0.35])))
        dsc = [
            end * (1 - 0.5 * np.exp(-4 * epoch / epochs)) + random.normal(0, 0.006) for epoch in range(1, reached + 1)
        ]
        curves.append(
            {
                "values": tuning.space.values(point) if number else {},
                "dsc": [{"fold-1": float(value) - 0.01, "fold-2": float(value) + 0.01} for value in dsc],
                "how": "finished" if reached == epochs else "stopped",
                "why": "" if reached == epochs else f"below the best third at epoch {reached}",
            }
        )
    return study_of(tuning, curves)
