"""A mask at another size, by exact arithmetic: a pixel is inside where at least half of what it covers is."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask bool [H, W] at another (height, width), uint8 in {0, 1}.

    The area that is inside, summed from a corner of the lesion's box up to the new pixels' corners, is linear within
    an old pixel; in pieces of 1 / (height x width) of one it is a whole number.
    """
    if mask.shape == size:
        return mask.astype(np.uint8)
    resized = np.zeros(size, dtype=np.uint8)
    inside = np.ascontiguousarray(mask).view(np.uint8)
    left, top, width, height = cv2.boundingRect(inside)  # a lesion is small, and all that lies outside its box known
    if not width:
        return resized
    summed = cv2.integral(inside[top : top + height, left : left + width])
    if mask.size * max(size) >= 1 << 31:  # no sum below is larger
        summed = summed.astype(np.int64)
    row, down, rows = _new_edges(top, height, mask.shape[0], size[0])
    column, across, columns = _new_edges(left, width, mask.shape[1], size[1])
    above = summed[row]
    of_rows = np.diff(above * size[0] + (summed[np.minimum(row + 1, height)] - above) * down[:, None], axis=0)
    before = of_rows[:, column]
    after = of_rows[:, np.minimum(column + 1, width)]
    covered = np.diff(before * size[1] + (after - before) * across, axis=1)
    resized[rows, columns] = covered >= -(-mask.size // 2)
    return resized


def _new_edges(start: int, length: int, before: int, after: int) -> tuple[NDArray[np.int32], NDArray[np.int32], slice]:
    """The edges of the new pixels along a side that touch the box [start, start + length) of `before` old ones.

    Each edge as the box's old pixel that it lies in and how far, in pieces of 1 / after; and which new pixels these
    are, of `after` in all.
    """
    touched = slice(start * after // before, -(-(start + length) * after // before))
    edges = np.arange(touched.start, touched.stop + 1) * before - start * after
    pixel, piece = np.divmod(np.clip(edges, 0, length * after).astype(np.int32), np.int32(after))
    return pixel, piece, touched
