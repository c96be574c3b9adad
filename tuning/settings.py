"""What a search is told: the branch `tune` that a configuration has for `sonotrain tune`, beside its training's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import Field

from data_pipeline import WrongCall
from trainer.config import Branch, Config, Positive, branch_of, changed, config_of
from trainer.sources import read_tree
from tuning.space import Space, nested, space_of


class Tune(Branch):
    """A search over configurations: what is tried, how it is judged, and on how much of a cluster."""

    space: dict[str, Any] = Field(default={})
    """Keys that vary, each with {low, high}, also {log: true} and {zero: true}, or a list of choices; objective.alpha.2
    is the weight of stage 2. None named means alpha.2 to .4, beta.1 to .4, both rates, the discriminators' settings."""
    trials: Positive = 32
    """Configurations that are tried; the first has the paper's weights."""
    searcher: Literal["tpe", "random"] = "tpe"
    """What proposes them: Optuna's tree-structured Parzen estimator, which learns from those before, or chance."""
    scheduler: Literal["asha", "none", "population"] = "asha"
    """What ends trials early: successive halving on epochs, nothing, or population-based training, in which the worst
    trials go on from the best ones' weights."""
    first_rung: Annotated[int, Field(ge=0)] = 0
    """Epochs after which asha judges a trial for the first time; 0 for training.epochs / reduction², rounded up."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """Of so many trials asha lets one go on at a rung; the next rung is so many times as high."""
    exchange_epochs: Positive = 1
    """Epochs between two exchanges of a population."""
    folds: tuple[Positive, ...] = ()
    """Folds held out in turn by each trial, whose mean DSC is its measure; none named means the first."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Seeds with which each of them is trained; none named means the configuration's own."""
    trainings_by_rung: tuple[Positive, ...] = ()
    """How many of a trial's trainings (folds with the first seed, then with the next) are taken to the first rung, to
    the second and so on; all of them beyond. None named means all from the start."""
    unseen: tuple[Positive, ...] | None = None
    """Folds that no trial learns from or is judged by, for the comparison of the best with the paper's weights at the
    end; not set, the last of the dataset; an empty list for no comparison."""
    nodes: Positive = 1
    """Machines of a trial."""
    processes: Positive = 1
    """Processes of a trial on each of its machines."""
    cpus: Positive = 1
    """Cores of a process."""
    gpus: Annotated[int, Field(ge=0, le=1)] | None = None
    """GPUs of a process, 0 or 1; not set, 1 where the cluster has GPUs."""
    concurrent: Annotated[int, Field(ge=0)] = 0
    """Trials at the same time at most; 0 for as many as there is room for."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a trial that failed is tried again, from its last checkpoint."""
    keep: Positive = 3
    """Of so many of the best trials the weights are kept; of all others only what was measured."""
    storage: str = ""
    """A path or s3://bucket/prefix for copies of checkpoints and of the journal, from which any machine goes on; not
    set, they are in the output folder alone, which all machines of a cluster then have to share."""


@dataclass(frozen=True)
class Tuning:
    """A search as it was asked for: the configuration that varies, and how."""

    source: str
    """The preset or file that it came from."""
    config: Config
    tune: Tune
    space: Space


@dataclass(frozen=True)
class Training:
    """One of those that a trial consists of: a fold held out, and a seed. Its folder has its name."""

    name: str
    fold: int
    seed: int


def trainings(tune: Tune, config: Config) -> list[Training]:
    """Those of a trial, in their order: all folds with the first seed, then all with the next."""
    seeds = tune.seeds or (config.seed,)
    return [
        Training(f"fold-{fold}-seed-{seed}" if len(seeds) > 1 else f"fold-{fold}", fold, seed)
        for seed in seeds
        for fold in tune.folds or (1,)
    ]


def validated_every(tune: Tune, config: Config) -> int:
    """Epochs between a trial's validations: each is followed by one where trials are judged on the way."""
    return config.validation.every_epochs if tune.scheduler == "none" else 1


def milestones(tune: Tune, epochs: int) -> list[int]:
    """The rungs: epochs after which asha judges a trial, and the last epoch, after which there is nothing to judge."""
    rungs, epoch = [], tune.first_rung or ceil(epochs / tune.reduction**2)
    while epoch < epochs:
        rungs.append(epoch)
        epoch *= tune.reduction
    return [*rungs, epochs]


