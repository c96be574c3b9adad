"""One training: epochs over the plan, validation, checkpoints; a run started again goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch

from data_pipeline import Batch, Dataset, Resident, augment, plan_epoch, resident_scans, stream_batches, stream_scans
from trainer.checkpoint import Checkpoints, average_buffers
from trainer.config import Config
from trainer.curves import Curves
from trainer.engines import Engines, start_engines
from trainer.evaluate import evaluate
from trainer.feasible import GIGABYTE, check, dataset_of
from trainer.metrics import ScanScore, summarise
from trainer.overlay import sheet_of
from trainer.processes import World, joined
from trainer.run_folder import RunFolder, TrainingResult
from trainer.score_table import write_csv
from trainer.serving import Segmenter
from trainer.status import StatusLine
from trainer.step import StepLosses, train_step
from trainer.stopping import Stopped, StopRequest
from trainer.tracking import Run, start_run


def train(config: Config) -> TrainingResult:
    """Train one network on all folds but one, as the launcher's environment says: alone or with other ranks.

    Raises WrongCall for a configuration that cannot be trained, before anything is written.
    """
    dataset = dataset_of(config)
    with joined(config.training.timeout_minutes) as world, memory_for(config, dataset) as resident:
        return train_fold(config, dataset, world, resident)


def memory_for(config: Config, dataset: Dataset) -> AbstractContextManager[Resident | None]:
    """The node's memory for the decoded scans of a run."""
    return resident_scans(dataset.index, config.data.size, int(config.data.resident_gb * GIGABYTE))


def train_fold(
    config: Config, dataset: Dataset, world: World, resident: Resident | None, parent: str | None = None
) -> TrainingResult:
    """Train within a job whose processes are joined already. parent is the MLflow run that this one belongs to."""
    check(config, dataset, world.size)
    folder = RunFolder(Path(config.output))
    finished = world.tell(folder.begin(config, dataset.index.digest) if world.leads else None)
    if finished:
        return finished

    # ------------------------------------------------------------------------------------------------------
    # What the run is made of

    started = time.monotonic()
    engines = start_engines(config, world.size, world.device)
    learnt_from = [fold for fold in dataset.folds() if fold != config.data.fold]
    batches = plan_epoch(dataset.index, learnt_from, config.seed, 0, config.training.batch).batches
    steps = config.training.epochs * batches

    # ------------------------------------------------------------------------------------------------------
    # Where it stands

    checkpoints = Checkpoints(folder.checkpoints, config.checkpoints, world)
    progress = checkpoints.load(engines, lambda: settle(engines, config, world))
    run = _tracked(folder, config, dataset, parent, world)
    curves = Curves(folder.curves, run, world, progress.step)
    status = StatusLine(world.leads, config.training.epochs, steps, config.training.batch, progress.step)

    # ------------------------------------------------------------------------------------------------------
    # Epochs

    scores: list[ScanScore] = []
    try:
        with checkpoints, StopRequest(world) as stopping:
            for epoch in range(progress.epoch, config.training.epochs):
                plan = plan_epoch(dataset.index, learnt_from, config.seed, epoch, config.training.batch)
                places = plan.for_rank(world.size, world.rank)[progress.batch :]
                batches_to_come = stream_batches(dataset, places, config.data.size, config.data.readers, resident)
                for batch in status.waited_for(batches_to_come):
                    engines.set_rates(config.optimizer, progress.step, steps)
                    for losses in _iteration(engines, batch, config, epoch, world.device):
                        curves.add(losses)
                    progress = replace(progress, step=progress.step + 1, batch=progress.batch + 1)
                    curves.step(progress.step)
                    status.step(epoch, progress.step, curves.latest)
                    if stopping.asked(progress.step):
                        checkpoints.save(engines, progress, config, dataset.index.digest)
                        checkpoints.require(progress.step)
                        raise Stopped(f"stopped by {stopping.by} after step {progress.step}; start again to go on")
                    if _falls_on(progress.step, config.checkpoints.every_steps) and progress.batch < batches:
                        checkpoints.save(engines, progress, config, dataset.index.digest)

                curves.data(dataset.counters(), progress.step)
                progress = replace(progress, epoch=epoch + 1, batch=0)
                last = progress.epoch == config.training.epochs
                if last or _falls_on(progress.epoch, config.validation.every_epochs):
                    scores = validate(engines, dataset, config, world, surface=last)
                    summary = summarise(scores)
                    curves.validated(summary, progress.step)
                    status.validated(progress.epoch, summary)
                    if (summary.dsc.mean or 0.0) > progress.best_dsc:
                        progress = replace(
                            progress,
                            best_dsc=summary.dsc.mean or 0.0,
                            best_epoch=progress.epoch,
                            best_step=progress.step,
                        )
                checkpoints.save(engines, progress, config, dataset.index.digest)
            if not scores:  # ended before, between its last checkpoint and its result
                scores = validate(engines, dataset, config, world, surface=True)
            checkpoints.require(progress.step)
    except BaseException:
        run.finish("FAILED")
        raise
    finally:
        status.close()

    # ------------------------------------------------------------------------------------------------------
    # What it came to

    if world.leads:
        write_csv(folder.scores, scores)
        segmenter = Segmenter(engines.generator.module, config.data.size)
        sheet_of(segmenter, dataset, dataset.positions([config.data.fold]), folder.outlines)
        folder.finish(progress, summarise(scores), time.monotonic() - started, dataset.index.digest)
        for path in filter(Path.exists, (folder.result, folder.scores, folder.outlines, folder.config)):
            run.artifact(path)
    run.finish()
    for engine in (engines.generator, engines.discriminators):
        engine.destroy()
    return world.tell(folder.read_result() if world.leads else None)  # type: ignore[return-value]


