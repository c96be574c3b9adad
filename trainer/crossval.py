"""Cross-validation: a training for each fold, held out in turn; their networks as one, and one of them registered."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipeline import Dataset, Fault, WrongCall
from trainer.atomic import replacing
from trainer.config import Config
from trainer.ensemble import write_ensemble
from trainer.feasible import check, dataset_of
from trainer.loop import memory_for, train_fold
from trainer.metrics import MEASURES, SURFACE_MEASURES
from trainer.processes import World, joined
from trainer.registry import RegisteredModel, register
from trainer.run_folder import RunFolder, TrainingResult
from trainer.stopping import Stopped
from trainer.tracking import Run, start_run

log = logging.getLogger("sonotrain")

ALIAS = "candidate"
"""Under which a network is registered: promotion to champion is a person's decision."""


@dataclass(frozen=True)
class CrossvalSummary:
    """Each fold's result, and of each measure's mean on a fold the mean and standard deviation over folds.

    mean and sd leave out what has no value; sd needs two folds. ensemble is the folder of all folds' networks as one
    model. registered says which was to be registered; model is None where nothing could be.
    """

    output: str
    folds: Mapping[int, TrainingResult]
    mean: Mapping[str, float]
    sd: Mapping[str, float]
    best_fold: int
    ensemble: str
    registered: Literal["best_fold", "ensemble"]
    model: RegisteredModel | None


def crossval(config: Config) -> CrossvalSummary:
    """Train with each of the held_out_folds held out in turn, as child runs of one run in MLflow.

    A fold that is finished in the output folder is not trained again. Raises WrongCall before anything is
    written where a fold does not exist or cannot be trained, or where another configuration's run lies.
    """
    dataset = dataset_of(config)
    folds = held_out_folds(config, dataset)
    output = Path(config.output)
    with joined(config.training.timeout_minutes) as world, memory_for(config, dataset) as resident:
        each = {fold: of_fold(config, fold) for fold in folds}
        for one in each.values():
            check_startable(one, dataset, world)
        with parent_run(output, config, config.flat(), dataset, world, "crossval") as run:
            results = {}
            for fold, one in each.items():
                if world.leads:
                    print(f"holding out fold {fold} (of {', '.join(map(str, folds))})", flush=True)
                results[fold] = train_fold(one, dataset, world, resident, parent=run.id)
            summary = world.tell(_summarised(output, results, config, run) if world.leads else None)
    assert summary is not None
    return summary


def held_out_folds(config: Config, dataset: Dataset) -> tuple[int, ...]:
    """The folds named, or all of the dataset but those kept unseen. Raises WrongCall where these are none."""
    unseen = config.data.unseen
    folds = config.folds or tuple(fold for fold in dataset.folds() if fold not in unseen)
    if not folds:
        raise WrongCall(f"data.unseen={list(unseen)}: {dataset.uri} has no other fold to hold out; name fewer")
    return folds


def of_fold(config: Config, fold: int) -> Config:
    """The training that holds this fold out, in a folder of its own below the output."""
    own = f"fold-{fold}"
    mirror = config.checkpoints.mirror and f"{config.checkpoints.mirror.rstrip('/')}/{own}"
    return config.replace(data__fold=fold, output=str(Path(config.output) / own), checkpoints__mirror=mirror)


def check_startable(config: Config, dataset: Dataset, world: World) -> None:
    """Raise WrongCall for a training that cannot be, or whose folder holds another configuration's."""
    check(config, dataset, world.size)
    if world.leads:
        RunFolder(Path(config.output)).require_same(config, dataset.index.digest)


@contextmanager
def parent_run(
    output: Path,
    config: Config,
    params: Mapping[str, Any],
    dataset: Dataset,
    world: World,
    kind: str,
    parent: str | None = None,
) -> Iterator[Run]:
    """The run in MLflow that others belong to: the one that this output folder began with, where it goes on.

    params are what all below it have in common, kind becomes a tag; parent is the id of the run that this one belongs
    to itself. The run is finished at the end.
    """
    note = output / "tracking.json"  # run.json would be that of a training in the same folder
    run = start_run(
        name=output.name,
        experiment=config.tracking.experiment,
        params={**params, "world_size": world.size},
        tags={"dataset.name": dataset.index.name, "dataset.digest": dataset.index.digest, "kind": kind},
        parent=parent,
        resume=json.loads(note.read_text(encoding="utf-8"))["run_id"] if note.exists() else None,
        rank=world.rank,
    )
    if run.id:
        with replacing(note) as partial:
            partial.write_text(json.dumps({"run_id": run.id}), encoding="utf-8")
    try:
        yield run
    except BaseException as ended:
        run.finish("KILLED" if isinstance(ended, Stopped) else "FAILED")
        raise
    run.finish()


