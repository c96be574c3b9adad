"""A mask at another size, by exact arithmetic: a pixel is inside where at least half of what it covers is."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask bool [H, W] at another (height, width), uint8 in {0, 1}.

    The area that is inside, summed from the corner up to the new pixels' corners, is linear within an old pixel; in
    pieces of 1 / (height x width) of one it is a whole number.
    """
    if mask.shape == size:
        return mask.astype(np.uint8)
    resized = np.zeros(size, dtype=np.uint8)
    inside = np.ascontiguousarray(mask).view(np.uint8)
    left, top, width, height = cv2.boundingRect(inside)  # a lesion is small, and all that lies outside its box known
    if not width:
        return resized
    summed = cv2.integral(inside[top : top + height, left : left + width]).astype(np.int64)
    summed, rows = _at_new_edges(summed, top, mask.shape[0], size[0])
    summed, columns = _at_new_edges(summed.T, left, mask.shape[1], size[1])
    covered = np.diff(np.diff(summed, axis=0), axis=1).T
    resized[rows, columns] = 2 * covered >= mask.shape[0] * mask.shape[1]
    return resized


def _at_new_edges(summed: NDArray[np.int64], start: int, before: int, after: int) -> tuple[NDArray[np.int64], slice]:
    """Sums up to the edges of the new rows that touch the box, in pieces of 1 / after; and which rows these are.

    summed is at the edges of the box's old rows, [rows + 1, any]; the first of `before` rows is `start`.
    """
    stop = start + len(summed) - 1
    touched = slice(start * after // before, -(-stop * after // before))
    edges = np.arange(touched.start, touched.stop + 1) * before - start * after
    row, piece = np.divmod(np.clip(edges, 0, (stop - start) * after), after)
    above, below = summed[row], summed[np.minimum(row + 1, stop - start)]
    return above * (after - piece)[:, None] + below * piece[:, None], touched
