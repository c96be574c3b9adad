"""The folder that a trained network, or an ensemble of them, is read from.

    network.json            how to build the network, and how it is used
    generator.safetensors   its weights

An ensemble has in its place a network.json that names its members and how they are used together, and below each
member's name a folder such as this one. What network.json does not tell of flips and largest_component is false.

A registered model carries this file with it, so it says what is wrong with a plain ValueError of one line.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from trainer.serving.segmenter import Segmenter
from trainer.serving.weights import read_safetensors

WEIGHTS = "generator.safetensors"
DESCRIPTION = "network.json"


def load_segmenter(folder: Path, build: Callable[..., nn.Module]) -> Segmenter:
    """The segmenter of a model folder. build(name, **settings) makes a network.

    Raises ValueError, naming the file, when one is missing, cannot be read, or does not fit the other.
    """
    told = read_description(folder)
    if "members" not in told:
        return _of_network(folder, told, build)
    members = [_of_network(member, read_description(member), build) for member in member_folders(folder, told)]
    try:
        return Segmenter.ensemble(members, told["threshold"], *_options(told))
    except KeyError as missing:
        raise ValueError(f"{folder / DESCRIPTION}: does not tell {missing}") from missing
    except (TypeError, ValueError) as broken:
        raise ValueError(f"{folder / DESCRIPTION}: describes no ensemble: {broken}") from broken


def read_description(folder: Path) -> dict[str, Any]:
    """What network.json says. Raises ValueError, naming it, where it cannot be read or is no map."""
    path = folder / DESCRIPTION
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as missing:
        raise ValueError(f"{path}: cannot be read ({missing.strerror}); is {folder} a model?") from missing
    except (ValueError, RecursionError) as broken:
        raise ValueError(f"{path}: describes no network: {broken}") from broken
    if not isinstance(told, dict):
        raise ValueError(f"{path}: describes no network: expected a map")
    return told


def member_folders(folder: Path, told: dict[str, Any]) -> list[Path]:
    """The folders that hold networks, by what their description tells: an ensemble's members, else the folder itself.

    Raises ValueError for a name that leads out of the folder, or none.
    """
    if "members" not in told:
        return [folder]
    names = told["members"]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{folder / DESCRIPTION}: describes no ensemble: members is no list of names")
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name, re.ASCII) or names.count(name) > 1:
            raise ValueError(f"{folder / DESCRIPTION}: {name!r} is no member's name, or comes twice")
    return [folder / name for name in names]


def _of_network(folder: Path, told: dict[str, Any], build: Callable[..., nn.Module]) -> Segmenter:
    description, weights = folder / DESCRIPTION, folder / WEIGHTS
    try:
        settings, size = told["settings"], tuple(told["size"])
        network = build(told["network"], **settings)
        channels = settings.get("in_channels", 1)
        segmenter = Segmenter(network, size, told["threshold"], *_options(told), channels)
    except KeyError as missing:
        raise ValueError(f"{description}: does not tell {missing}") from missing
    except Exception as broken:  # build has errors of its own for what it cannot make
        raise ValueError(f"{description}: describes no network: {broken}") from broken
    tensors = read_safetensors(weights)
    expected = network.state_dict()
    misfits = sorted(
        key
        for key in expected.keys() | tensors.keys()
        if key not in expected or key not in tensors or expected[key].shape != tensors[key].shape
    )
    if misfits:
        others = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        raise ValueError(f"{weights}: does not fit the network of {description.name}: {misfits[0]}{others}")
    network.load_state_dict(tensors)
    return segmenter


def _options(told: dict[str, Any]) -> tuple[bool, bool]:
    return told.get("flips", False), told.get("largest_component", False)
