"""A trained network in use: files from which a registered model is made, and what makes it."""

from trainer.serving.opening import load_segmenter
from trainer.serving.segmenter import Segmenter
from trainer.serving.weights import read_safetensors

__all__ = ["Segmenter", "load_segmenter", "read_safetensors"]
