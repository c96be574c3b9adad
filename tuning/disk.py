"""What stays of trials on the disk: of the best their weights, of all others what was measured."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from trainer.checkpoint_files import MANIFEST, begin, clear_away, discard, names, publish
from trainer.serving.opening import DESCRIPTION, WEIGHTS
from tuning.journal import StudyRecord, TrialRecord


def tidy(trials: Path, study: StudyRecord, keep: int) -> None:
    """Bring the folders of trials that have ended to what is to stay, where they are within reach.

    Of the best `keep` that have not failed each training keeps its last checkpoint's weights, as a model to evaluate;
    all else that a training goes on from is removed.
    """
    best = {trial.number for trial in study.best()[:keep]}
    for trial in study.trials.values():
        if trial.how is not None:
            for checkpoints in _checkpoints(trials, trial):
                if trial.number in best:
                    keep_weights(checkpoints)
                else:
                    shutil.rmtree(checkpoints, ignore_errors=True)


def keep_weights(checkpoints: Path) -> None:
    """Leave of a training's checkpoints the last one's network alone; where the disk refuses that, the last one."""
    *older, last = names(checkpoints) or [""]
    if not last:
        return
    for name in older:
        discard(checkpoints / name)
    target = checkpoints / last
    if {path.name for path in target.iterdir()} > {DESCRIPTION, WEIGHTS, MANIFEST}:
        try:
            partial = begin(target)
            for name in (DESCRIPTION, WEIGHTS):
                shutil.copy2(target / name, partial / name)
            publish(target, {}, {})
        except OSError:
            clear_away(checkpoints)


def _checkpoints(trials: Path, trial: TrialRecord) -> Iterable[Path]:
    return sorted((trials / f"{trial.number:04d}").glob("**/checkpoints"))
