"""Several datasets as one, each with its weight: what is trained on when data.uri is a list."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from data_pipeline.faults import WrongCall
from data_pipeline.index import Index, Sample, Shard
from data_pipeline.objectstore import Store
from data_pipeline.shards import Dataset, open_dataset


def open_datasets(uris: Sequence[str], weights: Sequence[float] = ()) -> Dataset:
    """The datasets at these places as one; a single one without a weight as it is.

    Keys, patients and groups get their dataset's name in front (`bus_bra/bus_0001-l`), so that none clash; a name
    that comes twice is counted. Folds are each dataset's own. weights, above 0, say how often an epoch sees each
    dataset's scans: 2 twice, 0.5 every other epoch; without weights each scan comes once.
    Raises WrongCall where a place holds no dataset or comes twice, or weights are not as many as places.
    """
    if not uris:
        raise WrongCall("no dataset is named")
    if weights and len(weights) != len(uris):
        raise WrongCall(f"{len(weights)} weights are given for {len(uris)} datasets; give one for each")
    for weight in weights:
        if not 0 < weight < math.inf:
            raise WrongCall(f"{weight:g} is no weight, which is above 0; a dataset without one is left out of the list")
    datasets = [open_dataset(uri) for uri in uris]
    for number, dataset in enumerate(datasets):
        if dataset.index.digest in [other.index.digest for other in datasets[:number]]:
            raise WrongCall(f"{dataset.uri} holds scans that another dataset in the list holds already; name it once")
    if len(datasets) == 1 and not weights:
        return datasets[0]
    return _joined(datasets, weights or (1.0,) * len(datasets))


def _joined(datasets: Sequence[Dataset], weights: Sequence[float]) -> Dataset:
    shards: list[Shard] = []
    samples: list[Sample] = []
    stores: list[Store] = []
    of_sample: list[float] = []
    for name, dataset, weight in zip(dataset_names(datasets), datasets, weights, strict=True):
        samples += [
            replace(
                sample,
                key=f"{name}/{sample.key}",
                patient=f"{name}/{sample.patient}",
                group=f"{name}/{sample.group}",
                shard=len(shards) + sample.shard,
            )
            for sample in dataset.index.samples
        ]
        of_sample += [weight] * len(dataset.index.samples)
        shards += dataset.index.shards
        stores += dataset.stores
    index = Index(
        name=" + ".join(dataset_names(datasets)),
        codec=" + ".join(dict.fromkeys(dataset.index.codec for dataset in datasets)),
        shards=tuple(shards),
        samples=tuple(samples),
        refused={},
        weights=tuple(of_sample) if set(weights) != {1.0} else (),
    )
    return Dataset(", ".join(dataset.uri for dataset in datasets), index, tuple(stores), parts=tuple(datasets))


def dataset_names(datasets: Sequence[Dataset]) -> list[str]:
    """Each dataset's name, with a number where another one before it has the same."""
    names: list[str] = []
    for dataset in datasets:
        name = dataset.index.name.replace("/", "-")
        number = 1
        while (named := name if number == 1 else f"{name}-{number}") in names:
            number += 1
        names.append(named)
    return names
