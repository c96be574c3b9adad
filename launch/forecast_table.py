"""A forecast for a person, on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.filesize import decimal

from launch.forecast import Forecast, Size
from launch.reading import NodeReading
from launch.terminal import say, show_table

ROWS = 8
"""Nodes that are shown one by one; of more the last row tells the most that one of the others has."""

_NODE = ("node", "ranks", "scans", "shards", "read", "held out", "kept", "memory")
_PLACES = ("on CPU: host", "on GPU: host", "GPU")
_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "moments": "Adam's moments",
    "average": "running average, whole copy",
    "activations": "activations",
    "scans": "scans of a step",
    "exchange": "exchange of gradients",
    "holes": "idle in malloc's heap",
    "batches": "scans read ahead",
    "runtime": "libraries, measured here",
}
_ON_HOST = ("batches", "runtime")
_ON_CPU_ALONE = ("holes",)


def show_forecast(forecast: Forecast) -> None:
    """Its steps, what each node reads and keeps, and what memory a process needs."""
    for line in _plan(forecast):
        say(line)
    show_table("First epoch of each node", _NODE, _nodes(forecast), numbers=True)
    for line in _stores(forecast):
        say(line)
    title = f"Memory of a process{f' ({forecast.hungriest}, which needs most)' if forecast.hungriest else ''}, at most"
    show_table(title, ("for", *_PLACES), _memory(forecast.size), numbers=True)
    say(f"The first process needs {decimal(forecast.size.memory.checkpoint)} more on its host, for checkpoints.")
    if len(forecast.sizes) > 1:
        columns = ("nodes", "processes", "scans each", *_PLACES)
        show_table("A process on fewer nodes, at most", columns, map(_size, forecast.sizes), numbers=True)


def _plan(forecast: Forecast) -> Iterator[str]:
    first, size, trainings = forecast.trainings[0], forecast.size, forecast.trainings
    pieces = f" in {forecast.accumulation} pieces" if forecast.accumulation > 1 else ""
    yield f"dataset: {forecast.dataset}"
    yield (
        f"{size.nodes} x {forecast.processes} processes = {size.world_size}, "
        f"each with {_count(first.global_batch // size.world_size, 'scan')}{pieces} of a global batch of "
        f"{first.global_batch}"
    )
    yield (
        f"{first.steps} steps = {first.epochs} epochs x {first.steps_per_epoch} steps, on {first.scans} scans, "
        f"holding out fold {first.fold}"
    )
    if len(trainings) > 1:
        variants = len({training.variant for training in trainings})
        folds = len({training.fold for training in trainings})
        of_variants = f"{variants} variants x " if variants > 1 else ""
        yield (
            f"{of_variants}{_count(folds, 'fold')} held out: {len(trainings)} trainings, "
            f"{sum(training.steps for training in trainings)} steps"
        )


def _nodes(forecast: Forecast) -> Iterator[tuple[object, ...]]:
    shown = forecast.nodes if len(forecast.nodes) <= ROWS else forecast.nodes[: ROWS - 1]
    others = forecast.nodes[len(shown) :]
    for node in shown:
        ranks = f"{node.ranks[0]}-{node.ranks[-1]}" if len(node.ranks) > 1 else node.ranks[0]
        yield (node.node, ranks, *_row(forecast, [node]))
    if others:
        yield (f"{len(others)} more", f"to {others[-1].ranks[-1]}", *_row(forecast, others))


def _row(forecast: Forecast, nodes: Sequence[NodeReading]) -> tuple[object, ...]:
    """The most that one of these has."""
    return (
        max(node.scans for node in nodes),
        max(node.shards for node in nodes),
        decimal(max(node.bytes for node in nodes)),
        decimal(max(node.held_out_bytes for node in nodes)),
        decimal(max(node.resident_bytes for node in nodes)),
        decimal(max(forecast.host_memory(node.node, gpus=False) for node in nodes)),
    )


def _stores(forecast: Forecast) -> Iterator[str]:
    dataset, limit = decimal(forecast.dataset_bytes), decimal(forecast.cache_bytes)
    yield {
        "none": "read: scan by scan from the dataset; no copies on the nodes' disks",
        "too small": f"read: scan by scan; data.cache_gb ({limit}) is less than is read at a time",
        "part": f"read: shards to the node's disk, which keeps {limit} of {dataset}",
        "all": f"read: shards to the node's disk, which keeps all {dataset}",
    }[forecast.cache]
    yield (
        f"kept: decoded in /dev/shm, in the end {decimal(forecast.resident_in_the_end)} "
        f"of {decimal(forecast.resident_limit)} (data.resident_gb)"
    )
    yield "memory: of a node that trains on its CPU, with what it keeps in /dev/shm"


def _memory(size: Size) -> Iterator[tuple[str, str, str, str]]:
    memory = size.memory
    for part, label in _PARTS.items():
        value = getattr(memory, part)
        on_gpu = memory.exchange_on_gpu if part == "exchange" else value
        if value or on_gpu:
            yield (
                label,
                decimal(value),
                decimal(value) if part in _ON_HOST else "",
                "" if part in (*_ON_HOST, *_ON_CPU_ALONE) else decimal(on_gpu),
            )
    yield ("together", decimal(memory.on_cpu), decimal(memory.beside_gpu), decimal(memory.on_gpu))


def _size(size: Size) -> tuple[object, ...]:
    memory = size.memory
    sums = (memory.on_cpu, memory.beside_gpu, memory.on_gpu)
    return (size.nodes, size.world_size, size.batch, *map(decimal, sums))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
