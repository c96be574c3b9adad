"""How a scan's pixels lie in a shard: PNG or a plain array, both decoded by any webdataset reader by itself.

Decoding is nearly all that reading costs, so the two shapes that our own shards hold, an array and a mask of one bit
a pixel, are read in place; whatever else a sample may hold goes the libraries' way.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from tokenize import TokenError
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

CODECS = ("png", "npy")

_PNG = b"\x89PNG\r\n\x1a\n"
_ONE_BIT_GRAY = b"\x01\x00\x00\x00\x00"
"""Depth, colour type, compression, filter method and interlacing, as a PNG's header gives them."""


def encode_image(image: NDArray[np.uint8], codec: str) -> bytes:
    """An image uint8 [H, W] without loss, as PNG or as a `.npy` array."""
    return _encode_png(image) if codec == "png" else _npy_header(*image.shape) + image.tobytes()


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """A mask bool [H, W] as a PNG of one bit a pixel, 255 inside."""
    no_filter = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    return _encode_png(mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1, *no_filter])


def decode(members: Mapping[str, bytes], part: str) -> Any:
    """The pixels of a sample's `image` or `mask`, an array or a PNG, whichever it holds; inside a mask is above 0.

    The array may be read-only. None where the part is missing or holds no pixels that can be read.
    """
    try:
        if f"{part}.npy" in members:
            return _decode_npy(members[f"{part}.npy"])
        if f"{part}.png" in members:
            data = members[f"{part}.png"]
            bits = _one_bit_png(data)
            return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if bits is None else bits
    except (ValueError, TypeError, SyntaxError, EOFError, TokenError, cv2.error):  # numpy's header is Python
        return None
    return None


def _encode_png(pixels: NDArray[np.uint8], options: Sequence[int] = ()) -> bytes:
    _, data = cv2.imencode(".png", pixels, list(options))
    return data.tobytes()


@lru_cache(maxsize=4096)
def _npy_header(height: int, width: int) -> bytes:
    """What a `.npy` file begins with that holds uint8 [height, width]."""
    buffer = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (height, width)}
    np.lib.format.write_array_header_1_0(buffer, shape)
    return buffer.getvalue()


def _decode_npy(data: bytes) -> Any:
    begin = int.from_bytes(data[8:10], "little") + 10
    try:
        shape = _shape_in(data[:begin])
    except (ValueError, TypeError, SyntaxError, EOFError, TokenError):
        shape = None
    if shape is None or len(data) != begin + shape[0] * shape[1]:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)


@lru_cache(maxsize=4096)
def _shape_in(header: bytes) -> tuple[int, int] | None:
    """Height and width of the gray image that this header announces, None for any other array."""
    buffer = io.BytesIO(header)
    np.lib.format.read_magic(buffer)
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(buffer)
    return (shape[0], shape[1]) if len(shape) == 2 and not by_columns and dtype == np.uint8 else None


def _one_bit_png(data: bytes) -> NDArray[np.uint8] | None:
    """The pixels 0 and 1 [H, W] of a PNG of one bit a pixel without row filters; None for any other PNG.

    A third of OpenCV's time, and a quarter of a scan's where its image is a plain array.
    """
    if data[:8] != _PNG or data[24:29] != _ONE_BIT_GRAY:
        return None
    width, height = struct.unpack(">2I", data[16:24])
    packed = bytearray()
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        if data[place + 4 : place + 8] == b"IDAT":
            packed += data[place + 8 : place + 8 + length]
        place += length + 12
    row = 1 + (width + 7) // 8  # a row begins with the number of its filter
    try:
        rows = zlib.decompressobj().decompress(packed, height * row)
    except zlib.error:
        return None
    if len(rows) != height * row:
        return None
    lines = np.frombuffer(rows, np.uint8).reshape(height, row)
    if lines[:, 0].any():
        return None
    return np.unpackbits(lines[:, 1:], axis=1, count=width)
