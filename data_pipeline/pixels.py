"""Image files as gray pixels, and gray pixels at another size: the same for training, evaluation and serving.

A registered model carries this file with it, so it rests on numpy and Pillow alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

LARGEST_SIDE = 16384
"""Pixels. A larger image is refused before it is decoded: no ultrasound device makes one."""


class UnreadableImage(ValueError):
    """A file that is no image, is cut off, or holds pixels that cannot be taken for gray."""


def read_gray(file: Path | BinaryIO) -> NDArray[np.uint8]:
    """An image file as gray [H, W]: colour by luma, 16 bit by its upper byte, alpha dropped.

    Raises UnreadableImage with the reason, without the file's name.
    """
    with opened_image(file) as picture:
        return as_gray(picture)


def as_gray(picture: Image.Image) -> NDArray[np.uint8]:
    """A decoded picture as read_gray gives it. Raises UnreadableImage."""
    if picture.mode.startswith("I;16"):
        return (np.asarray(picture, dtype=np.uint16) >> 8).astype(np.uint8)
    if picture.mode in ("I", "F"):
        raise UnreadableImage("holds 32 bit pixels; 8 or 16 bit gray and 8 bit colour can be read")
    opaque = picture if picture.mode in ("1", "L") else picture.convert("RGB")
    return np.array(opaque.convert("L"), dtype=np.uint8)


def resize_gray(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image [H, W] at another (height, width), bilinear, averaging over what a pixel covers when it shrinks."""
    if image.shape == size:
        return image
    height, width = size
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR), dtype=np.uint8)


@contextmanager
def opened_image(file: Path | BinaryIO) -> Iterator[Image.Image]:
    """The first frame of an image file, decoded here so that a truncated one shows. Raises UnreadableImage."""
    try:
        with Image.open(file) as picture:
            if max(picture.size) > LARGEST_SIDE:
                raise UnreadableImage(f"is {picture.height}x{picture.width}, more than {LARGEST_SIDE} pixels a side")
            picture.load()
            yield picture
    except UnreadableImage:
        raise
    except FileNotFoundError as missing:
        raise UnreadableImage("is missing") from missing
    except IsADirectoryError as folder:
        raise UnreadableImage("is a folder") from folder
    except UnidentifiedImageError as unknown:
        raise UnreadableImage("is no image that can be read") from unknown
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError, Image.DecompressionBombError) as broken:
        raise UnreadableImage(f"cannot be read: {broken}") from broken
