"""The pieces that a mask falls into, and the largest of them.

A registered model carries this file with it, so it rests on numpy alone.
"""

import numpy as np
from numpy.typing import NDArray


def keep_largest(mask: NDArray[np.bool_], probability: NDArray[np.float32]) -> NDArray[np.bool_]:
    """A mask bool [H, W] without all but its largest component, where pixels touch by edges and corners.

    Of several equally large ones the one with the highest mean of probability, float32 [H, W], and of several of
    those the first by rows. An empty mask stays empty.
    """
    if not mask.any():
        return mask.copy()
    component = _components(mask)
    area = np.bincount(component)
    inside = np.bincount(component, weights=probability[mask])
    kept = np.zeros_like(mask)
    kept[mask] = component == np.argmax(np.where(area == area.max(), inside, -1.0))
    return kept


def _components(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each marked pixel, by rows, a number that its component's pixels share; the first's is the lowest.

    By runs, which are pixels marked side by side in a row: each is joined to those that it touches in the row above
    (Rosenfeld & Pfaltz, 1966, with the equivalences resolved by union and find over all runs at once).
    """
    # Each row is followed by a pixel that is not marked, so that no run goes on in the next.
    stride = mask.shape[1] + 1
    flat = np.pad(mask, ((0, 0), (0, 1))).ravel().astype(np.int8)
    steps = np.diff(flat, prepend=np.int8(0))
    begins, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    # Runs [begin, end) touch, if only by a corner, where neither ends before the other begins.
    first = np.searchsorted(ends, begins - stride, side="left")
    last = np.searchsorted(begins, ends - stride, side="right")
    touched = np.maximum(last - first, 0)
    below = np.repeat(np.arange(len(begins)), touched)
    above = np.arange(len(below)) + np.repeat(first - (np.cumsum(touched) - touched), touched)
    return np.repeat(_joined(len(begins), above, below), ends - begins)


def _joined(count: int, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of `count` runs the lowest number of a run that pairs (one, other) lead to."""
    root = np.arange(count)
    while True:
        lower, higher = np.minimum(root[one], root[other]), np.maximum(root[one], root[other])
        if np.array_equal(lower, higher):
            return root
        np.minimum.at(root, higher, lower)
        while not np.array_equal(root, root[root]):
            root = root[root]
