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

from data_pipeline.pixels import LARGEST_SIDE

CODECS = ("png", "npy")

_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_ONE_BIT_GRAY = b"\x01\x00\x00\x00\x00"
"""Depth, colour type, compression, filter method and interlacing, as a PNG's header gives them."""

_UNREADABLE = (ValueError, TypeError, SyntaxError, EOFError, OverflowError, MemoryError, RecursionError, TokenError)
"""What numpy raises for a broken array, whose header is Python, or for one that announces more than there can be."""


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
            bits = _one_bit_png(data) if part == "mask" else None
            return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if bits is None else bits
    except (*_UNREADABLE, cv2.error):
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
    except _UNREADABLE:
        shape = None
    if shape is None or len(data) != begin + shape[0] * shape[1]:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)


@lru_cache(maxsize=4096)
def _shape_in(header: bytes) -> tuple[int, int] | None:
    """Height and width of the gray image that this header announces, None for any other array."""
    buffer = io.BytesIO(header)
    if np.lib.format.read_magic(buffer) != (1, 0):
        return None
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(buffer)
    return (shape[0], shape[1]) if len(shape) == 2 and not by_columns and dtype == np.uint8 else None


def _one_bit_png(data: bytes) -> NDArray[np.uint8] | None:
    """The pixels 0 and 1 [H, W] of a whole PNG of one bit a pixel without row filters; None for any other PNG.

    A third of OpenCV's time, and a quarter of a scan's where its image is a plain array.
    """
    if data[:16] != _PNG or data[24:29] != _ONE_BIT_GRAY:
        return None
    width, height = struct.unpack(">2I", data[16:24])
    packed = _png_data(data)
    if packed is None or not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        return None
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


def _png_data(data: bytes) -> bytearray | None:
    """The deflated rows of a PNG; None where a part of it does not agree with its checksum or is not there."""
    packed = bytearray()
    place = 8
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if zlib.crc32(data[place + 4 : end]).to_bytes(4) != data[end : end + 4]:
            return None
        if kind == b"IDAT":
            packed += data[place + 8 : end]
        elif kind == b"IEND":
            return packed
        place = end + 4
    return None
