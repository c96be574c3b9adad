"""A training for tests without a network: it tells of itself and obeys as a training does, and takes no second.

    python stand_in.py ... CONFIGURATION

The configuration's `measures` are what it measures, an epoch each, `pace` the seconds of one. It notes each start and
each epoch in the file done, and goes on after the last. With `dies` {attempt: [epoch, how]} an attempt, counted from 1,
ends after an epoch: how is an exit status, or the negative number of a signal, as `after` is for the end of all.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

STEPS = 5
"""Of an epoch."""

STOPPED = 75


def train(config: Mapping[str, Any]) -> None:
    """Carry the rest of it out."""
    output = Path(config["output"])
    notes, curves = output / "done", output / "metrics.jsonl"
    before = notes.read_text().split() if notes.exists() else []
    attempt = before.count("start") + 1
    with notes.open("a", buffering=1) as note, curves.open("a", buffering=1) as curve:
        print("start", file=note)
        for epoch in range(len(before) - attempt + 2, len(config["measures"]) + 1):
            time.sleep(config["pace"])
            print(json.dumps({"step": STEPS * epoch - 2, "generator/loss": 0.5}), file=curve)
            print(json.dumps({"step": STEPS * epoch, "validation/dsc": config["measures"][epoch - 1]}), file=curve)
            print(epoch, file=note)
            last, how = config.get("dies", {}).get(attempt, (0, 0))
            if epoch == last:
                print(f"error: rank 0 had enough after epoch {epoch}\nerror: rank 1 followed", file=sys.stderr)
                end(how)
    write_result(output, config["measures"])
    end(config.get("after", 0))


def end(how: int) -> None:
    """End by a signal, or with a status."""
    if how < 0:
        os.kill(os.getpid(), -how)
    sys.exit(how)


def write_result(output: Path, measures: Sequence[float]) -> None:
    """Finish it."""
    whole = {
        "output": str(output),
        "checkpoint": "checkpoints/step-1",
        "epochs": len(measures),
        "validation": {"dsc": {"mean": measures[-1]}},
        "best_epoch": 1,
        "best_dsc": max(measures),
        "best_checkpoint": "checkpoints/step-1",
        "seconds": 1.0,
        "digest": "",
    }
    (output / "result.partial").write_text(json.dumps(whole))
    (output / "result.partial").replace(output / "result.json")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    train(yaml.safe_load(Path(sys.argv[-1]).read_text()))
