"""What makes an iteration fast, each added to the last, and how much of the chip it then uses."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from launch.benches.step_process import Place
from launch.benches.step_tasks import OURS, PLAIN_LOOP, UNFUSED
from trainer.config import Config
from trainer.engines import allow_tf32, computes_bf16

PEAKS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "NVIDIA A100-SXM4": {"fp32": 19.5, "tf32": 156, "bf16": 312},
        "NVIDIA A100 80GB PCIe": {"fp32": 19.5, "tf32": 156, "bf16": 312},
        "NVIDIA H100 PCIe": {"fp32": 51, "tf32": 378, "bf16": 756},
        "NVIDIA H100 80GB HBM3": {"fp32": 67, "tf32": 494.5, "bf16": 989.5},
        "NVIDIA H200": {"fp32": 67, "tf32": 494.5, "bf16": 989.5},
    }
)
"""TFLOP/s of dense products by how a GPU's name begins, from NVIDIA's data sheets (which double some for sparsity)."""

SIDE = {"cuda": 8192, "cpu": 2048}
"""Of the square matrices whose product tells what a chip reaches."""

SECONDS = 1.0
"""For which such products are taken."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A loop, and the arithmetic that it iterates in."""

    name: str
    loop: str
    precision: str
    channels_last: bool = False
    compile: bool = False

    def of(self, config: Config) -> Config:
        """The configuration in this rung's arithmetic."""
        return config.replace(
            training__precision=self.precision,
            training__channels_last=self.channels_last,
            training__compile=self.compile,
        )


def rungs(device: torch.device, compiles: bool = True) -> tuple[list[Rung], dict[str, str]]:
    """The rungs that the hardware has, bottom first, and why others are left out; compiles: with torch.compile, too.

    All but the last are those of the plain loop, in which each can be had alone.
    """
    missing = {}
    ladder = [Rung("fp32", UNFUSED, "fp32")]
    if device.type == "cuda":
        ladder.append(Rung("+ TF32", UNFUSED, "tf32"))
    else:
        missing["TF32"] = "a CPU has none"
    precision = "bf16" if computes_bf16(device) else ladder[-1].precision
    if precision == "bf16":
        ladder.append(Rung("+ bf16", UNFUSED, precision))
    else:
        missing["bf16"] = "the hardware does not compute it"
    ladder.append(Rung("+ channels-last", UNFUSED, precision, channels_last=True))
    ladder.append(Rung("+ fused Adam", PLAIN_LOOP, precision, channels_last=True))
    compiled = compiles and (device.type == "cuda" or any(map(shutil.which, ("g++", "clang++"))))
    if compiled:
        ladder.append(Rung("+ compile", PLAIN_LOOP, precision, channels_last=True, compile=True))
    else:
        missing["compile"] = "there is no C++ compiler" if compiles else "it was not asked for"
    ladder.append(Rung("sonotrain, all of these", OURS, precision, channels_last=True, compile=compiled))
    return ladder, missing


def peak(place: Place, name: str, precision: str) -> tuple[float, str]:
    """What the chip can do in a precision, in TFLOP/s, and how that is known; name is the device's."""
    for known, sheet in PEAKS.items():
        if name.startswith(known):
            return sheet[precision], "data sheet"
    return _product_rate(place.world.device, precision) / 1e12, "a matrix product, measured"


def _product_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of large matrix products."""
    allow_tf32(precision != "fp32")
    side = SIDE[device.type]
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.rand(side, side, device=device).to(kind) for _ in range(2))
    fastest = float("inf")
    begun = time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        before = time.perf_counter()
        float((left @ right)[0, 0])  # waits for it
        fastest = min(fastest, time.perf_counter() - before)
    return 2 * side**3 / fastest
