"""What a configuration asks of its dataset and its processes, checked before anything is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from data_pipeline import Dataset, NodeCache, WrongCall, open_datasets
from trainer.config import Config
from trainer.engines import SHARED_OUT, has_adversary
from trainer.networks import Network, build, logit_map_side
from trainer.networks.settings import network_settings, supervised_stages
from trainer.objectives import stage_maps

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
    _check_folds(config, dataset)
    check_iteration(config, world_size)


def check_iteration(config: Config, world_size: int) -> None:
    """Raise WrongCall likewise for what cannot work on any dataset."""
    _check_batch(config.training.batch, config.training.accumulation, world_size)
    _check_zero(config)
    _check_size(config)


def learnt_folds(config: Config, dataset: Dataset) -> list[int]:
    """The folds that are trained on: all but the one held out and those that are kept unseen."""
    return [fold for fold in dataset.folds() if fold not in (config.data.fold, *config.data.unseen)]


def _check_folds(config: Config, dataset: Dataset) -> None:
    fold, unseen, folds = config.data.fold, config.data.unseen, dataset.folds()
    if fold not in folds:
        raise WrongCall(f"data.fold={fold}: {dataset.uri} has the folds {', '.join(map(str, folds))}")
    if len(folds) < 2:
        raise WrongCall(f"data.fold={fold}: {dataset.uri} has no other fold to train on; ingest it with --folds 5")
    if not set(unseen) <= set(folds):
        raise WrongCall(f"data.unseen={list(unseen)}: {dataset.uri} has the folds {', '.join(map(str, folds))}")
    if fold in unseen:
        raise WrongCall(f"data.unseen={list(unseen)} has fold {fold}, which is held out to judge by; name others")
    if not learnt_folds(config, dataset):
        raise WrongCall(
            f"data.unseen={list(unseen)}: with data.fold={fold} {dataset.uri} has no fold left to train on; name fewer"
        )


def _check_batch(batch: int, accumulation: int, world_size: int) -> None:
    pieces = world_size * accumulation
    if batch % pieces:
        nearest = max(pieces, round(batch / pieces) * pieces)
        raise WrongCall(
            f"training.batch={batch} cannot be shared by {world_size} processes in {accumulation} pieces each; "
            f"the nearest that can is {nearest}"
        )


def _check_zero(config: Config) -> None:
    if config.training.generator_zero == SHARED_OUT and config.training.ema:
        raise WrongCall(
            f"training.ema={config.training.ema}: no process holds the generator at training.generator_zero=3 to "
            "average it; set training.ema=0, or training.generator_zero to 0, 1 or 2"
        )


def _check_size(config: Config) -> None:
    with torch.device("meta"):
        network = build(config.network.name, **network_settings(config.network, config.objective.stages))
    for side in config.data.size:
        if side % network.multiple:
            nearest = max(network.multiple, round(side / network.multiple) * network.multiple)
            raise WrongCall(
                f"data.size={_text(config.data.size)}: {config.network.name} needs sides that are multiples of "
                f"{network.multiple}; the nearest to {side} is {nearest}"
            )
    if has_adversary(config.objective, supervised_stages(config.network, config.objective.stages)):
        _check_judged(config, network)


def _check_judged(config: Config, network: Network) -> None:
    """That the discriminators get a map large enough at every stage."""
    scans = torch.zeros(2, config.network.in_channels, *config.data.size, device="meta")
    maps = stage_maps(network(scans), config.data.size, config.objective.truth)
    scale = max(config.data.size[0] // seen.shape[-2] for seen in maps)
    strides = config.discriminators.strides
    if min(logit_map_side(side // scale, strides) for side in config.data.size) < 1:
        multiples = range(network.multiple, 1 << 20, network.multiple)
        smallest = next(side for side in multiples if logit_map_side(side // scale, strides) >= 1)
        raise WrongCall(
            f"data.size={_text(config.data.size)} is too small for the discriminators, whose coarsest stage sees "
            f"1/{scale} of it; the smallest side is {smallest}, or smaller discriminators.strides"
        )


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
