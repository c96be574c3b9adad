"""Cross-validation: a training for each fold, held out in turn, and the best fold's network registered."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline import Dataset, Fault
from trainer.atomic import replacing
from trainer.config import Config
from trainer.feasible import check, dataset_of
from trainer.loop import memory_for, train_fold
from trainer.metrics import MEASURES
from trainer.processes import World, joined
from trainer.registry import RegisteredModel, register
from trainer.run_folder import TrainingResult
from trainer.tracking import Run, start_run

log = logging.getLogger("sonotrain")

ALIAS = "candidate"
"""Under which the best fold's network is registered: promotion to champion is a person's decision."""


@dataclass(frozen=True)
class CrossvalSummary:
    """Each fold's result, and of each measure's mean on a fold the mean and standard deviation over folds.

    mean and sd leave out what has no value; sd needs two folds. model is None where nothing could be registered.
    """

    output: str
    folds: Mapping[int, TrainingResult]
    mean: Mapping[str, float]
    sd: Mapping[str, float]
    best_fold: int
    model: RegisteredModel | None


def crossval(config: Config) -> CrossvalSummary:
    """Train with each fold of config.folds (or of the dataset) held out, as child runs of one run in MLflow.

    A fold that is finished in the output folder is not trained again. Raises WrongCall before anything is
    written where a fold does not exist or cannot be trained.
    """
    dataset = dataset_of(config)
    folds = config.folds or tuple(dataset.folds())
    output = Path(config.output)
    with joined(config.training.timeout_minutes) as world, memory_for(config, dataset) as resident:
        each = {fold: config.replace(data__fold=fold, output=str(output / f"fold-{fold}")) for fold in folds}
        for one in each.values():
            check(one, dataset, world.size)
        run = _parent_run(output, config, dataset, world)
        try:
            results = {}
            for fold, one in each.items():
                if world.leads:
                    print(f"holding out fold {fold} (of {', '.join(map(str, folds))})", flush=True)
                results[fold] = train_fold(one, dataset, world, resident, parent=run.id)
            summary = world.tell(_summarised(output, results, config, run) if world.leads else None)
        except BaseException:
            run.finish("FAILED")
            raise
        run.finish()
    assert summary is not None
    return summary


def _parent_run(output: Path, config: Config, dataset: Dataset, world: World) -> Run:
    """The run that the folds' runs belong to: the one that it began with, where it goes on."""
    note = output / "tracking.json"  # run.json would be that of a training in the same folder
    run = start_run(
        name=output.name,
        experiment=config.tracking.experiment,
        params=config.flat() | {"world_size": world.size},
        tags={"dataset.name": dataset.index.name, "dataset.digest": dataset.index.digest, "kind": "crossval"},
        resume=json.loads(note.read_text(encoding="utf-8"))["run_id"] if note.exists() else None,
        rank=world.rank,
    )
    if run.id:
        with replacing(note) as partial:
            partial.write_text(json.dumps({"run_id": run.id}), encoding="utf-8")
    return run


def _summarised(output: Path, results: dict[int, TrainingResult], config: Config, run: Run) -> CrossvalSummary:
    """Mean and spread over folds, written down, and the best fold's network registered."""
    mean, sd = spread([result.validation for result in results.values()])
    best = max(results, key=lambda fold: results[fold].validation["dsc"]["mean"] or 0.0)
    run.metrics({f"{name}.mean": value for name, value in mean.items()}, step=0)
    run.metrics({f"{name}.sd": value for name, value in sd.items()}, step=0)
    path = output / "crossval.json"
    model = _registered_before(path, results) or _registered(results[best], best, config, run, mean, sd)
    summary = CrossvalSummary(str(output), results, mean, sd, best, model)
    with replacing(path) as partial:
        partial.write_text(json.dumps(asdict(summary), indent=1), encoding="utf-8")
    run.artifact(path)
    return summary


def _registered_before(path: Path, results: Mapping[int, TrainingResult]) -> RegisteredModel | None:
    """The model that these same results were registered as when they were summarised before."""
    if not path.exists():
        return None
    told = json.loads(path.read_text(encoding="utf-8"))
    same = {fold: entry["validation"] for fold, entry in told["folds"].items()} == {
        str(fold): result.validation for fold, result in results.items()
    }
    return RegisteredModel(**told["model"]) if same and told["model"] else None


def _registered(
    result: TrainingResult, fold: int, config: Config, run: Run, mean: Mapping[str, float], sd: Mapping[str, float]
) -> RegisteredModel | None:
    """The best fold's network in the registry; a tracker that is out of reach costs the registration alone."""
    measured = {
        name: result.validation[name]["mean"] for name in MEASURES if result.validation[name]["mean"] is not None
    }
    over_folds = {f"crossval_{name}_mean": value for name, value in mean.items()}
    over_folds |= {f"crossval_{name}_sd": value for name, value in sd.items()}
    tags = {
        "dataset_digest": result.digest,
        "held_out_fold": str(fold),
        "network": config.network.name,
        "seed": str(config.seed),
        "hd95_unit": result.validation["unit"],
    }
    try:
        return register(Path(result.checkpoint), config.tracking.model, ALIAS, run.id, {**measured, **over_folds}, tags)
    except Fault as out_of_reach:
        log.warning("%s", out_of_reach)
        return None


def spread(validations: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and sample standard deviation over folds of each measure's mean on a fold."""
    mean, sd = {}, {}
    for name in MEASURES:
        values = [fold[name]["mean"] for fold in validations if fold[name]["mean"] is not None]
        if values:
            mean[name] = statistics.fmean(values)
        if len(values) > 1:
            sd[name] = statistics.stdev(values)
    return mean, sd
