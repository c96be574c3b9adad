"""A network's floating-point buffers (the statistics of its norms) as one tensor, to be kept, averaged or put back."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def joined_buffers(module: nn.Module) -> Tensor:
    """One flat tensor, [values], of which every floating-point buffer of the module becomes a part.

    What the module writes into its buffers in place is in the tensor, and the other way round.
    """
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if not buffers:
        return torch.empty(0)
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    for buffer, part in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.data = part.view_as(buffer)
    return flat
