"""The folder of a run, named by `output`: what lies in it, and whether it is the same run that is started again.

config.yaml         the configuration, written at the start
checkpoints/        step-00001234/, the newest ones and the best
metrics.jsonl       the curves, a line a point
run.json            the digest of its dataset, and its id in MLflow
validation.csv      a row a scan of the held-out fold, by the last weights
outlines.png        the first scans of that fold with a lesion, truth and prediction outlined
result.json         written last: a run that has it is finished
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from data_pipeline import Fault, WrongCall
from trainer.atomic import replacing
from trainer.checkpoint import Progress
from trainer.config import Config, load_config
from trainer.metrics import Summary

MAY_CHANGE = (
    "output",
    "folds",
    "data.uri",
    "data.readers",
    "data.resident_gb",
    "data.cache",
    "data.cache_gb",
    "training.generator_zero",
    "training.discriminator_zero",
    "training.timeout_minutes",
    "training.stall_minutes",
    "checkpoints.every_steps",
    "checkpoints.keep",
    "checkpoints.mirror",
    "validation.batch",
    "tracking.experiment",
    "tracking.model",
    "tracking.registers",
)
"""Keys of which a run that goes on may have another value: they decide nothing that it learns."""

DATASET = "the dataset's digest"


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to: its last weights, and how they outline the fold that was held out.

    The last, because the best of many epochs, chosen by the fold that is then reported, would flatter. The best
    epoch's checkpoint is kept beside it. validation is the JSON form of trainer.metrics.Summary; seconds is what all
    starts of the run took, each up to the checkpoint that the next went on from.
    """

    output: str
    checkpoint: str
    epochs: int
    validation: Mapping[str, Any]
    best_epoch: int
    best_dsc: float
    best_checkpoint: str
    seconds: float
    digest: str


class RunFolder:
    """Paths of a run's files, and what they say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.curves = path / "metrics.jsonl"
        self.scores = path / "validation.csv"
        self.outlines = path / "outlines.png"
        self.result = path / "result.json"
        self._identity = path / "run.json"

    def begin(self, config: Config, digest: str) -> TrainingResult | None:
        """Make the folder, or recognise the run that lies there; gives its result when it is finished already.

        Raises WrongCall where another configuration or another dataset's run lies.
        """
        self.require_same(config, digest)
        if self._identity.exists():
            return self.read_result() if self.result.exists() else None
        _write(self.config, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        _write(self._identity, json.dumps({"digest": digest}))
        return None

    def require_same(self, config: Config, digest: str) -> None:
        """Raise WrongCall where another configuration's or another dataset's run lies."""
        if not self._identity.exists():
            return
        before = load_config(str(self.config)).flat()
        require_same_run(str(self.path), before, self._identity_kept().get("digest"), config, digest)

    def finish(self, progress: Progress, summary: Summary, seconds: float, digest: str) -> None:
        """Write the result, which makes the run a finished one."""
        result = TrainingResult(
            output=str(self.path),
            checkpoint=str(self.checkpoints / f"step-{progress.step:08d}"),
            epochs=progress.epoch,
            validation=summary.as_json(),
            best_epoch=progress.best_epoch,
            best_dsc=progress.best_dsc,
            best_checkpoint=str(self.checkpoints / f"step-{progress.best_step:08d}"),
            seconds=round(seconds, 1),
            digest=digest,
        )
        _write(self.result, json.dumps(asdict(result), indent=1))

    def read_result(self) -> TrainingResult:
        """The result of a finished run. Raises Fault where the file is damaged."""
        try:
            told = json.loads(self.result.read_text(encoding="utf-8"))
            # The folder may have been moved since, or be named from elsewhere.
            moved = {key: str(self.checkpoints / Path(told[key]).name) for key in ("checkpoint", "best_checkpoint")}
            return TrainingResult(**(told | moved | {"output": str(self.path)}))
        except (OSError, ValueError, TypeError, KeyError) as broken:
            raise Fault(f"{self.result} is damaged ({broken}); remove it, and the run goes on without it") from broken

    def tracked_as(self) -> str | None:
        """The run's id in MLflow, where it has been started before."""
        return self._identity_kept().get("run_id")

    def note_tracked_as(self, run_id: str) -> None:
        """Keep the run's id in MLflow, so that the run goes on under it."""
        _write(self._identity, json.dumps(self._identity_kept() | {"run_id": run_id}))

    def _identity_kept(self) -> dict[str, str]:
        try:
            kept: dict[str, str] = json.loads(self._identity.read_text(encoding="utf-8"))
        except (OSError, ValueError) as broken:
            raise Fault(f"{self._identity} is damaged ({broken}); name another output") from broken
        return kept


def require_same_run(
    where: str, before: Mapping[str, Any], digest_before: str | None, config: Config, digest: str
) -> None:
    """Raise WrongCall where another configuration or dataset was trained on; a key that was not known is no other."""
    now = config.flat() | {DATASET: digest}
    for key, value in (dict(before) | {DATASET: digest_before}).items():
        if key in now and key not in MAY_CHANGE and now[key] != value:
            raise WrongCall(
                f"{where} holds a run with {key}={value}, and this one has {now[key]}; "
                "name another output, or the same configuration to go on"
            )


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
