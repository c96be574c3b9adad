"""What a configuration asks of its dataset and its processes, checked before anything is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data_pipeline import Dataset, NodeCache, WrongCall, open_datasets
from trainer.config import Config
from trainer.networks import logit_map_side

STAGES = 4
HALVINGS = 4
"""How often the UNet halves a scan on its way down."""


GIGABYTE = 10**9


def dataset_of(config: Config) -> Dataset:
    """The datasets that data.uri names as one, S3's with this node's cache. Raises WrongCall where it names none."""
    data = config.data
    if not data.uris:
        raise WrongCall("data.uri is not set: add data.uri=PATH or data.uri=s3://BUCKET/PREFIX of an ingested dataset")
    dataset = open_datasets(data.uris, data.weights)
    remote = any(uri.startswith("s3://") for uri in data.uris)
    if not remote or not data.cache_gb:
        return dataset
    return replace(dataset, cache=NodeCache(Path(data.cache).expanduser(), int(data.cache_gb * GIGABYTE)))


def check(config: Config, dataset: Dataset, world_size: int) -> None:
    """Raise WrongCall, naming the key, for the first thing that cannot work."""
    _check_fold(config.data.fold, dataset)
    _check_batch(config.training.batch, config.training.accumulation, world_size)
    _check_size(config)


def _check_fold(fold: int, dataset: Dataset) -> None:
    folds = dataset.folds()
    if fold not in folds:
        raise WrongCall(f"data.fold={fold}: {dataset.uri} has the folds {', '.join(map(str, folds))}")
    if len(folds) < 2:
        raise WrongCall(f"data.fold={fold}: {dataset.uri} has no other fold to train on; ingest it with --folds 5")


def _check_batch(batch: int, accumulation: int, world_size: int) -> None:
    pieces = world_size * accumulation
    if batch % pieces:
        nearest = max(pieces, round(batch / pieces) * pieces)
        raise WrongCall(
            f"training.batch={batch} cannot be shared by {world_size} processes in {accumulation} pieces each; "
            f"the nearest that can is {nearest}"
        )


def _check_size(config: Config) -> None:
    multiple = 2**HALVINGS
    for side in config.data.size:
        if side % multiple:
            nearest = max(multiple, round(side / multiple) * multiple)
            raise WrongCall(
                f"data.size={_text(config.data.size)}: {config.network.name} needs sides that are multiples of "
                f"{multiple}; the nearest to {side} is {nearest}"
            )
    scale = 1 if config.objective.truth == "full" else 2 ** (STAGES - 1)
    if min(logit_map_side(side // scale, config.discriminators.strides) for side in config.data.size) < 1:
        smallest = next(
            side
            for side in range(multiple, 1 << 20, multiple)
            if logit_map_side(side // scale, config.discriminators.strides) >= 1
        )
        raise WrongCall(
            f"data.size={_text(config.data.size)} is too small for the discriminators, whose coarsest stage sees "
            f"1/{scale} of it; the smallest side is {smallest}, or smaller discriminators.strides"
        )


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
