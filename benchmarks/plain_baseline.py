"""The plain baseline: a UNet trained with Dice + BCE in one loop of PyTorch, as one writes it without sonotrain.

    python benchmarks/plain_baseline.py BUS_BRA BREAST_LESIONS_USG --out DIR [--epochs 47] [--threads 2]

UNet 32-512 with one output, no deep supervision, no discriminator; Adam at 1e-3 with a cosine to zero; batch 16 at
128x128; flips, 15 degrees, 10 % scale, 5 % shift, contrast and brightness; bf16 autocast and channels-last, on the
CPU. Trained on BUS-BRA's official folds 2 to 5; the last epoch's weights are judged on fold 1 and, unseen, on
BrEaST-Lesions-USG. Only scans are read and scores computed by sonotrain, so that both are judged by the same code.

DIR gets fold-1.csv and zero-shot.csv (a row a scan), result.json (scores, and what each epoch took in wall and
processor time; reading, validating and saving are not training time and left out), and checkpoint.pt, from which a
loop started again goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline import Dataset, open_dataset, stream_scans
from launch.machine import machine
from trainer.evaluate import evaluate
from trainer.metrics import summarise
from trainer.score_table import write_csv

SIZE = 128
BATCH = 16
RATE = 1e-3
HELD_OUT = 1
VALIDATED = (1, 4, 10, 20, 30, 40)
"""Epochs after which the DSC at 128x128 is looked at, which changes nothing."""


def main() -> None:
    """Train, or go on with it, then judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", help="BUS-BRA, as `sonotrain data ingest` wrote it")
    parser.add_argument("zero_shot", help="BrEaST-Lesions-USG, likewise")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=47)
    parser.add_argument("--threads", type=int, default=2)
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    cv2.setNumThreads(1)
    wanted.out.mkdir(parents=True, exist_ok=True)

    dataset, unseen = open_dataset(wanted.trained), open_dataset(wanted.zero_shot)
    network, epochs = train(dataset, wanted.epochs, wanted.out / "checkpoint.pt")

    result: dict[str, Any] = {
        "machine": {**machine(), "threads": wanted.threads, "torch": torch.__version__},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "wall_seconds": sum(epoch["wall_seconds"] for epoch in epochs),
        "cpu_seconds": sum(epoch["cpu_seconds"] for epoch in epochs),
        "epochs": epochs,
    }
    for name, judged, positions in (
        ("fold-1", dataset, dataset.positions([HELD_OUT])),
        ("zero-shot", unseen, unseen.positions()),
    ):
        scores = evaluate(Plain(network), stream_scans(judged, positions, 1))
        write_csv(wanted.out / f"{name}.csv", scores)
        result[name] = asdict(summarise(scores))
        print(f"{name}: DSC {result[name]['dsc']['mean']:.4f}, {result[name]['missed']} missed", flush=True)
    (wanted.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


# -- the loop ----------------------------------------------------------------------------------------------------------


def train(dataset: Dataset, epochs: int, checkpoint: Path) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The trained network, and what each epoch came to."""
    torch.manual_seed(0)
    network = UNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    images, masks = in_memory(dataset, [fold for fold in dataset.folds() if fold != HELD_OUT])
    held_out = in_memory(dataset, [HELD_OUT])
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * steps)
    log: list[dict[str, Any]] = []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["random"])
        log = saved["log"]

    for epoch in range(len(log) + 1, epochs + 1):
        begun, used = time.perf_counter(), processor_seconds()
        network.train()
        total = 0.0
        order = torch.randperm(len(images))
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            image, mask = varied(images[chosen], masks[chosen])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = network(image.to(memory_format=torch.channels_last))
            loss = dice_and_bce(logits.float(), mask)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        log.append(
            {
                "epoch": epoch,
                "wall_seconds": time.perf_counter() - begun,
                "cpu_seconds": processor_seconds() - used,
                "loss": total / steps,
            }
        )
        if epoch in VALIDATED:
            log[-1]["dsc_at_128"] = mean_dsc(network, *held_out)
        print(json.dumps(log[-1]), flush=True)
        save(checkpoint, network, optimizer, schedule, log)
    return network, log


def varied(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 scans and masks [B, 1, H, W] as floats in 0..1: each moved, and made lighter or darker, at random."""
    image, mask = images.float() / 255, masks.float()
    count = len(image)
    angle = uniform(count, math.radians(15))
    zoom = 1 / (1 + uniform(count, 0.10))
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    shift = 2 * uniform(2 * count, 0.05).view(count, 2)  # the side is 2 in a grid's coordinates
    matrix = torch.stack(
        [
            torch.stack([mirror * zoom * torch.cos(angle), -zoom * torch.sin(angle), shift[:, 0]], dim=1),
            torch.stack([mirror * zoom * torch.sin(angle), zoom * torch.cos(angle), shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(matrix, list(image.shape), align_corners=False)
    image = F.grid_sample(image, grid, mode="bilinear", align_corners=False)
    mask = F.grid_sample(mask, grid, mode="nearest", align_corners=False)
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    contrast = 1 + uniform(count, 0.2).view(-1, 1, 1, 1)
    brightness = uniform(count, 0.1).view(-1, 1, 1, 1)
    return ((image - mean) * contrast + mean + brightness).clamp(0, 1), mask


def uniform(count: int, largest: float) -> Tensor:
    """So many numbers between -largest and largest."""
    return (2 * torch.rand(count) - 1) * largest


def dice_and_bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice loss, the mean over scans, plus binary cross-entropy."""
    probability = torch.sigmoid(logits)
    both = (probability * mask).sum(dim=(1, 2, 3))
    either = probability.sum(dim=(1, 2, 3)) + mask.sum(dim=(1, 2, 3))
    return (1 - (2 * both + 1) / (either + 1)).mean() + F.binary_cross_entropy_with_logits(logits, mask)


# -- the network -------------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """Five levels of 32 to 512 channels: two convolutions to a block, pooling down, transposed convolutions up."""

    def __init__(self) -> None:
        super().__init__()
        widths = (32, 64, 128, 256, 512)
        self.down = nn.ModuleList(block(before, width) for before, width in zip((1, *widths), widths, strict=False))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[:-1])
        self.up = nn.ModuleList(block(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scans [B, 1, H, W] to logits of the same shape."""
        skips = []
        for level, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for level in (3, 2, 1, 0):
            x = self.up[level](torch.cat([skips[level], self.rise[level](x)], dim=1))
        logits: Tensor = self.head(x)
        return logits


def block(before: int, width: int) -> nn.Sequential:
    """Twice: 3x3 convolution, batch norm, ReLU."""
    layers: list[nn.Module] = []
    for channels in (before, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


# -- scans in and probabilities out ------------------------------------------------------------------------------------


def in_memory(dataset: Dataset, folds: list[int]) -> tuple[Tensor, Tensor]:
    """All scans of some folds and their masks, uint8 [N, 1, 128, 128]; masks in {0, 1}."""
    images, masks = [], []
    for scan in stream_scans(dataset, dataset.positions(folds), 1):
        images.append(cv2.resize(scan.image, (SIZE, SIZE), interpolation=cv2.INTER_AREA))
        masks.append(cv2.resize(scan.mask.astype(np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_NEAREST))
    return torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(np.stack(masks))[:, None]


class Plain:
    """The network as the judge calls it."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()

    def marked(self, probability: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Lesion is where it is as likely as not."""
        return probability >= 0.5

    @torch.no_grad()
    def probabilities(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Probabilities [H, W] for each image [H, W], at its own size; none for none."""
        if not images:
            return []
        small = [cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for image in images]
        logits = self.network(torch.from_numpy(np.stack(small))[:, None].float() / 255)
        return [
            torch.sigmoid(F.interpolate(map_[None], image.shape, mode="bilinear", align_corners=False))[0, 0].numpy()
            for map_, image in zip(logits, images, strict=True)
        ]


@torch.no_grad()
def mean_dsc(network: nn.Module, images: Tensor, masks: Tensor) -> float:
    """The mean over scans of DSC at 128x128."""
    network.eval()
    found = torch.cat([network(part.float() / 255) > 0 for part in torch.split(images, BATCH)])
    both = (found & (masks > 0)).sum(dim=(1, 2, 3))
    either = found.sum(dim=(1, 2, 3)) + masks.sum(dim=(1, 2, 3))
    return float((2 * both / either).mean())


def save(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    log: list[dict[str, Any]],
) -> None:
    """All that the loop goes on from, in place of what was there."""
    torch.save(
        {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "random": torch.get_rng_state(),
            "log": log,
        },
        path.with_suffix(".part"),
    )
    path.with_suffix(".part").replace(path)


def processor_seconds() -> float:
    """Of this process, user and system together."""
    used = os.times()
    return used.user + used.system


if __name__ == "__main__":
    main()
