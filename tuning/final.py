"""The winner of a search against the paper's weights, on folds that no trial learnt from or was judged by."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data_pipeline import Dataset, Fault, WrongCall
from trainer.comparison import compare
from trainer.config import Config
from trainer.metrics import ScanScore
from tuning.settings import Training, Tune, Tuning, trainings
from tuning.space import paper_values, with_values

Side = Literal["best", "paper"]

FOLDER = "final"
"""Below a study's output: FOLDER/SIDE/TRAINING is the folder of each of these trainings."""


@dataclass(frozen=True)
class FinalComparison:
    """DSC of the winner and of the paper's weights on the scans with a lesion of the unseen folds.

    Both sides are trained anew, once for each of those folds and each seed, on all other folds; a scan's score is the
    mean over seeds. best and paper are means over scans, difference is that of best minus paper, low and high bound
    its 95 % bootstrap interval over patients, p is that of the sign-flip test over patients (trainer.resampling tells
    of both); all fractions of 1. low and high are None where there are fewer than two patients. winner is the number
    of its trial. per_fold gives by the name of a training the mean DSC of both, the winner's first.
    """

    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    best: float
    paper: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    cases: int
    patients: int
    winner: int
    per_fold: Mapping[str, tuple[float, float]]


def unseen_folds(tune: Tune, dataset: Dataset) -> tuple[int, ...]:
    """The folds that are kept for the comparison, none where none is wanted.

    Raises WrongCall for one that does not exist or by which trials are judged, and where trials could not learn.
    """
    judged, folds = tune.folds or (1,), list(dataset.folds())
    unseen = tuple(folds[-1:] if tune.unseen is None else tune.unseen)
    key = f"tune.unseen={list(unseen)}" if tune.unseen is not None else f"tune.unseen (not set: fold {folds[-1]})"
    if not set(unseen) <= set(folds):
        raise WrongCall(f"{key}: {dataset.uri} has the folds {', '.join(map(str, folds))}")
    if both := sorted(set(unseen) & set(judged)):
        raise WrongCall(
            f"{key}: trials are judged by fold {both[0]}; name others, or tune.unseen=[] for no comparison at the end"
        )
    if unseen and any(not set(folds) - {fold, *unseen} for fold in judged):
        raise WrongCall(
            f"{key}: {dataset.uri} has {len(folds)} folds, and trials are left with none to learn from; set "
            "tune.unseen=[] for no comparison at the end, or ingest it with --folds 5"
        )
    return unseen


def final_trainings(
    tuning: Tuning, values: Mapping[str, Any], unseen: Sequence[int]
) -> list[tuple[Side, Training, Config]]:
    """The trainings of the winner, which has these values, and of the paper's weights, in their order.

    For each unseen fold and each seed both sides follow one another. None where there is nothing to compare: no fold
    is unseen, or the winner has the paper's weights.
    """
    sides: dict[Side, Config] = {
        "best": with_values(tuning.config, values),
        "paper": with_values(tuning.config, paper_values(tuning.space, tuning.config)),
    }
    if not unseen or sides["best"] == sides["paper"]:
        return []
    held_out = trainings(tuning.tune.model_copy(update={"folds": tuple(unseen)}), tuning.config)
    storage = tuning.tune.storage.rstrip("/")
    return [
        (side, one, _final(config, f"{FOLDER}/{side}/{one.name}", one, storage))
        for one in held_out
        for side, config in sides.items()
    ]


def _final(config: Config, own: str, one: Training, storage: str) -> Config:
    """A side's training: on all folds but the one that it is compared on, by which nothing is chosen here either."""
    return config.replace(
        output=str(Path(config.output).absolute() / own),
        seed=one.seed,
        data__fold=one.fold,
        data__unseen=(),
        validation__threshold="half",
        checkpoints__mirror=f"{storage}/{own}" if storage else "",
        tracking__experiment="",
    )


def compare_final(
    scores: Mapping[Side, Mapping[str, Sequence[ScanScore]]], held_out: Sequence[Training], winner: int
) -> FinalComparison:
    """Compare both sides on the scans that these trainings held out. scores has each one's by side and its name.

    Raises Fault where a side, or a seed, has judged other scans than the other, and where none has a lesion.
    """
    best, paper = (_over_seeds(scores[side], held_out) for side in ("best", "paper"))
    told = compare(paper, best)
    if told.only_in_first or told.only_in_second:
        alone = (told.only_in_first + told.only_in_second)[0]
        raise Fault(f"{FOLDER}: {alone} was judged on one side alone; remove the folder of its fold to train anew")
    dsc = told.measures["dsc"]
    if dsc.first is None or dsc.second is None or dsc.difference is None:
        raise Fault(f"{FOLDER}: no scan of the unseen folds has a lesion, so nothing can be compared")
    return FinalComparison(
        folds=tuple(dict.fromkeys(one.fold for one in held_out)),
        seeds=tuple(dict.fromkeys(one.seed for one in held_out)),
        best=dsc.second,
        paper=dsc.first,
        difference=dsc.difference,
        low=dsc.low,
        high=dsc.high,
        p=dsc.p,
        cases=told.cases,
        patients=told.patients,
        winner=winner,
        per_fold={
            one.name: (_mean(scores["best"][one.name]), _mean(scores["paper"][one.name]))
            for one in held_out
            if any(score.lesion for score in scores["best"][one.name])
        },
    )


def _over_seeds(of_side: Mapping[str, Sequence[ScanScore]], held_out: Sequence[Training]) -> list[ScanScore]:
    """Each scan once, with the mean of its DSC over seeds; its other measures are those of the first."""
    folds: dict[int, list[Mapping[str, ScanScore]]] = {}
    for one in held_out:
        folds.setdefault(one.fold, []).append({score.key: score for score in of_side[one.name]})
    return [score for fold, of_seeds in folds.items() for score in _averaged(fold, of_seeds)]


def _averaged(fold: int, of_seeds: Sequence[Mapping[str, ScanScore]]) -> Iterator[ScanScore]:
    if any(of_seed.keys() != of_seeds[0].keys() for of_seed in of_seeds):
        raise Fault(f"{FOLDER}: seeds have not judged the same scans of fold {fold}; remove its folders to train anew")
    for key, first in of_seeds[0].items():
        values = [dsc for of_seed in of_seeds if (dsc := of_seed[key].dsc) is not None]
        yield replace(first, dsc=statistics.fmean(values) if values else None)


def _mean(scores: Sequence[ScanScore]) -> float:
    return statistics.fmean(score.dsc for score in scores if score.dsc is not None)
