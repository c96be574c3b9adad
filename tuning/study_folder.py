"""The folder of a study, named by `output`: whose it is, and that it is the same search that goes on.

journal.jsonl       what happened (tuning/journal.py)
study.yaml          the configuration and its branch `tune`, as `sonotrain tune` takes it; written first
study.json          the dataset's digest
trials/0007/        a trial's trainings, each in a folder of its own
final/              the winner and the paper's weights, trained for the comparison at the end
trials.csv best.yaml table.md report.html *.png result.json      the answer, so far
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from data_pipeline import Fault, WrongCall
from trainer.atomic import replacing
from trainer.run_folder import MAY_CHANGE as OF_A_TRAINING
from trainer.sources import leaves
from tuning.settings import Tuning
from tuning.space import Choices, Range

MAY_CHANGE = (
    *(key for key in OF_A_TRAINING if key != "folds"),
    "tune.trials",
    "tune.cpus",
    "tune.gpus",
    "tune.concurrent",
    "tune.retries",
    "tune.keep",
)
"""Keys that may differ where a study goes on: they decide nothing that a trial learns, nor which is tried next."""


def require_same(output: Path, tuning: Tuning, digest: str) -> None:
    """Raise WrongCall where the folder holds another search's study, or something that is none."""
    if not (output / "study.yaml").exists():
        if (output / "run.json").exists():
            raise WrongCall(f"{output} holds a training and no study; name another output")
        return
    try:
        before = yaml.safe_load((output / "study.yaml").read_text(encoding="utf-8"))
        digest_before = json.loads((output / "study.json").read_text(encoding="utf-8"))["digest"]
        told = _flat(before) | {"the dataset's digest": digest_before}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as broken:
        raise Fault(f"{output / 'study.yaml'} is damaged ({broken}); name another output") from broken
    now = _flat(_tree(tuning)) | {"the dataset's digest": digest}
    for key, value in told.items():
        if key not in MAY_CHANGE and key in now and now[key] != value:
            raise WrongCall(
                f"{output} holds a study with {key}={value}, and this one has {now[key]}; "
                "name another output, or the same configuration to go on"
            )


def begin(output: Path, tuning: Tuning, digest: str) -> None:
    """Write down what the study is, or what has changed of it that may."""
    for name, text in (
        ("study.json", json.dumps({"digest": digest})),
        ("study.yaml", yaml.safe_dump(_tree(tuning), sort_keys=False)),
    ):
        with replacing(output / name) as partial:
            partial.write_text(text, encoding="utf-8")


def _tree(tuning: Tuning) -> dict[str, Any]:
    space = {key: _asked(dimension) for key, dimension in tuning.space.dimensions.items()}
    tune = tuning.tune.model_dump(mode="json") | {"space": space}
    return {**tuning.config.model_dump(mode="json"), "tune": tune}


def _asked(dimension: Range | Choices) -> Any:
    """A dimension as tune.space has it."""
    if isinstance(dimension, Choices):
        return json.loads(json.dumps(dimension.values))
    return {name: value for name, value in asdict(dimension).items() if name != "whole"}


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Each value by its dotted key, the space as one."""
    rest = {key: value for key, value in tree["tune"].items() if key != "space"}
    return {**dict(leaves({**tree, "tune": rest})), "tune.space": tree["tune"]["space"]}
