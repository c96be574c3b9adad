"""What MLflow calls in a registered model: image files in; masks and what they measure out.

A registered model carries this file with it, behind those of its pixels, networks and segmenter, so it rests on
them, torch, numpy, pandas, Pillow and MLflow alone.
"""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from data_pipeline.pixels import UnreadableImage, read_gray
from trainer.serving.opening import load_segmenter
from trainer.serving.segmenter import Segmenter


class LesionModel(mlflow.pyfunc.PythonModel):
    """A segmenter as MLflow loads it: its weights and their description lie beside this file, and hold no code."""

    def __init__(self, networks: Mapping[str, type[nn.Module]]) -> None:
        """Take the classes of the networks that this file carries, by their names."""
        self._networks = networks

    def load_context(self, context: Any) -> None:
        """Read the weights, onto the GPU where there is one."""
        folder = Path(context.artifacts["model"])
        self._segmenter = load_segmenter(folder, lambda name, **settings: self._networks[name](**settings))
        self._segmenter.to("cuda" if torch.cuda.is_available() else "cpu")

    def predict(
        self,
        context: Any,  # noqa: ARG002, MLflow asks for these names
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Outline the lesions of each row's image.

        The input has a column `image`: the bytes of a PNG, JPEG or TIFF file of any size and mode (base64 over REST).
        Parameters, which are the model's own where they are not given: `threshold`, the probability from which a
        pixel is lesion, 0..1; `flips`, whether each image's mirror image is looked at too; `largest_component`, whether
        only the largest connected part of a mask stays.

        The output has for each row: `mask`, the bytes of a PNG of the image's own size, 255 in lesions and 0
        outside; `lesion`, whether there is any; `area_fraction`, the part of the image inside the outlines, 0..1;
        `probability`, the mean probability inside, 0..1, and 0 where nothing is outlined. Raises ValueError, naming
        the row, for an image that cannot be read.
        """
        segmenter = self._segmenter.using(**(params or {}))
        rows = [_outlined(segmenter, row, file) for row, file in enumerate(model_input["image"])]
        return pd.DataFrame(rows, columns=["mask", "lesion", "area_fraction", "probability"])


def _outlined(segmenter: Segmenter, row: int, file: object) -> tuple[bytes, bool, float, float]:
    if not isinstance(file, bytes | bytearray):
        raise ValueError(f"row {row}: the image is a {type(file).__name__}; expected the bytes of an image file")
    try:
        image = read_gray(BytesIO(file))
    except UnreadableImage as reason:
        raise ValueError(f"row {row}: the file {reason}") from reason
    probability = segmenter.probabilities([image])[0]
    mask = segmenter.marked(probability)
    found = bool(mask.any())
    return _png(mask), found, float(mask.mean()), float(probability[mask].mean()) if found else 0.0


def _png(mask: NDArray[np.bool_]) -> bytes:
    file = BytesIO()
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(file, "PNG")
    return file.getvalue()
