"""One training: epochs over the plan, validation, checkpoints; a run started again goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline import Chance, Dataset, Resident, augment, plan_epoch, resident_scans, stream_batches
from trainer.checkpoint import Checkpoints, Progress
from trainer.config import Config
from trainer.curves import Curves
from trainer.engines import Engines, rate_factor, start_engines
from trainer.feasible import GIGABYTE, check, dataset_of, learnt_folds
from trainer.flops import flops_of_a_scan
from trainer.metrics import summarise
from trainer.overlay import sheet_of
from trainer.prefetch import on_device
from trainer.processes import World, joined
from trainer.run_folder import RunFolder, TrainingResult, require_same_run
from trainer.score_table import write_csv
from trainer.status import StatusLine
from trainer.step import MicroBatch, StepLosses, train_iteration
from trainer.stopping import Stopped, StopRequest
from trainer.tracking import Run, start_run
from trainer.validation import chosen_threshold, segmenter_of, validate


def train(config: Config) -> TrainingResult:
    """Train one network on the folds to learn from, as the launcher's environment says: alone or with other ranks.

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
    """Train within a job whose processes are joined already. parent is the MLflow run that this one belongs to.

    Raises Stopped, on every rank after the same step and with its checkpoint written, when a signal asks for it.
    """
    check(config, dataset, world.size)
    folder = RunFolder(Path(config.output))
    finished = world.tell(folder.begin(config, dataset.index.digest) if world.leads else None)
    if finished:
        return finished

    # ------------------------------------------------------------------------------------------------------
    # What the run is made of

    started = time.monotonic()
    engines = start_engines(config, world.size, world.device)
    learnt_from = learnt_folds(config, dataset)
    seen = {
        part.index.digest: [fold for fold in part.folds() if fold in learnt_from]
        for part in dataset.parts or (dataset,)
    }
    batches = plan_epoch(dataset.index, learnt_from, config.seed, 0, config.training.batch).batches
    steps = config.training.epochs * batches
    patient = config.training.timeout_minutes
    impatient = min(patient, config.training.stall_minutes)
    stop = StopRequest(world, patient)

    def same_run(state: Mapping[str, Any]) -> None:
        digest = dataset.index.digest
        require_same_run(config.checkpoints.mirror, state["config"], state["digest"], config, digest)

    checkpoints = Checkpoints(folder.checkpoints, config.checkpoints, world, same_run)

    def keep() -> None:
        now = replace(progress, skipped=curves.skipped, seconds=round(time.monotonic() - started, 1))
        with world.waits.within(patient):  # rank 0 may have to wait for its disk
            checkpoints.save(engines, now, config, dataset.index.digest, seen)

    with stop, checkpoints, world.waits.within(patient):
        # --------------------------------------------------------------------------------------------------
        # Where it stands

        progress = checkpoints.load(engines, lambda: settle(engines, config, world))
        started -= progress.seconds
        world.pulse.moved(progress.step, steps)
        run = _tracked(folder, config, dataset, parent, world)
        curves = Curves(folder.curves, run, world, progress.step, progress.skipped, config.training.skips)
        status = StatusLine(world.leads, config.training, steps, progress.step, flops_of_a_scan(config))

        try:
            # ----------------------------------------------------------------------------------------------
            # Epochs

            while progress.epoch < config.training.epochs and not _stalled(progress, config.training.patience):
                plan = plan_epoch(dataset.index, learnt_from, config.seed, progress.epoch, config.training.batch)
                places = plan.for_rank(world.size, world.rank)[progress.batch :]
                read = stream_batches(dataset, places, config.data.size, config.data.readers, resident)
                for image, mask, keys in status.waited_for(on_device(read, world.device)):
                    world.pulse.moved()
                    engines.set_rates(rate_factor(config.optimizer, progress.step, steps))
                    pieces = micro_batches(image, mask, keys, config, progress.epoch)
                    curves.add(*iterate(engines, pieces, config, progress.step))
                    progress = replace(progress, step=progress.step + 1, batch=progress.batch + 1)
                    world.pulse.moved(progress.step)
                    curves.step(progress.step)
                    status.step(progress.epoch, progress.step, curves.latest)
                    world.waits.at_most(impatient)
                    if stop.asked(progress.step):
                        keep()
                        checkpoints.require(progress.step)
                        raise Stopped(f"{stop.by}: stopped after step {progress.step}; started again, it goes on")
                    if _falls_on(progress.step, config.checkpoints.every_steps) and progress.batch < batches:
                        keep()

                curves.data(dataset.counters(), progress.step)
                progress = replace(progress, epoch=progress.epoch + 1, batch=0)
                if progress.epoch == config.training.epochs:
                    break
                if _falls_on(progress.epoch, config.validation.every_epochs):
                    with status.aside():
                        summary = summarise(validate(engines, dataset, config, world))
                    curves.validated(summary, progress.step)
                    status.validated(progress.epoch, summary)
                    progress = _judged(progress, summary.dsc.mean)
                keep()

            # ----------------------------------------------------------------------------------------------
            # What it came to

            progress = replace(progress, threshold=chosen_threshold(engines, dataset, config, world))
            scores = validate(engines, dataset, config, world, progress.threshold, surface=True)
            world.waits.at_most(patient)
            summary = summarise(scores)
            curves.validated(summary, progress.step)
            status.validated(progress.epoch, summary)
            progress = _judged(progress, summary.dsc.mean)
            keep()
            checkpoints.require(progress.step)
        except BaseException as ended:
            run.finish("KILLED" if isinstance(ended, Stopped) else "FAILED")
            raise
        finally:
            status.close()

    segmenter = segmenter_of(engines, config, world, progress.threshold)
    if world.leads:
        write_csv(folder.scores, scores)
        sheet_of(segmenter, dataset, dataset.positions([config.data.fold]), folder.outlines)
        folder.finish(progress, summary, time.monotonic() - started, dataset.index.digest)
        for path in filter(Path.exists, (folder.result, folder.scores, folder.outlines, folder.config)):
            run.artifact(path)
    run.finish()
    engines.destroy()
    return world.tell(folder.read_result() if world.leads else None)  # type: ignore[return-value]


