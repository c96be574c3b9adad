"""Models that tests use beside the fixture model_folder."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from trainer import networks
from trainer.ensemble import write_ensemble
from trainer.serving import load_segmenter


def write_model(folder: Path, network: str, size: tuple[int, int], threshold: float, **settings: object) -> Path:
    """A network that was never trained, as a checkpoint has it; the folder, which is made."""
    torch.manual_seed(3)
    folder.mkdir()
    save_file(networks.build(network, **settings).state_dict(), folder / "generator.safetensors")
    described = {"network": network, "settings": settings, "size": list(size), "threshold": threshold}
    (folder / "network.json").write_text(json.dumps(described))
    return folder


def write_mixed_ensemble(model_folder: Path, into: Path) -> Path:
    """An ensemble of that model, a network of another kind and one of another size and number of input channels.

    It looks at mirror images, keeps the largest component, and marks much of a noisy scan. The folder, which is made.
    """
    others = [
        write_model(into.with_name(f"{into.name}-deepres"), "deepres", (64, 48), 0.5),
        write_model(
            into.with_name(f"{into.name}-unet"),
            "unet",
            (48, 64),
            0.5,
            in_channels=2,
            widths=[4, 8],
            norm="group",
            heads=1,
        ),
    ]
    members = [model_folder, *others]
    write_ensemble(members, into.with_name(f"{into.name}-before"), flips=True)
    image = np.random.default_rng(3).integers(0, 256, (64, 48), dtype=np.uint8)
    (probability,) = load_segmenter(into.with_name(f"{into.name}-before"), networks.build).probabilities([image])
    write_ensemble(members, into, float(np.median(probability)), flips=True, largest_component=True)
    return into
