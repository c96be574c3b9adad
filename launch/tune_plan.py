"""What `sonotrain tune --dry-run` tells: what would be tried and judged, on what, and how long it would take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.options import write_json
from launch.terminal import say, show_table

if TYPE_CHECKING:
    from tuning.journal import TrialRecord
    from tuning.playing import Plan
    from tuning.settings import Tuning
    from tuning.simulator import Forecast, Measured, Spread

NODES = (1, 2, 4, 8)
"""Of clusters that a forecast is made for, where none is named."""

PLAYED = 3200
"""Trials that are played through for a forecast, at most; of large searches fewer runs do."""

UNMEASURED = (
    "Nothing is measured yet, and no hours can be told: run this search with tune.trials=2 tune.scheduler=none "
    "output=DIR, then this again with --measured DIR"
)

_SEARCHES = {"asha": "asha", "none": "full"}
"""The schedulers that are set side by side, and how a person is told of them."""


@dataclass(frozen=True)
class Expected:
    """A search on so many nodes: trials at once, and what it comes to under a scheduler."""

    nodes: int
    slots: int
    scheduler: str
    forecast: Forecast


def show_plan(
    tuning: Tuning,
    nodes: int | None = None,
    measured: Path | None = None,
    slots_per_node: int = 1,
    gpus: int = 0,
    json: Path | None = None,
) -> None:
    """Tell of a search before anything of it is started, and forecast it from the trials of a study, if there is one.

    nodes: the cluster's; 1, 2, 4 and 8 where none are named. measured: a study's folder; if not given, the search's own
    output, where a study lies there. slots_per_node: of how many trials a node holds a part at the same time. gpus: of
    a process. Raises WrongCall for a dataset or folds that cannot be, and for fewer nodes than a trial has, Fault for a
    folder without a study or one in which no trial has reported.
    """
    from data_pipeline import WrongCall
    from trainer.feasible import dataset_of
    from tuning.final import unseen_folds
    from tuning.playing import plan_of

    tune, config = tuning.tune, tuning.config
    if nodes is not None and nodes < tune.nodes:
        raise WrongCall(f"--nodes {nodes} is less than a trial has; tune.nodes={tune.nodes}")
    unseen = unseen_folds(tune, dataset_of(config))
    plan = plan_of(tuning, slots_per_node, gpus)
    show_table("What is searched", ("key", "values", "first trial"), _space(tuning))
    for line in (*_search(tuning, plan), *_trial(tuning, plan, unseen, slots_per_node)):
        say(line)
    content: dict[str, Any] = _content(tuning, plan, unseen)
    own = Path(config.output)
    folder = measured or (own if (own / "journal.jsonl").is_file() else None)
    if folder is None:
        say(UNMEASURED)
    else:
        content |= _forecast(tuning, plan, folder, nodes, slots_per_node, unseen)
    write_json(json, content)


def _forecast(
    tuning: Tuning, plan: Plan, folder: Path, nodes: int | None, slots_per_node: int, unseen: Sequence[int]
) -> dict[str, Any]:
    """Show what the trials in a folder say that the search will come to; and the same for machines."""
    from tuning.journal import read_journal
    from tuning.simulator import Measured, finite

    trials = [trial for trial in read_journal(folder).trials.values() if finite(trial)]
    measured = Measured.of(trials)
    for line in _measured(measured, trials, folder, tuning):
        say(line)
    expected = list(_expected(measured, plan, nodes, slots_per_node))
    columns = ("nodes", "trials at once", "search", "hours", "epochs", "of all", "core-hours")
    with_gpus = (*columns, "GPU-hours") if plan.gpus else columns
    title = "What it will take, full if it trains every trial to the end: the median (and nine runs in ten)"
    show_table(title, with_gpus, (_row(each, bool(plan.gpus)) for each in expected), numbers=True)
    if tuning.tune.scheduler == "population":
        say("A population trains every trial to the end, and takes what that takes.")
    final = 2 * len(unseen) * max(1, len(tuning.tune.seeds))
    hours = final * measured.training_seconds(plan.epochs) / 3600
    if final:
        say(f"Beyond that, the comparison at the end: {_count(final, 'training')}, {hours:.2g} hours one by one.")
    return {
        "measured": {
            "study": str(folder),
            "trials": len(trials),
            "epoch_seconds": measured.epoch_seconds,
            "start_seconds": measured.start_seconds,
        },
        "forecasts": [asdict(each) for each in expected],
        "comparison": {"trainings": final, "hours": hours},
    }


def _expected(measured: Measured, plan: Plan, nodes: int | None, slots_per_node: int) -> Iterator[Expected]:
    """For each number of nodes, up to that with which all trials run at once, halving beside a full search."""
    from dataclasses import replace

    from tuning.settings import milestones
    from tuning.simulator import RUNS, simulate

    tune = plan.tune
    runs = max(20, min(RUNS, PLAYED // tune.trials))
    before = 0
    for count in [nodes] if nodes else [times * tune.nodes for times in NODES]:
        slots = min(count * slots_per_node // tune.nodes, tune.concurrent or tune.trials, tune.trials)
        if slots == before:
            return
        before = slots
        for scheduler in _SEARCHES:
            if scheduler == "none" or len(milestones(tune, plan.epochs)) > 1:
                changes = {"scheduler": scheduler}
                one = replace(plan, slots=slots, tune=tune.model_copy(update=changes))
                yield Expected(count, slots, scheduler, simulate(measured, one, runs))


def _space(tuning: Tuning) -> Iterator[tuple[str, str, str]]:
    from tuning.labels import written
    from tuning.space import Choices, paper_values

    first = paper_values(tuning.space, tuning.config)
    for key, dimension in tuning.space.dimensions.items():
        if isinstance(dimension, Choices):
            values = " | ".join(written(value) for value in dimension.values)
        else:
            scale = ", logarithmic" if dimension.log else ""
            values = f"{dimension.low:g} to {dimension.high:g}{scale}{', and 0' if dimension.zero else ''}"
        yield key, values, written(first[key])


def _search(tuning: Tuning, plan: Plan) -> Iterator[str]:
    tune = tuning.tune
    by = "the tree-structured Parzen estimator" if tune.searcher == "tpe" else "chance"
    if tune.scheduler == "population":
        by = "chance, and exchanged"
    yield f"search: {_count(tune.trials, 'trial')}, the first with the paper's weights, the others proposed by {by}"
    yield f"epochs: {plan.epochs}, {_schedule(tuning, plan)}"
    folds, seeds = tune.folds or (1,), tune.seeds or (tuning.config.seed,)
    yield (
        f"judged by: {_list('fold', folds)} held out, with {_list('seed', seeds)}: "
        f"{_count(plan.trainings, 'training')} a trial, at most {plan.full} epochs in all"
    )


def _schedule(tuning: Tuning, plan: Plan) -> str:
    from tuning.settings import milestones

    tune = tuning.tune
    if tune.scheduler == "population":
        return f"after every {tune.exchange_epochs} of which the worst go on from the best"
    rungs = milestones(tune, plan.epochs)[:-1]
    if tune.scheduler == "none" or not rungs:
        return "to which every trial is trained"
    judged = [
        f"{rung} ({_count(min(count, plan.trainings), 'training')})" if tune.trainings_by_rung else str(rung)
        for rung, count in zip(rungs, _counts(tune.trainings_by_rung, plan.trainings, len(rungs)), strict=True)
    ]
    return f"judged after {', '.join(judged)}, where about one in {tune.reduction} goes on"


def _counts(asked: Sequence[int], trainings: int, rungs: int) -> list[int]:
    return [*asked, *[trainings] * (rungs - len(asked))]


def _trial(tuning: Tuning, plan: Plan, unseen: Sequence[int], slots_per_node: int) -> Iterator[str]:
    tune = tuning.tune
    kept = _list("fold", unseen) if unseen else "no fold"
    yield f"unseen: {kept}, kept for the comparison of the best with the paper's weights"
    on_nodes = f"{tune.nodes} nodes x " if tune.nodes > 1 else ""
    of_gpus = f", {_count(plan.gpus, 'GPU')}" if plan.gpus else ""
    room = f"{slots_per_node} on a node" if tune.nodes == 1 else f"of {slots_per_node} a part on a node"
    limit = f", at most {tune.concurrent}" if tune.concurrent else ""
    yield (
        f"a trial takes: {on_nodes}{tune.processes} x {_count(tune.cpus, 'core')} = {_count(plan.cores, 'core')}"
        f"{of_gpus}; at the same time {room}{limit}"
    )


def _measured(measured: Measured, trials: Sequence[TrialRecord], folder: Path, tuning: Tuning) -> Iterator[str]:
    epochs = sum(trial.trained for trial in trials)
    yield (
        f"measured: {_count(len(trials), 'trial')} in {folder}, {_count(epochs, 'epoch')}; an epoch takes "
        f"{measured.epoch_seconds:.3g} s, a training's start {measured.start_seconds:.3g} s"
    )
    if other := _differences(folder, tuning):
        more = f" and {len(other) - 3} more keys" if len(other) > 3 else ""
        yield f"measured otherwise: {', '.join(other[:3])}{more}; what follows is as if that made no difference"


def _differences(folder: Path, tuning: Tuning) -> list[str]:
    """Keys, with both values, that were otherwise where trials were measured, and that their seconds may depend on."""
    from tuning.settings import load_tuning
    from tuning.study_folder import MAY_CHANGE

    if not (folder / "study.yaml").is_file():
        return []

    searched = set(tuning.space.dimensions) | {key.rpartition(".")[0] for key in tuning.space.dimensions}

    def told(of: Tuning) -> dict[str, Any]:
        size = {f"tune.{key}": getattr(of.tune, key) for key in ("nodes", "processes", "cpus", "gpus")}
        return size | {key: value for key, value in of.config.flat().items() if key not in {*MAY_CHANGE, *searched}}

    there, here = told(load_tuning(str(folder / "study.yaml"))), told(tuning)
    return [f"{key}={value} (here {here[key]})" for key, value in there.items() if here.get(key, value) != value]


def _content(tuning: Tuning, plan: Plan, unseen: Sequence[int]) -> dict[str, Any]:
    from tuning.settings import milestones, trainings
    from tuning.space import paper_values

    first = paper_values(tuning.space, tuning.config)
    space = {key: {**asdict(of), "first": first[key]} for key, of in tuning.space.dimensions.items()}
    return {
        "space": space,
        "trials": tuning.tune.trials,
        "scheduler": tuning.tune.scheduler,
        "epochs": plan.epochs,
        "rungs": milestones(tuning.tune, plan.epochs)[:-1] if tuning.tune.scheduler == "asha" else [],
        "trainings": [asdict(training) for training in trainings(tuning.tune, tuning.config)],
        "unseen": list(unseen),
        "trial": {
            "nodes": tuning.tune.nodes,
            "processes": tuning.tune.nodes * tuning.tune.processes,
            "cores": plan.cores,
            "gpus": plan.gpus,
        },
    }


def _row(each: Expected, gpus: bool) -> Iterator[object]:
    told = each.forecast
    yield from (each.nodes, each.slots, _SEARCHES[each.scheduler])
    yield _range(told.seconds, 1 / 3600)
    yield _range(told.trained)
    yield f"{100 * told.share.median:.0f} %"
    yield _range(told.core_hours)
    if gpus:
        yield _range(told.gpu_hours)


def _range(spread: Spread, factor: float = 1.0) -> str:
    """12 (10-15), or the number alone where all runs came to the same."""
    middle, low, high = (_number(factor * value) for value in (spread.median, spread.low, spread.high))
    return middle if low == high else f"{middle} ({low}-{high})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _list(what: str, numbers: Sequence[int]) -> str:
    return f"{what}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
