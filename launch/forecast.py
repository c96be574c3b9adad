"""What a job will come to, found out before any of it is started: steps, reading, memory, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch

from data_pipeline import Dataset, WrongCall, plan_epoch
from launch.job import Job
from launch.reading import Cache, NodeReading, cache_of, kept_scans, node_readings, scan_bytes
from launch.train_verbs import parsed_tuning, parsed_variants
from trainer.config import Config
from trainer.crossval import check_startable, held_out_folds, of_fold
from trainer.feasible import dataset_of, learnt_folds
from trainer.idle import runtime_memory
from trainer.memory import ProcessMemory, process_memory
from trainer.processes import World
from trainer.study_run import of_variant
from tuning.final import unseen_folds


@dataclass(frozen=True, slots=True)
class Training:
    """One of the trainings of a job: train has one, crossval and a trial of tune one for each fold, a study more."""

    variant: str
    """Its name in a study, else empty."""
    fold: int
    """The fold held out."""
    scans: int
    """Scans of an epoch."""
    global_batch: int
    steps_per_epoch: int
    epochs: int
    """Unless it ends early (training.patience)."""

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return self.steps_per_epoch * self.epochs


@dataclass(frozen=True, slots=True)
class Size:
    """A job on so many nodes, and bytes that each of its processes needs there: fewer nodes have larger shares."""

    nodes: int
    world_size: int
    batch: int
    """Scans of a step that a process works through."""
    memory: ProcessMemory


@dataclass(frozen=True, slots=True)
class Forecast:
    """A job before it is started.

    trainings are in the order in which they are carried out; what is read is told of the first, memory of the variant
    that needs most. sizes has each number of nodes that the job may run on, the most last.
    """

    verb: str
    dataset: str
    """Where it is."""
    processes: int
    """On each node."""
    accumulation: int
    """Pieces in which a process works through its share of a batch."""
    trainings: tuple[Training, ...]
    sizes: tuple[Size, ...]
    nodes: tuple[NodeReading, ...]
    """At the largest size."""
    cache: Cache
    cache_bytes: int
    """What the disk of a node may keep of shards."""
    dataset_bytes: int
    """Of all shards."""
    resident_limit: int
    """What a node may keep of decoded scans in its shared memory."""
    resident_in_the_end: int
    """What it keeps of them after many epochs, in which it comes to see all scans."""
    hungriest: str
    """The variant of a study whose memory is told, else empty."""

    @property
    def size(self) -> Size:
        """On all its nodes."""
        return self.sizes[-1]

    def host_memory(self, node: int, gpus: bool) -> int:
        """Bytes of a node (from 0): its processes, the first one's copy for checkpoints, and scans that it keeps."""
        memory = self.size.memory
        of_process = memory.beside_gpu if gpus else memory.on_cpu
        return self.processes * of_process + (0 if node else memory.checkpoint) + self.resident_in_the_end

    def as_json(self) -> dict[str, Any]:
        """The whole of it, and what scripts ask for by name: of the first training, on all nodes."""
        first = self.trainings[0]
        return {
            "world_size": self.size.world_size,
            "global_batch": first.global_batch,
            "batch_per_process": self.size.batch,
            "accumulation": self.accumulation,
            "steps_per_epoch": first.steps_per_epoch,
            "epochs": first.epochs,
            "steps": first.steps,
            "steps_of_all": sum(training.steps for training in self.trainings),
            "dataset": self.dataset,
            "trainings": [asdict(training) | {"steps": training.steps} for training in self.trainings],
            "nodes": [
                asdict(reading)
                | {
                    "host_memory": self.host_memory(reading.node, gpus=False),
                    "host_memory_beside_gpus": self.host_memory(reading.node, gpus=True),
                }
                for reading in self.nodes
            ],
            "cache": {"keeps": self.cache, "limit": self.cache_bytes, "dataset": self.dataset_bytes},
            "resident": {"limit": self.resident_limit, "in_the_end": self.resident_in_the_end},
            "memory": _told(self.size.memory) | {"variant": self.hungriest},
            "sizes": [asdict(size) | {"memory": _told(size.memory)} for size in self.sizes],
        }


