"""Batch norm over the scans of all processes, on any device.

torch's own SyncBatchNorm refuses tensors on the CPU. A registered model of the UNet carries this file with it, so
it rests on torch alone.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """Batch norm (Ioffe and Szegedy, 2015) whose mean and variance in training are those over all processes.

    All processes of the default group must then call it alike; how many scans each has may differ. Running
    statistics come out the same on all of them. In evaluation, and without other processes, it is nn.BatchNorm2d,
    whose parameters and buffers it has.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, C, H, W] normalised for each channel, in their own precision."""
        if not (self.training and _has_company()):
            return super().forward(features)
        # Half precision is too coarse for statistics, and for what becomes of them.
        values = features.to(torch.promote_types(features.dtype, torch.float32))
        mean, variance, count = _joint_statistics(values)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * (variance + self.eps).rsqrt()
        centred = values - mean[:, None, None]
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None]).to(features.dtype)


def _has_company() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _joint_statistics(features: Tensor) -> tuple[Tensor, ...]:
    """Mean [C] and variance [C] over all processes, and over how many values they are [1].

    Sums and sums of squares are exchanged in double precision, in which their difference loses nothing that
    the features' own has.
    """
    variance, mean = (values.double() for values in torch.var_mean(features, dim=(0, 2, 3), correction=0))
    here = mean.new_full((1,), features[:, 0].numel())
    channels = len(mean)
    sums = _SumOverProcesses.apply(torch.cat((mean * here, (variance + mean.square()) * here, here)))
    total, squares, count = sums.split((channels, channels, 1))
    joint = total / count
    return tuple(values.to(features.dtype) for values in (joint, squares / count - joint.square(), count))


class _SumOverProcesses(torch.autograd.Function):
    """A tensor summed over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004, nothing has to be kept for the backward
        summed = values.clone()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        summed = gradient.contiguous().clone()
        distributed.all_reduce(summed)
        return summed
