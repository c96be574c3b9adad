"""Run by each rank of a job: batch norm over all ranks beside one process's on the joined batch; prints differences."""

from __future__ import annotations

import json
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from trainer.networks import build
from trainer.networks.synchronised import SynchronisedBatchNorm

SHARES = (3, 1)
"""Scans that each rank has; they need not be as many."""


def main() -> None:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = distributed.get_rank()
    mine = slice(sum(SHARES[:rank]), sum(SHARES[: rank + 1]))
    torch.manual_seed(0)
    found = {
        "norm": _of_norm(mine, torch.float32),
        "norm in double": _of_norm(mine, torch.float64),
        "norm far from zero": _of_norm(mine, torch.float32, centre=100.0),
        "unet in double": _of_network(mine),
    }
    half = SynchronisedBatchNorm(3)(torch.rand(2, 3, 4, 4).bfloat16())
    found["type"] = str(half.dtype)
    if rank == 0:  # In evaluation, nobody waits for the others.
        norm = SynchronisedBatchNorm(3).eval()
        features = torch.rand(2, 3, 4, 4)
        found["evaluation"] = _difference(norm(features), nn.BatchNorm2d(3).eval()(features))
    print(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


def _of_norm(mine: slice, kind: torch.dtype, centre: float = 0.0) -> float:
    ours, joined = SynchronisedBatchNorm(3).to(kind), nn.BatchNorm2d(3).to(kind)
    for norm in (ours, joined):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias)
    joined.load_state_dict(ours.state_dict())
    features, pull = torch.randn(2, 4, 3, 6, 5, dtype=kind) * torch.tensor([1.0, 5.0, 0.1])[:, None, None]
    return _apart(ours, joined, features + centre, pull, mine)


def _of_network(mine: slice) -> float:
    widths, heads = (4, 6, 8), 2
    ours, joined = (build("unet", widths=widths, heads=heads, norm=norm).double() for norm in ("sync_batch", "batch"))
    joined.load_state_dict(ours.state_dict())
    scans, pull = torch.randn(2, 4, 1, 16, 16, dtype=torch.float64)
    return _apart(_Finest(ours), _Finest(joined), scans, pull, mine)


class _Finest(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, scans: Tensor) -> Tensor:
        finest: Tensor = self.network(scans)[0]
        return finest


def _apart(ours: nn.Module, joined: nn.Module, features: Tensor, pull: Tensor, mine: slice) -> float:
    """The largest difference in outputs, gradients (input and, summed over ranks, parameters) and statistics."""
    whole, part = features.clone().requires_grad_(), features[mine].clone().requires_grad_()
    expected, made = joined(whole), ours(part)
    (expected * pull).sum().backward()
    (made * pull[mine]).sum().backward()
    apart = [_difference(made, expected[mine]), _difference(part.grad, whole.grad[mine])]  # type: ignore[index, arg-type]
    for one, other in zip(ours.parameters(), joined.parameters(), strict=True):
        if one.grad is not None and other.grad is not None:
            distributed.all_reduce(one.grad)
            apart.append(_difference(one.grad, other.grad))
    apart += [_difference(one, other) for one, other in zip(ours.buffers(), joined.buffers(), strict=True)]
    return max(apart)


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest, of values around one or less as it is, of larger ones as a fraction."""
    return float(((one - other).abs() / other.abs().clamp(min=1)).max())


main()
