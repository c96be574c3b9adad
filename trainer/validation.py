"""The fold held out, judged by all processes together, and the threshold that suits it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from data_pipeline import Dataset, Scan, stream_scans
from trainer.checkpoint import average_buffers
from trainer.config import Config
from trainer.engines import Engines
from trainer.evaluate import evaluate
from trainer.metrics import ScanScore
from trainer.processes import World
from trainer.serving import Segmenter
from trainer.threshold import choose_threshold, dsc_by_threshold

T = TypeVar("T")


def validate(
    engines: Engines, dataset: Dataset, config: Config, world: World, threshold: float = 0.5, surface: bool = False
) -> list[ScanScore]:
    """The scores of the held-out fold at the scans' own resolution, on every rank; each judges a part."""
    segmenter = segmenter_of(engines, config, world, threshold)
    scans = _share(dataset, config, world)
    return _gathered(world, lambda: evaluate(segmenter, scans, config.validation.batch, surface))


def chosen_threshold(engines: Engines, dataset: Dataset, config: Config, world: World) -> float:
    """The probability from which a pixel is lesion: one half, or the best on the held-out fold if it is asked for."""
    if config.validation.threshold == "half":
        return 0.5
    segmenter = segmenter_of(engines, config, world, 0.5)
    scans = _share(dataset, config, world)
    rows = _gathered(world, lambda: dsc_by_threshold(segmenter, scans, config.validation.batch))
    return choose_threshold(rows).threshold


def segmenter_of(engines: Engines, config: Config, world: World, threshold: float) -> Segmenter:
    """The network that is judged and kept, used as the configuration says. Every rank calls it."""
    network = engines.network_to_use()
    average_buffers(network, world)
    use = config.validation
    return Segmenter(network, config.data.size, threshold, use.flips, use.largest_component, config.network.in_channels)


def _share(dataset: Dataset, config: Config, world: World) -> Iterator[Scan]:
    """The part of the held-out fold that this rank judges."""
    positions = dataset.positions([config.data.fold])[world.rank :: world.size]
    for scan in stream_scans(dataset, positions, config.data.readers):
        yield scan
        world.pulse.moved()


def _gathered(world: World, judge: Callable[[], list[T]]) -> list[T]:
    """What all ranks come to, each of which has its part judged. Another one may need twice the time of this one."""
    began = time.monotonic()
    judged = judge()
    with world.waits.within(world.waits.minutes + (time.monotonic() - began) / 60):
        return world.gather(judged)
