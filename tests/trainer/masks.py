"""Masks and scans that tests of measures share."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data_pipeline import Scan

pairs = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape))
)
"""Two masks of the same size, of any kind."""

spacings = st.tuples(st.floats(0.05, 3), st.floats(0.05, 3))


def scan_of(truth, spacing=None, key="a", patient="p"):
    """A black scan of that truth."""
    return Scan(key, np.zeros(truth.shape, np.uint8), truth, patient, patient, "benign", spacing)


def rectangle(shape, top, left, bottom, right):
    """A mask that is a rectangle."""
    mask = np.zeros(shape, np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def disc(shape, centre, radius):
    """A mask that is a disc."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
