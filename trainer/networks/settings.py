"""From the configuration to what builds the networks."""

from __future__ import annotations

from typing import Any

from trainer.config import Discriminators as DiscriminatorSettings
from trainer.config import Network
from trainer.networks import NETWORKS, Discriminators


def network_settings(network: Network, stages: int) -> dict[str, Any]:
    """What `build` takes beside the network's name, for so many supervised stages or as many as the network has."""
    settings: dict[str, Any] = {"in_channels": network.in_channels}
    if NETWORKS[network.name].stages > 1:
        settings["heads"] = supervised_stages(network, stages)
    if network.name == "unet":
        settings |= {"widths": list(network.widths), "norm": network.norm}
    return settings


def supervised_stages(network: Network, stages: int) -> int:
    """How many outputs the network is supervised at, of so many wanted."""
    has: int = NETWORKS[network.name].stages
    return min(stages, has, len(network.widths) - 1) if network.name == "unet" else min(stages, has)


def discriminators_of(settings: DiscriminatorSettings, stages: int) -> Discriminators:
    """The discriminators of so many supervised stages."""
    return Discriminators(settings.widths, settings.strides, stages, settings.norm)
