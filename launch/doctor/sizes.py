"""How large the networks of a configuration are."""

from __future__ import annotations

import torch
from torch import nn

from trainer.config import Config
from trainer.engines import has_adversary
from trainer.networks import build
from trainer.networks.settings import discriminators_of, network_settings, supervised_stages


def parameters(config: Config) -> int:
    """Parameters of the generator and of the discriminators, if any."""
    network, objective = config.network, config.objective
    stages = supervised_stages(network, objective.stages)
    with torch.device("meta"):
        sides: list[nn.Module] = [build(network.name, **network_settings(network, objective.stages))]
        if has_adversary(objective, stages):
            sides.append(discriminators_of(config.discriminators, stages))
    return sum(parameter.numel() for side in sides for parameter in side.parameters())
