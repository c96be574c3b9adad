"""A model and what to hold it against, judged on the same scans."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path

import torch

from data_pipeline import Dataset, WrongCall, stream_scans
from launch.terminal import with_progress
from trainer import networks
from trainer.evaluate import CentredEllipse, evaluate
from trainer.metrics import ScanScore
from trainer.registry import model_folder
from trainer.serving import Segmenter, load_segmenter

SCORED = "scans judged"


def judge(model: str, dataset: Dataset, folds: Collection[int] | None, baselines: bool) -> dict[str, list[ScanScore]]:
    """Each scan's score by the model, and by its untrained network and a centred ellipse where they are asked for.

    Raises WrongCall for a model or a fold that there is not.
    """
    positions = dataset.positions(folds)
    folder = found_folder(model)
    judged: dict[str, Segmenter | CentredEllipse] = {"model": opened_model(folder)}
    if baselines:
        judged["untrained"] = _untrained(folder)
        judged["centred ellipse"] = _centred_ellipse(dataset, folds)
    return {
        name: evaluate(one, with_progress(stream_scans(dataset, positions), f"{name}: {SCORED}", len(positions)))
        for name, one in judged.items()
    }


def found_folder(model: str) -> Path:
    """The folder of a model, pulled from the registry where it is one of those."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return model_folder(model, caches / "sonotrain" / "models")


def opened_model(folder: Path) -> Segmenter:
    """The segmenter of a model folder. Raises WrongCall, naming the file, where it is damaged."""
    try:
        return load_segmenter(folder, networks.build)
    except ValueError as broken:
        raise WrongCall(str(broken)) from broken


def _untrained(folder: Path) -> Segmenter:
    """The same network as it was before it had learnt anything."""
    told = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    network = networks.build(told["network"], **told["settings"])
    return Segmenter(network, tuple(told["size"]), told["threshold"])


def _centred_ellipse(dataset: Dataset, folds: Collection[int] | None) -> CentredEllipse:
    """Fitted to the folds that are not judged; to all scans where all are."""
    others = [fold for fold in dataset.folds() if fold not in (folds or ())]
    positions = dataset.positions(others or None)
    scans = with_progress(stream_scans(dataset, positions), "centred ellipse: masks read", len(positions))
    return CentredEllipse.fitted_to(scan.mask for scan in scans)
