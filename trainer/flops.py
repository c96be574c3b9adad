"""How much arithmetic an iteration is, counted operation by operation, for the speed that a run reaches."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import Config
from trainer.engines import has_adversary
from trainer.networks import build
from trainer.networks.settings import discriminators_of, network_settings, supervised_stages
from trainer.objectives import stage_maps


def flops_of_a_scan(config: Config) -> float:
    """Floating-point operations of one iteration for one scan, two for a multiplication with its addition.

    Convolutions and matrix products of the generator's forward and backward, of the discriminators' on truth and
    map, and of their judgement through which the generator learns; norms and losses are left out, as is usual.
    Networks of shapes without values are counted, which takes well under a second.
    """
    objective = config.objective
    stages = supervised_stages(config.network, objective.stages)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        generator = build(config.network.name, **network_settings(config.network, objective.stages))
        scans = torch.zeros(2, config.network.in_channels, *config.data.size)  # a batch norm refuses a single scan
        maps = stage_maps(generator(scans), config.data.size, objective.truth)
        loss = torch.stack([seen.sum() for seen in maps]).sum()
        if has_adversary(objective, stages):
            discriminators = discriminators_of(config.discriminators, stages)
            seen = [stage.detach() for stage in maps]
            on_truths, on_maps = discriminators(seen, seen)
            torch.stack([judged.sum() for judged in (*on_truths, *on_maps)]).sum().backward()
            discriminators.requires_grad_(False)
            loss = loss + torch.stack([judged.sum() for judged in discriminators.judge(maps)]).sum()
        loss.backward()
    return counter.get_total_flops() / 2