def micro_batches(image: Tensor, mask: Tensor, keys: Sequence[str], config: Config, epoch: int) -> list[MicroBatch]:
    """A rank's share of the global batch, uint8 [B, 1, H, W] on the device, varied and cut up for accumulation."""
    picture, truth = augment(image, mask, keys, config.seed, epoch, **config.augmentation.model_dump())
    picture = picture.expand(-1, config.network.in_channels, -1, -1)
    if config.training.channels_last:
        picture = picture.contiguous(memory_format=torch.channels_last)
    size = len(keys) // config.training.accumulation
    noise: Sequence[Tensor | None] = [None] * config.training.accumulation
    if config.objective.noise:
        chance = Chance(keys, config.seed, epoch, image.device)
        noise = (config.objective.noise * chance.normals(config.data.size, "noise")).split(size)
    return [MicroBatch(*piece) for piece in zip(picture.split(size), truth.split(size), noise, strict=True)]


def iterate(
    engines: Engines, pieces: Sequence[MicroBatch], config: Config, step: int
) -> tuple[list[StepLosses], Tensor]:
    """The iteration at a step (from 0): what is random in it, how much of beta counts, and the running average."""
    torch.manual_seed(seed_of_step(config.seed, step))  # for dropout, the one layer that draws by itself
    warmup = config.objective.beta_warmup_steps
    beta_share = min(1.0, step / warmup) if warmup else 1.0
    losses, refused = train_iteration(engines, pieces, config.objective, config.discriminators.input, beta_share)
    engines.follow(config.training.ema, step)
    return losses, refused


def seed_of_step(seed: int, step: int) -> int:
    """What a step's own randomness follows from."""
    return ((seed << 32) + step) % 2**63


def settle(engines: Engines, config: Config, world: World) -> None:
    """An iteration on nothing, after which the optimizers have state that a checkpoint can fill."""
    image = torch.zeros(2, config.network.in_channels, *config.data.size, device=world.device)
    train_iteration(engines, [MicroBatch(image, image[:, :1])] * config.training.accumulation, config.objective)


def _judged(progress: Progress, dsc: float | None) -> Progress:
    """Where a run stands after a validation: a new best, or one more without."""
    if (dsc or 0.0) <= progress.best_dsc:
        return replace(progress, without_better=progress.without_better + 1)
    return replace(progress, best_dsc=dsc or 0.0, best_epoch=progress.epoch, best_step=progress.step, without_better=0)


def _stalled(progress: Progress, patience: int) -> bool:
    """Whether as many validations as are borne with have shown no better DSC."""
    return 0 < patience <= progress.without_better


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
