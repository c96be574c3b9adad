"""A study carried out: each variant trained with each fold held out, and its table rewritten after each training.

OUTPUT/VARIANT/fold-K/   a training
OUTPUT/table.json        all numbers
OUTPUT/table.md          the table as people read it, table.csv as spreadsheets do
OUTPUT/scores.png        every scan's scores by every variant
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline import Dataset, WrongCall
from trainer import networks
from trainer.atomic import replacing
from trainer.config import Config
from trainer.crossval import check_startable, held_out_folds, of_fold, parent_run
from trainer.curves import Diverged
from trainer.feasible import dataset_of
from trainer.loop import memory_for, train_fold
from trainer.processes import World, joined
from trainer.run_folder import RunFolder, TrainingResult
from trainer.score_figure import draw_scores
from trainer.score_table import read_csv
from trainer.serving.opening import DESCRIPTION
from trainer.study import Study, folder_name
from trainer.study_table import StudyTable, Trained, pooled, tabulate
from trainer.study_text import comma_separated, markdown
from trainer.tracking import Run

log = logging.getLogger("sonotrain")


@dataclass(frozen=True)
class StudySummary:
    """The table of a study, and each training's result by variant and fold.

    diverged says of each training that came to no result, named by variant and fold, what ended it.
    """

    output: str
    table: StudyTable
    results: Mapping[str, Mapping[int, TrainingResult]]
    diverged: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """What table.json says, and the results."""
        told = {name: {fold: asdict(result) for fold, result in of.items()} for name, of in self.results.items()}
        return {"output": self.output, **self.table.as_json(), "results": told, "diverged": self.diverged}


def run_study(study: Study) -> StudySummary:
    """Train every variant with each fold of the study (or of the dataset, but for data.unseen) held out, fold by fold.

    All variants learn the first fold before any learns the second, so that the table soon tells of all of them. A
    training that is finished in the output folder is not done again, and one that was interrupted goes on. One that
    diverges costs itself alone, unless all do. In MLflow the trainings are child runs of their variant's, and these
    of the study's. Raises WrongCall, before anything is written, where one of the trainings cannot be, or another's
    lies in its folder.
    """
    shared = study.shared
    output = Path(shared.output)
    dataset = dataset_of(shared)
    folds = held_out_folds(shared, dataset)
    with joined(shared.training.timeout_minutes) as world, memory_for(shared, dataset) as resident, ExitStack() as runs:
        variants = {name: of_variant(config, name) for name, config in study.variants.items()}
        _check_all(variants, folds, dataset, world)
        whole = runs.enter_context(parent_run(output, shared, _in_common(study), dataset, world, "study"))
        run_of = {}
        for name, config in variants.items():
            below = parent_run(Path(config.output), config, config.flat(), dataset, world, "variant", whole.id)
            run_of[name] = runs.enter_context(below)
        results: dict[str, dict[int, TrainingResult]] = {name: {} for name in variants}
        diverged: dict[str, str] = {}
        for fold in folds:
            for number, (name, config) in enumerate(variants.items(), start=1):
                one = of_fold(config, fold)
                new = world.leads and not RunFolder(Path(one.output)).result.exists()
                if world.leads:
                    kept = "" if new else ": finished before"
                    print(f"variant {number} of {len(variants)}, {name}, holding out fold {fold}{kept}", flush=True)
                try:
                    results[name][fold] = train_fold(one, dataset, world, resident, parent=run_of[name].id)
                except Diverged as ended:
                    diverged[f"{name}, fold {fold}"] = str(ended)
                    if world.leads:
                        log.warning("%s, fold %d: %s", name, fold, ended)
                    continue
                if new:
                    _write(output, study, results)
        if not any(results.values()):
            raise Diverged(f"every training of the study diverged, the last with: {[*diverged.values()][-1]}")
        table = world.tell(_finished(output, study, results, whole, run_of) if world.leads else None)
    assert table is not None
    return StudySummary(str(output), table, results, diverged)


def of_variant(config: Config, name: str) -> Config:
    """The variant's configuration with a folder of its own."""
    own = folder_name(name)
    mirror = config.checkpoints.mirror and f"{config.checkpoints.mirror.rstrip('/')}/{own}"
    return config.replace(output=str(Path(config.output) / own), checkpoints__mirror=mirror)


def _in_common(study: Study) -> dict[str, Any]:
    """The values, by dotted key, that all variants have."""
    others = [config.flat() for config in study.variants.values()]
    return {key: value for key, value in study.shared.flat().items() if all(of[key] == value for of in others)}


def _check_all(variants: Mapping[str, Config], folds: tuple[int, ...], dataset: Dataset, world: World) -> None:
    """Find what cannot be trained before the hours that others take. Raises WrongCall naming the variant."""
    for name, config in variants.items():
        for fold in folds:
            try:
                check_startable(of_fold(config, fold), dataset, world)
            except WrongCall as wrong:
                raise WrongCall(f"variant {name}: {wrong}") from wrong


def _write(output: Path, study: Study, results: Mapping[str, Mapping[int, TrainingResult]]) -> StudyTable:
    """The table and the figure of what is finished so far."""
    trained = {name: {fold: _trained(result) for fold, result in of.items()} for name, of in results.items()}
    table = tabulate(study, trained)
    texts = {
        "table.json": json.dumps(table.as_json(), indent=1, ensure_ascii=False) + "\n",
        "table.md": markdown(table),
        "table.csv": comma_separated(table),
    }
    for name, text in texts.items():
        with replacing(output / name) as partial:
            partial.write_text(text, encoding="utf-8")
    scores = {name: pooled(of) for name, of in trained.items()}
    draw_scores(scores, study.compare_to, study.table, output / "scores.png")
    return table


def _finished(
    output: Path,
    study: Study,
    results: Mapping[str, Mapping[int, TrainingResult]],
    whole: Run,
    run_of: Mapping[str, Run],
) -> StudyTable:
    """The last table, also where nothing was left to train, written down in MLflow too."""
    table = _write(output, study, results)
    for row in table.rows:
        for kind in ("mean", "sd"):
            values = {f"{name}.{kind}": getattr(spread, kind) for name, spread in row.measures.items()}
            run_of[row.variant].metrics({key: value for key, value in values.items() if value is not None}, step=0)
    for name in ("table.json", "table.md", "table.csv", "scores.png"):
        whole.artifact(output / name)
    return table


def _trained(result: TrainingResult) -> Trained:
    """What a finished training's folder tells of it."""
    told = json.loads((Path(result.checkpoint) / DESCRIPTION).read_text(encoding="utf-8"))
    with torch.device("meta"):
        network = networks.build(told["network"], **told["settings"])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Trained(read_csv(RunFolder(Path(result.output)).scores), parameters, result.seconds)