def _summarised(output: Path, results: dict[int, TrainingResult], config: Config, run: Run) -> CrossvalSummary:
    """Mean and spread over folds, written down, the networks as one model, and one of these registered."""
    mean, sd = spread([result.validation for result in results.values()])
    run.metrics({f"{name}.mean": value for name, value in mean.items()}, step=0)
    run.metrics({f"{name}.sd": value for name, value in sd.items()}, step=0)
    path, ensemble = output / "crossval.json", output / "ensemble"
    before = _told_before(path, results)
    if not (before and ensemble.exists()):
        shutil.rmtree(ensemble, ignore_errors=True)
        write_ensemble([Path(result.checkpoint) for result in results.values()], ensemble)
    best = max(results, key=lambda fold: results[fold].validation["dsc"]["mean"] or 0.0)
    wanted = config.tracking.registers
    if before and before["model"] and before["registered"] == wanted:
        model: RegisteredModel | None = RegisteredModel(**before["model"])
    elif wanted == "ensemble":
        model = _registered(ensemble, results, config, run, mean, sd)
    else:
        model = _registered(Path(results[best].checkpoint), {best: results[best]}, config, run, mean, sd)
    summary = CrossvalSummary(str(output), results, mean, sd, best, str(ensemble), wanted, model)
    with replacing(path) as partial:
        partial.write_text(json.dumps(asdict(summary), indent=1), encoding="utf-8")
    run.artifact(path)
    return summary


def _told_before(path: Path, results: Mapping[int, TrainingResult]) -> dict[str, Any] | None:
    """What was written down when these same results were summarised before."""
    if not path.exists():
        return None
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = {fold: entry["validation"] for fold, entry in told["folds"].items()} == {
        str(fold): result.validation for fold, result in results.items()
    }
    return told if same and "registered" in told else None


def _registered(
    model_folder: Path,
    members: Mapping[int, TrainingResult],
    config: Config,
    run: Run,
    mean: Mapping[str, float],
    sd: Mapping[str, float],
) -> RegisteredModel | None:
    """A model of these folds' networks in the registry, with their means, each on the fold that it never saw.

    A tracker that is out of reach costs the registration alone; without tracking there is none.
    """
    if not config.tracking.experiment:
        log.info("not registered: tracking.experiment is empty")
        return None
    measured, _ = spread([result.validation for result in members.values()])
    over_folds = {f"crossval_{name}_mean": value for name, value in mean.items()}
    over_folds |= {f"crossval_{name}_sd": value for name, value in sd.items()}
    first = next(iter(members.values()))
    tags = {
        "dataset_digest": first.digest,
        "held_out_fold": " ".join(map(str, members)),
        "network": config.network.name,
        "seed": str(config.seed),
        "surface_unit": first.validation["unit"],
    }
    try:
        return register(model_folder, config.tracking.model, ALIAS, run.id, {**measured, **over_folds}, tags)
    except Fault as out_of_reach:
        log.warning("%s", out_of_reach)
        return None


def spread(validations: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and sample standard deviation over folds of each measure's mean on a fold.

    Surface measures are left out where one fold has them in mm and another in pixels.
    """
    mean, sd = {}, {}
    one_unit = len({fold["unit"] for fold in validations}) == 1
    for name in MEASURES if one_unit else [name for name in MEASURES if name not in SURFACE_MEASURES]:
        values = [fold[name]["mean"] for fold in validations if fold[name]["mean"] is not None]
        if values:
            mean[name] = statistics.fmean(values)
        if len(values) > 1:
            sd[name] = statistics.stdev(values)
    return mean, sd
