"""The networks, by their names in the paper's Table 1."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from data_pipeline import WrongCall
from trainer.networks.attunet import AttUNet
from trainer.networks.blocks import Network
from trainer.networks.deepres import DeepRes
from trainer.networks.discriminator import Discriminators, logit_map_side
from trainer.networks.msunet import MSUNet
from trainer.networks.segnet import SegNet
from trainer.networks.u2net import U2Net
from trainer.networks.unet import UNet
from trainer.networks.unet3p import UNet3Plus
from trainer.networks.unetpp import UNetPlusPlus

NETWORKS: Mapping[str, type[Network]] = MappingProxyType(
    {
        "unet": UNet,
        "deepres": DeepRes,
        "msunet": MSUNet,
        "unetpp": UNetPlusPlus,
        "segnet": SegNet,
        "attunet": AttUNet,
        "u2net": U2Net,
        "unet3p": UNet3Plus,
    }
)


def build(name: str, in_channels: int = 1, **settings: Any) -> Network:
    """The network of that name, whose forward gives a list of logits, finest first.

    settings are the network's own keyword arguments. Raises WrongCall for a name that no network has, and for a
    setting that this one does not have or cannot have with that value.
    """
    if name not in NETWORKS:
        raise WrongCall(f"there is no network {name}; there are {', '.join(NETWORKS)}")
    known = inspect.signature(NETWORKS[name]).parameters
    for setting in settings:
        if setting not in known:
            raise WrongCall(f"the network {name} has no setting {setting}; it has {', '.join(known)}")
    try:
        return NETWORKS[name](in_channels=in_channels, **settings)
    except (TypeError, ValueError) as wrong:
        raise WrongCall(f"the network {name} cannot be built: {wrong}") from wrong


__all__ = ["NETWORKS", "Discriminators", "Network", "UNet", "build", "logit_map_side"]
