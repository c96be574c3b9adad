"""Batches to trained, judged and registered networks."""

from trainer.config import Config, load_config
from trainer.crossval import CrossvalSummary, crossval
from trainer.loop import train
from trainer.run_folder import TrainingResult
from trainer.sources import presets

__all__ = ["Config", "CrossvalSummary", "TrainingResult", "crossval", "load_config", "presets", "train"]
