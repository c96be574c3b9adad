"""Random numbers of scans as a function of (seed, epoch, key): no state, the same in any batch and on any device."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chance:
    """What may happen to a batch of scans in an epoch, one kind of change independent of the other."""

    keys: Sequence[str]
    seed: int
    epoch: int
    device: torch.device

    def draws(self, count: int, kind: str = "") -> Tensor:
        """Uniform numbers in [0, 1), [B, count], count at most 8."""
        words = np.frombuffer(self._hashes(count, kind), dtype="<u8").reshape(len(self.keys), count) >> np.uint64(40)
        return torch.from_numpy(words.astype(np.float32) / np.float32(1 << 24)).to(self.device)

    def fields(self, size: tuple[int, int], kind: str) -> Tensor:
        """Two independent fields of uniform numbers in [-1, 1], [B, 2, height, width], computed on the device.

        Each number is a hash of 64 bits of the scan and of its place: pcg3d of Jarzynski and Olano, "Hash functions
        for GPU rendering", Journal of Computer Graphics Techniques 9 (3), 2020, in 32 bit integers that overflow.
        """
        height, width = size
        words = torch.from_numpy(np.frombuffer(self._hashes(1, kind), dtype="<i4").copy()).to(self.device)
        places = torch.arange(height * width, dtype=torch.int32, device=self.device)
        x, y, z = (part * 1664525 + 1013904223 for part in (words[::2, None], words[1::2, None], places))
        x = (y * z).add_(x)
        y = (z * x).add_(y)
        z = (x * y).add_(z)
        for part in (x, y, z):
            part ^= (part >> 16).bitwise_and_(0xFFFF)  # torch shifts the sign in
        x += y * z
        y += z * x
        return torch.stack((x, y), dim=1).view(-1, 2, height, width) * 2.0**-31

    def normals(self, size: tuple[int, int], kind: str) -> Tensor:
        """Two independent fields of standard normal numbers, [B, 2, height, width] (Box and Muller, 1958)."""
        radius, turn = self.fields(size, kind).unbind(1)
        radius = (-2 * ((radius + 1) / 2).clamp_(min=2.0**-32).log_()).sqrt_()
        turn = math.pi * turn
        return torch.stack((radius * turn.cos(), radius * turn.sin()), dim=1)

    def _hashes(self, words: int, kind: str) -> bytes:
        """So many times 64 bits of each key, one key after the other."""
        return b"".join(
            hashlib.blake2b(
                f"{self.seed} {self.epoch} {key}".encode(), digest_size=8 * words, person=kind.encode()
            ).digest()
            for key in self.keys
        )
