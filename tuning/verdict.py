"""The comparison at the end, carried out: the winner and the paper's weights trained for the folds that are unseen.

Its trainings are trials to Ray, one each, on the same cluster; they go on from their checkpoints like all others.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.search import Searcher

from data_pipeline import Fault
from trainer.atomic import replacing
from trainer.score_table import read_csv
from tuning.disk import keep_weights
from tuning.driving import why
from tuning.final import FinalComparison, compare_final, final_trainings
from tuning.journal import StudyRecord
from tuning.orders import Desk
from tuning.progress import Say
from tuning.results import challenger
from tuning.running import Crew
from tuning.trial import TrialOrder

NAME = "final.json"


def verdict(desk: Desk, study: StudyRecord, crew: Crew, say: Say) -> FinalComparison | None:
    """The comparison of the best trial but the paper's with the paper's; None where there is nothing to compare.

    What was compared before is not compared again. Raises Fault where a training of it failed as often as it may.
    """
    best = challenger(study)
    if best is None:
        return None
    trainings = final_trainings(desk.tuning, best.values, desk.unseen)
    if not trainings:
        return None
    if known := compared(desk.output, best.number):
        return known
    folds = ", ".join(map(str, desk.unseen))
    say(f"Trial {best.number} and the paper's weights are trained for fold {folds}, which no trial has seen")
    orders = [(f"{side} {training.name}", desk.order(config, training.name)) for side, training, config in trainings]
    epochs = desk.tuning.config.training.epochs
    given = {name: crew.order([order], [(epochs, 1)]) for name, order in orders}
    heard = Heard(list(given), epochs, say)
    crew.run(len(given), Given(given), None, heard)
    scores: dict[Any, dict[str, Any]] = {"best": {}, "paper": {}}
    for (side, training, _), (name, order) in zip(trainings, orders, strict=True):
        if name not in heard.scores:
            raise Fault(f"{name}: did not finish, see {order.folder.path}; the same call tries again")
        if not order.folder.scores.exists():  # it was trained on a machine whose folder is another
            with replacing(order.folder.scores) as partial:
                partial.write_text(heard.scores[name], encoding="utf-8")
        scores[side][training.name] = read_csv(order.folder.scores)
        keep_weights(order.folder.checkpoints)
    held_out = list(dict.fromkeys(training for _, training, _ in trainings))
    final = compare_final(scores, held_out, best.number)
    with replacing(desk.output / NAME) as partial:
        partial.write_text(json.dumps(asdict(final), indent=1), encoding="utf-8")
    return final


class Given(Searcher):
    """Proposes what it was given, once."""

    def __init__(self, orders: Mapping[str, TrialOrder]) -> None:
        super().__init__(metric="dsc", mode="max")
        self._orders = deque(enumerate(orders.values()))

    def suggest(self, trial_id: str) -> Any:
        """The next one."""
        if not self._orders:
            return Searcher.FINISHED
        number, order = self._orders.popleft()
        return {"number": number, "order": order}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing follows from it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Heard(Callback):
    """Tells a person how far each is."""

    def __init__(self, names: list[str], epochs: int, say: Say) -> None:
        self._names = names
        self._epochs = epochs
        self._say = say
        self._told: dict[str, int] = {}
        self.scores: dict[str, str] = {}
        """Of those that are done, what validation.csv says."""

    def on_trial_result(self, trial: Any, result: Mapping[str, Any], **_: Any) -> None:
        """A further epoch, or a sign of life."""
        name = self._names[trial.config["number"]]
        for text in result["scores"].values():  # of the one training that each has
            self.scores[name] = text
        if result["epoch"] > self._told.get(name, 0):
            self._told[name] = result["epoch"]
            self._say(f"{name}: epoch {result['epoch']} of {self._epochs}, DSC {result['dsc']:.4f}")

    def on_trial_recover(self, trial: Any, **_: Any) -> None:
        """A failure after which it is tried again."""
        self._say(f"{self._names[trial.config['number']]}: failed and is tried again: {why(trial)}")

    def on_trial_error(self, trial: Any, **_: Any) -> None:
        """The last failure."""
        self._say(f"{self._names[trial.config['number']]}: failed: {why(trial)}")

    def __getstate__(self) -> dict[str, Any]:
        return {}


def compared(output: Path, winner: int) -> FinalComparison | None:
    """What was compared before, if it was this trial."""
    try:
        told = json.loads((output / NAME).read_text(encoding="utf-8"))
        told["per_fold"] = {name: tuple(pair) for name, pair in told["per_fold"].items()}
        known = FinalComparison(**(told | {key: tuple(told[key]) for key in ("folds", "seeds")}))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if known.winner == winner else None