def legs(tune: Tune, epochs: int, count: int) -> list[tuple[int, int]]:
    """Up to which epoch how many of a trial's trainings, of which it has count, are taken before any goes further.

    A rung, or an exchange of a population, needs all that count for it, and so ends a leg.
    """
    if tune.scheduler == "population":
        return [(epoch, count) for epoch in (*range(tune.exchange_epochs, epochs, tune.exchange_epochs), epochs)]
    rungs = milestones(tune, epochs)[:-1] if tune.scheduler == "asha" else []
    wanted = [*tune.trainings_by_rung, *[count] * len(rungs)]
    return [*zip(rungs, wanted, strict=False), (epochs, count)]


def load_tuning(source: str, changes: Sequence[str] = ()) -> Tuning:
    """The search of a preset's name or a YAML file, with `key=value` changes, those of `tune.` among them, in order.

    Raises WrongCall, in one line, for what `load_config` refuses, an unknown key, a range that is none, and a search
    whose settings contradict each other.
    """
    tree = read_tree(source)
    if "variants" in tree:
        raise WrongCall(f"{source} is a study of several variants; carry it out with sonotrain crossval {source}")
    asked = tree["tune"] = _branch(tree.get("tune"), source, "tune")
    asked["space"] = nested(_branch(asked.get("space"), source, "tune.space"))
    changed(tree, changes)
    tune = branch_of(Tune, _branch(tree.pop("tune"), source, "tune"), source, "tune")
    config = config_of(tree, source)
    _check(tune, config, source)
    return Tuning(source, config, tune, space_of(tune.space, config))


def _branch(tree: Any, source: str, key: str) -> dict[str, Any]:
    """A branch as it was written, which may be empty."""
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise WrongCall(f"{source}: {key}={tree!r}: has to be a map of keys to values")
    return tree


def _check(tune: Tune, config: Config, source: str) -> None:
    """Raise WrongCall for the first setting that another one contradicts."""
    flat = {**config.flat(), **{f"tune.{key}": value for key, value in tune.model_dump(mode="json").items()}}
    for key, why in _contradictions(tune, config):
        raise WrongCall(f"{source}: {key}={flat[key]}: {why}")


def _contradictions(tune: Tune, config: Config) -> Iterator[tuple[str, str]]:
    """Settings with what is wrong with them, and what to do."""
    if config.data.unseen:
        yield "data.unseen", "a search keeps folds unseen for its end; name them under tune.unseen"
    if config.training.patience:
        yield "training.patience", "a search ends trials by itself; set training.patience=0"
    for key, named in (("folds", tune.folds), ("seeds", tune.seeds), ("unseen", tune.unseen or ())):
        if len(set(named)) < len(named):
            yield f"tune.{key}", "name each once"
    both = {training.fold for training in trainings(tune, config)} & set(tune.unseen or ())
    if both:
        yield "tune.unseen", f"trials are judged by fold {min(both)}; name others, or others under tune.folds"
    if tune.scheduler == "asha":
        yield from _of_rungs(tune, config)
    elif tune.trainings_by_rung:
        yield "tune.trainings_by_rung", f"only asha has rungs; tune.scheduler is {tune.scheduler}"
    if tune.scheduler == "population":
        yield from _of_exchanges(tune, config)


def _of_rungs(tune: Tune, config: Config) -> Iterator[tuple[str, str]]:
    epochs = config.training.epochs
    if tune.first_rung > epochs:
        yield "tune.first_rung", f"is beyond the last epoch; training.epochs={epochs}"
    wanted, rungs = tune.trainings_by_rung, milestones(tune, epochs)[:-1]
    if len(wanted) > len(rungs):
        before = ", ".join(map(str, rungs)) or "none"
        yield "tune.trainings_by_rung", f"the rungs before the last epoch are {len(rungs)} ({before}); name fewer"
    if list(wanted) != sorted(wanted):
        yield "tune.trainings_by_rung", "a higher rung cannot have fewer"
    count = len(trainings(tune, config))
    if max(wanted, default=0) > count:
        yield "tune.trainings_by_rung", f"a trial has {count}, its folds times its seeds; name fewer, or more folds"


def _of_exchanges(tune: Tune, config: Config) -> Iterator[tuple[str, str]]:
    epochs = config.training.epochs
    if tune.trials < 2:
        yield "tune.trials", "a population has two or more"
    if tune.storage:
        yield "tune.storage", "weights are handed on in the output folder, which all machines share; leave it out"
    if tune.concurrent:
        yield "tune.concurrent", "a population takes turns on all the room that there is; leave it out"
    if tune.exchange_epochs >= epochs:
        yield "tune.exchange_epochs", f"nothing is exchanged before the last epoch; training.epochs={epochs}"
