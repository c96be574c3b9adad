"""A model and what to hold it against, judged on the same scans."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from data_pipeline import Dataset, WrongCall, dataset_names, open_dataset, stream_scans
from launch.terminal import with_progress
from trainer import networks
from trainer.evaluate import CentredEllipse, evaluate
from trainer.metrics import ScanScore
from trainer.registry import model_folder
from trainer.serving import Segmenter, load_segmenter
from trainer.serving.opening import member_folders, read_description

SCORED = "scans judged"


def judge(
    segmenter: Segmenter, folder: Path, dataset: Dataset, folds: Collection[int] | None, baselines: bool
) -> dict[str, list[ScanScore]]:
    """Each scan's score by the segmenter ("model"), and where they are asked for by its untrained network ("untrained")
    and a centred ellipse ("centred_ellipse").

    folder is the segmenter's. Raises WrongCall for a fold that there is not.
    """
    positions = dataset.positions(folds)
    judged: dict[str, Segmenter | CentredEllipse] = {"model": segmenter}
    if baselines:
        judged["untrained"] = _untrained(segmenter, folder)
        judged["centred_ellipse"] = _centred_ellipse(dataset, folds)
    return {
        name: evaluate(
            one, with_progress(stream_scans(dataset, positions), f"{name.replace('_', ' ')}: {SCORED}", len(positions))
        )
        for name, one in judged.items()
    }


def seen_in_training(folder: Path, dataset: Dataset, folds: Collection[int] | None) -> int:
    """How many of a dataset's scans a model, or a member of an ensemble, was trained on, as far as its folder tells.

    A network that was trained without sonotrain, or on the same scans ingested in another way, does not tell.
    """
    learnt: set[int] = set()
    for member in member_folders(folder, read_description(folder)):
        learnt |= set(read_description(member).get("learnt_from", {}).get(dataset.index.digest, ()))
    return sum(dataset.index.samples[position].fold in learnt for position in dataset.positions(folds))


def opened_datasets(uris: Sequence[str]) -> dict[str, Dataset]:
    """Datasets by their names. Raises WrongCall for a place without a dataset, or that comes twice."""
    datasets = [open_dataset(uri) for uri in uris]
    for place, dataset in enumerate(datasets):
        if dataset.uri in [other.uri for other in datasets[:place]]:
            raise WrongCall(f"{dataset.uri} is named twice; name each dataset once")
    return dict(zip(dataset_names(datasets), datasets, strict=True))


def found_folder(model: str) -> Path:
    """The folder of a model, pulled from the registry where it is one of those."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return model_folder(model, caches / "sonotrain" / "models")


def opened_model(
    folder: Path, threshold: float | None = None, flips: bool | None = None, largest_component: bool | None = None
) -> Segmenter:
    """The segmenter of a model folder, used as the folder says where nothing else is given.

    Raises WrongCall, naming the file, where it is damaged.
    """
    try:
        return load_segmenter(folder, networks.build).using(threshold, flips, largest_component)
    except ValueError as broken:
        raise WrongCall(str(broken)) from broken


def _untrained(segmenter: Segmenter, folder: Path) -> Segmenter:
    """The same network as it was before it had learnt anything; of an ensemble the first one's, used as that is."""
    first = read_description(member_folders(folder, read_description(folder))[0])
    torch.manual_seed(0)
    network = networks.build(first["network"], **first["settings"])
    _, size, in_channels = segmenter.members[0]
    return Segmenter(network, size, segmenter.threshold, segmenter.flips, segmenter.largest_component, in_channels)


def _centred_ellipse(dataset: Dataset, folds: Collection[int] | None) -> CentredEllipse:
    """Fitted to the folds that are not judged; to all scans where all are."""
    others = [fold for fold in dataset.folds() if fold not in (folds or ())]
    positions = dataset.positions(others or None)
    scans = with_progress(stream_scans(dataset, positions), "centred ellipse: masks read", len(positions))
    return CentredEllipse.fitted_to(scan.mask for scan in scans)