def validate(engines: Engines, dataset: Dataset, config: Config, world: World, surface: bool) -> list[ScanScore]:
    """The generator's scores on the held-out fold at the scans' own resolution, on every rank; each judges a part."""
    average_buffers(engines.generator.module, world)
    positions = dataset.positions([config.data.fold])[world.rank :: world.size]
    segmenter = Segmenter(engines.generator.module, config.data.size)
    scans = stream_scans(dataset, positions, config.data.readers)
    return world.gather(evaluate(segmenter, scans, config.validation.batch, surface))


def _iteration(
    engines: Engines, batch: Batch, config: Config, epoch: int, device: torch.device
) -> Iterator[StepLosses]:
    """One iteration on a rank's share of the global batch, a micro-batch after the other."""
    image, mask = augment(
        batch.image.to(device, non_blocking=True),
        batch.mask.to(device, non_blocking=True),
        batch.keys,
        config.seed,
        epoch,
        **config.augmentation.model_dump(),
    )
    if config.training.channels_last:
        image = image.to(memory_format=torch.channels_last)
    size = image.shape[0] // config.training.accumulation
    for piece, truth in zip(image.split(size), mask.split(size), strict=True):
        yield train_step(engines, piece, truth, config.objective)


def settle(engines: Engines, config: Config, world: World) -> None:
    """An iteration on nothing, after which the optimizers have state that a checkpoint can fill."""
    nothing = torch.zeros(1, 1, *config.data.size, device=world.device)
    for _ in range(config.training.accumulation):
        train_step(engines, nothing, nothing, config.objective)


def _tracked(folder: RunFolder, config: Config, dataset: Dataset, parent: str | None, world: World) -> Run:
    """The MLflow run of this training: the one that it began with, where it goes on."""
    run = start_run(
        name=folder.path.name,
        experiment=config.tracking.experiment,
        params=config.flat() | {"world_size": world.size},
        tags={"dataset.name": dataset.index.name, "dataset.digest": dataset.index.digest},
        parent=parent,
        resume=folder.tracked_as() if world.leads else None,
        rank=world.rank,
    )
    if run.id:
        folder.note_tracked_as(run.id)
    return run


def _falls_on(count: int, every: int) -> bool:
    """Whether something done every so many times falls on this one; 0 is never."""
    return every > 0 and count % every == 0
