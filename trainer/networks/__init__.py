"""The networks, by their names in the paper's Table 1."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from data_pipeline import WrongCall
from trainer.networks.discriminator import Discriminators, logit_map_side
from trainer.networks.unet import UNet

NETWORKS: Mapping[str, type[nn.Module]] = MappingProxyType({"unet": UNet})


def build(name: str, in_channels: int = 1, **settings: Any) -> nn.Module:
    """The network of that name, whose forward gives logits, finest first: [B, 1, H / 2^(n-1), W / 2^(n-1)].

    settings are the network's own keyword arguments. Raises WrongCall for a name that no network has.
    """
    if name not in NETWORKS:
        nearest = difflib.get_close_matches(name, NETWORKS, n=1, cutoff=0.0)
        raise WrongCall(f"there is no network {name}; the nearest is {nearest[0]}")
    return NETWORKS[name](in_channels=in_channels, **settings)


__all__ = ["NETWORKS", "Discriminators", "UNet", "build", "logit_map_side"]
