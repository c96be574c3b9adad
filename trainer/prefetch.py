"""Batches copied to the device while it computes on the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from data_pipeline import Batch

Copied = tuple[Tensor, Tensor, Sequence[str]]
"""Image and mask, uint8 [B, 1, H, W] on the device, and the keys of a batch."""


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Copied]:
    """The batches in order, on the device.

    On a GPU one batch is copied ahead, from page-locked memory by a stream of its own; on a CPU nothing is copied.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.image, batch.mask, batch.keys
        return
    copies = torch.cuda.Stream(device)
    ahead: tuple[Copied, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            image, mask = (each.pin_memory().to(device, non_blocking=True) for each in (batch.image, batch.mask))
            copied = (image, mask, batch.keys), copies.record_event()
        if ahead is not None:
            yield _handed_over(*ahead)
        ahead = copied
    if ahead is not None:
        yield _handed_over(*ahead)


def _handed_over(batch: Copied, arrived: torch.cuda.Event) -> Copied:
    """A batch that the computing stream waits for, and that nobody overwrites before it is done with it."""
    computes = torch.cuda.current_stream()
    computes.wait_event(arrived)
    for tensor in batch[:2]:
        tensor.record_stream(computes)
    return batch
