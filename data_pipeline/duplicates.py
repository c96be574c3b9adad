"""Scans that show the same picture: found by the correlation of small gray thumbnails, joined into groups.

A thumbnail forgets what re-encoding, another resolution, brightness or contrast change, and keeps what is shown.
Public sets hold such pairs, some with two labels or under two patients, and one of them in training and its double
in validation is a leak.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_pipeline.scan import Gray

Thumbnail = NDArray[np.float32]
Pair = tuple[int, int, float]
"""Two positions, the smaller first, and their correlation."""

SIDE = 48
"""Pixels of a thumbnail's side."""

THRESHOLD = 0.97
"""Two scans are near-duplicates where their thumbnails' correlation is above this."""

_FLAT = 0.01
"""Gray levels of standard deviation. Below, a thumbnail is constant but for what was rounded."""

_BLOCK = 2048
"""Thumbnails of a side of one matrix product: 16 MiB of correlations, whatever the number of scans."""


def thumbnail(image: Gray) -> Thumbnail:
    """An image, uint8 [H, W], as float32 [2304]: its 48x48 area means with zero mean and unit norm.

    The product of two is their correlation, in [-1, 1]. A constant image gives zeros, which resemble nothing.
    """
    small = cv2.resize(image.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel()
    centred: NDArray[np.float64] = small - small.mean(dtype=np.float64)
    norm = np.sqrt(np.square(centred, dtype=np.float64).sum())
    if norm < _FLAT * SIDE:
        return np.zeros(SIDE * SIDE, dtype=np.float32)
    return np.asarray(centred / norm, dtype=np.float32)


def pixel_digest(pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> bytes:
    """16 bytes that are equal where pixels [H, W] and size are."""
    size = np.array(pixels.shape, dtype=np.int64).tobytes()
    return hashlib.blake2b(size + pixels.tobytes(), digest_size=16).digest()


def near_duplicates(thumbnails: Thumbnail, threshold: float = THRESHOLD) -> list[Pair]:
    """Every pair of thumbnails, float32 [N, 2304], whose correlation is above a threshold: (i, j, correlation), i < j.

    Sorted by i and j. All pairs are compared, a block at a time, on all cores; beside the thumbnails memory grows
    with the pairs found only.
    """
    pairs: list[Pair] = []
    for first in range(0, len(thumbnails), _BLOCK):
        for second in range(first, len(thumbnails), _BLOCK):
            correlations = thumbnails[first : first + _BLOCK] @ thumbnails[second : second + _BLOCK].T
            rows, columns = np.nonzero(correlations > threshold)
            if first == second:
                above = rows < columns
                rows, columns = rows[above], columns[above]
            found = np.minimum(correlations[rows, columns], 1.0).tolist()
            pairs += zip((rows + first).tolist(), (columns + second).tolist(), found, strict=True)
    return sorted(pairs)


def with_identical(pairs: Sequence[Pair], digests: Sequence[bytes]) -> list[Pair]:
    """The pairs and each scan's with the first that has the same digest: near_duplicates misses constant images."""
    first: dict[bytes, int] = {}
    joined = {(i, j) for i, j, _ in pairs}
    missed: list[Pair] = []
    for place, digest in enumerate(digests):
        original = first.setdefault(digest, place)
        if original != place and (original, place) not in joined:
            missed.append((original, place, 1.0))
    return sorted([*pairs, *missed])


def duplicate_groups(count: int, pairs: Sequence[Pair]) -> list[int]:
    """The group of each of `count` scans, numbered from 0 by their first scans: those whom pairs join, also through
    others, share one, and a scan without a double is a group of its own.
    """
    ends = np.array([(first, second) for first, second, _ in pairs], dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(count, count))
    groups: list[int] = connected_components(graph, directed=False)[1].tolist()
    return groups