def forecast_of(job: Job) -> Forecast:
    """The forecast of a job, of tune that of a trial. Its dataset is opened from here, for its index alone.

    Raises what its verb would raise at any of its sizes, and Fault where the dataset cannot be reached.
    """
    variants = parsed_variants(job.verb)
    dataset = dataset_of(next(iter(variants.values())))
    sizes, processes = job.sizes, job.processes
    if job.verb[0] == "tune":
        tune = parsed_tuning(job.verb).tune
        sizes, processes = range(tune.nodes, tune.nodes + 1), tune.processes
        variants = {"": variants[""].replace(data__unseen=unseen_folds(tune, dataset))}
    return forecast(job.verb[0], variants, dataset, sizes, processes)


def forecast(verb: str, variants: Mapping[str, Config], dataset: Dataset, sizes: range, processes: int) -> Forecast:
    """The forecast of a verb on each number of nodes in sizes. variants are a study's; else one, without a name.

    Raises WrongCall for the first thing that cannot be trained, naming the size, and the variant where it is one's.
    """
    trainings = {(name, one.data.fold): one for name, one in _trainings(verb, variants, dataset)}
    for nodes in reversed(sizes):
        for (name, _), config in trainings.items():
            _check(config, name, dataset, sizes, nodes, processes)
    with ThreadPoolExecutor(1) as measuring:  # the process that it waits for has a core of its own
        runtime = measuring.submit(runtime_memory)
        first = next(iter(trainings.values()))
        readings = node_readings(first, dataset, sizes[-1], processes)
        reckoned = {name: process_memory(config, sizes[-1] * processes, 0) for name, config in variants.items()}
        hungriest = max(reckoned, key=lambda name: reckoned[name].on_cpu)
        told = variants[hungriest]
        of_size = tuple(
            Size(
                nodes,
                nodes * processes,
                told.training.batch // (nodes * processes),
                process_memory(told, nodes * processes, runtime.result()),
            )
            for nodes in sizes
        )
    # Trainings that hold out each fold in turn share the memory of a node.
    seen = learnt_folds(first, dataset) if verb == "train" else set(dataset.folds()) - set(first.data.unseen)
    return Forecast(
        verb=verb,
        dataset=dataset.uri,
        processes=processes,
        accumulation=told.training.accumulation,
        trainings=tuple(_training(name, config, dataset) for (name, _), config in trainings.items()),
        sizes=of_size,
        nodes=readings,
        cache=cache_of(first, dataset, sizes[-1]),
        cache_bytes=gigabytes(first.data.cache_gb),
        dataset_bytes=sum(shard.bytes for shard in dataset.index.shards),
        resident_limit=gigabytes(first.data.resident_gb),
        resident_in_the_end=int(kept_scans(first, dataset)[dataset.positions(seen)].sum()) * scan_bytes(first),
        hungriest=hungriest,
    )


def gigabytes(amount: float) -> int:
    """Bytes."""
    return int(amount * 10**9)


def _trainings(verb: str, variants: Mapping[str, Config], dataset: Dataset) -> Iterator[tuple[str, Config]]:
    """The trainings of a verb in its order: all variants with a fold held out before the next fold."""
    shared = next(iter(variants.values()))
    if verb == "train":
        yield "", shared
        return
    for fold in held_out_folds(shared, dataset):
        for name, config in variants.items():
            yield name, of_fold(of_variant(config, name) if name else config, fold)


def _check(config: Config, name: str, dataset: Dataset, sizes: range, nodes: int, processes: int) -> None:
    try:
        check_startable(config, dataset, World(0, nodes * processes, torch.device("cpu")))
    except WrongCall as wrong:
        size = f"with {nodes} of {sizes[-1]} nodes: " if nodes < sizes[-1] else ""
        variant = f"variant {name}: " if name else ""
        raise WrongCall(f"{size}{variant}{wrong}") from wrong


def _training(name: str, config: Config, dataset: Dataset) -> Training:
    batch = config.training.batch
    plan = plan_epoch(dataset.index, learnt_folds(config, dataset), config.seed, 0, batch)
    return Training(name, config.data.fold, plan.samples, batch, plan.batches, config.training.epochs)


def _told(memory: ProcessMemory) -> dict[str, Any]:
    """Its parts and its sums."""
    sums = {name: getattr(memory, name) for name in ("on_cpu", "on_gpu", "beside_gpu")}
    return asdict(memory) | sums
