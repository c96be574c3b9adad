"""Weights read from a safetensors file, without the library of that name.

A registered model carries this file with it, so it rests on torch and numpy alone, and says what is wrong with a
plain ValueError of one line.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_TENSOR_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU.

    The format: the header's length in 8 bytes, the header as JSON, the tensors' little-endian bytes
    (huggingface.co/docs/safetensors). Nothing in it executes. Raises ValueError, naming the file, when it cannot
    be read, is cut off, or says of a tensor what its bytes cannot be.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as missing:
        raise ValueError(f"{path}: cannot be read ({missing.strerror})") from missing
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < start:
        raise ValueError(f"{path}: cut off, or no safetensors file")
    content = torch.from_numpy(data[start:])
    try:
        header = json.loads(data[8:start].tobytes())
        header.pop("__metadata__", None)
        tensors = {name: _tensor(content, **entry) for name, entry in header.items()}
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RuntimeError) as broken:
        raise ValueError(f"{path}: cut off, or no safetensors file") from broken
    if sum(tensor.nbytes for tensor in tensors.values()) != len(content):
        raise ValueError(f"{path}: its header does not account for all of its bytes")
    return tensors


def _tensor(content: Tensor, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    begin, end = data_offsets
    kind = _TENSOR_TYPES[dtype]
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(content):
        raise ValueError(f"shape {shape} at bytes {begin} to {end} of {len(content)}")
    if math.prod(shape) * kind.itemsize != end - begin:
        raise ValueError(f"shape {shape} in {end - begin} bytes")
    # A copy of its own lies at an aligned address and does not keep the whole file in memory.
    return content[begin:end].clone().view(kind).reshape(shape)
