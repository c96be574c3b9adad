"""Batches to trained, judged and registered networks."""

from trainer.config import Config, load_config
from trainer.crossval import CrossvalSummary, crossval
from trainer.loop import train
from trainer.run_folder import TrainingResult
from trainer.sources import presets
from trainer.study import Study, load_study
from trainer.study_run import StudySummary, run_study

__all__ = [
    "Config",
    "CrossvalSummary",
    "Study",
    "StudySummary",
    "TrainingResult",
    "crossval",
    "load_config",
    "load_study",
    "presets",
    "run_study",
    "train",
]
