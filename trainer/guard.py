"""What stands before an optimizer's step: a gradient that is too long is shortened, one that is not finite refused.

All of it happens on the device, so that no step waits for an answer. The optimizer itself takes the refusal: a fused
Adam leaves weights, moments and its count of steps alone where its `found_inf` is 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Guard:
    """A hook before each step of one optimizer. refused is 1 where the last step was not taken, else 0, on the device.

    clip is the largest norm of the gradient over all parameters, 0 for any. shared: the processes hold parts of the
    gradient (ZeRO), whose norm they therefore add up; all of them take a step or none does.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float, shared: bool) -> None:
        self.refused: Tensor = torch.zeros(())
        self._clip = clip
        self._shared = shared
        optimizer.register_step_pre_hook(self)

    def __call__(self, optimizer: Any, *_: object) -> None:
        """Look at the gradients that the step would take."""
        parameters = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if self._shared:
            squared = norm.square()
            dist.all_reduce(squared)
            norm = squared.sqrt()
        self.refused = optimizer.found_inf = norm.isfinite().logical_not().float()
        if self._clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip, norm)
