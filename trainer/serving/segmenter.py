"""A trained network that outlines lesions in scans of any size, and the folder that it is read from.

A registered model carries this file with it, so it rests on torch, numpy and `data_pipeline.pixels` alone,
reads weights by itself, and says what is wrong with a plain ValueError of one line.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.pixels import resize_gray


class Segmenter:
    """A network, the size at which it sees scans, and the probability from which a pixel is lesion.

    network takes float32 [B, 1, h, w] in 0..1 and gives a list of logits, finest first; size is (h, w) in pixels;
    threshold is in 0..1. Raises ValueError for a size or threshold out of these ranges.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int], threshold: float = 0.5) -> None:
        """Keep the network as it is, on its own device and in its own mode."""
        if len(size) != 2 or any(type(side) is not int or side < 1 for side in size):
            raise ValueError(f"size {list(size)}: expected height and width in pixels")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold {threshold}: expected a probability")
        self.network = network
        self.size = size
        self.threshold = threshold

    @torch.no_grad()
    def probabilities(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """The probability of lesion for each pixel: float32 [H, W] in 0..1 for each image uint8 [H, W].

        Images may differ in size; the network sees all of them at once, so the caller bounds their number.
        The network's mode is as before afterwards. Raises ValueError for an array that is no gray image.
        """
        if not images:
            return []
        for place, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 2 or image.size == 0:
                raise ValueError(f"image {place} is {image.dtype} {list(image.shape)}: expected uint8 [height, width]")
        batch = torch.from_numpy(np.stack([resize_gray(image, self.size) for image in images]))
        pixels = batch.to(next(self.network.parameters()).device).unsqueeze(1).float() / 255
        was_training = self.network.training
        self.network.eval()
        try:
            finest = self.network(pixels)[0].float()
        finally:
            self.network.train(was_training)
        return [_at_size(logits, image.shape) for logits, image in zip(finest, images, strict=True)]

    def masks(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.bool_]]:
        """True where the probability reaches the threshold: bool [H, W] for each image uint8 [H, W]."""
        return [probability >= self.threshold for probability in self.probabilities(images)]


def load_segmenter(folder: Path, build: Callable[..., nn.Module]) -> Segmenter:
    """The segmenter of a model folder: `network.json` says which network, `generator.safetensors` its weights.

    build(name, **settings) makes the network. Raises ValueError, naming the file, when one is missing, cannot be
    read, or does not fit the other.
    """
    description, weights = folder / "network.json", folder / "generator.safetensors"
    try:
        told = json.loads(description.read_text(encoding="utf-8"))
        name, settings, size, threshold = told["network"], told["settings"], tuple(told["size"]), told["threshold"]
        network = build(name, **settings)
        segmenter = Segmenter(network, size, threshold)
    except OSError as missing:
        raise ValueError(f"{description}: cannot be read ({missing.strerror}); is {folder} a model?") from missing
    except KeyError as missing:
        raise ValueError(f"{description}: does not tell {missing}") from missing
    except (TypeError, ValueError, RecursionError) as broken:
        raise ValueError(f"{description}: describes no network: {broken}") from broken
    tensors = read_safetensors(weights)
    expected = network.state_dict()
    misfits = sorted(
        key
        for key in expected.keys() | tensors.keys()
        if key not in expected or key not in tensors or expected[key].shape != tensors[key].shape
    )
    if misfits:
        others = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        raise ValueError(f"{weights}: does not fit the network of {description.name}: {misfits[0]}{others}")
    network.load_state_dict(tensors)
    return segmenter


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


def _at_size(logits: Tensor, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Logits [1, h, w] as probabilities float32 [H, W]."""
    enlarged = F.interpolate(logits.unsqueeze(0), size=size, mode="bilinear", align_corners=False)
    probability: NDArray[np.float32] = torch.sigmoid(enlarged)[0, 0].cpu().numpy()
    return probability
