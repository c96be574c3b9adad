"""A node's share of the doctor's training, on phantoms that it makes for itself and removes again."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline import Fault
from launch.doctor.finding import Finding, Wanted
from launch.doctor.rank import EXCHANGED, STEPS
from launch.node import Place, RankState, Share, run_share
from launch.phantoms import Phantoms, write_phantoms
from trainer.config import Config

SECONDS = 300.0
"""After which the training is ended."""

SMALL = ("data.size=64x64", "network.widths=[8,16,32,64]", "discriminators.widths=[8,8,16,16]", "training.batch=4")
"""Changes to the preset `quick` where no configuration was named."""

_FOLDS = 3
_JOIN_MINUTES = 2.0


def trained_config(wanted: Wanted, phantoms: str) -> Config:
    """The configuration of the job, on phantoms, with a batch that its processes can share."""
    return wanted.shareable.replace(
        data__uri=phantoms,
        data__weights=(),
        data__fold=1,
        data__resident_gb=0,
        training__timeout_minutes=_JOIN_MINUTES,
    )


def train_share(wanted: Wanted, node: int, address: str, port: int) -> Mapping[str, Any]:
    """Run this node's processes, of which the first of all meets the others at address and port.

    Gives, on the first node, what the training came to. Raises Fault telling how a process failed.
    """
    with tempfile.TemporaryDirectory(prefix="sonotrain-doctor-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        config = trained_config(wanted, str(folder / "phantoms"))
        scans = _FOLDS * (STEPS * config.training.batch // (_FOLDS - 1) + 2)
        write_phantoms(Phantoms(config.data.uris[0], scans, config.data.size, 0, _FOLDS, "png", 64))
        (folder / "config.json").write_text(config.model_dump_json())
        module = (sys.executable, "-P", "-m", "launch.doctor.rank")
        program = (*module, str(folder / "config.json"), str(folder / "result.json"))
        share = Share(program, wanted.processes, Place(node, wanted.nodes, address, port), {}, folder / "logs")
        asked: list[int] = []
        timer = threading.Timer(SECONDS, asked.append, [signal.SIGINT])
        timer.start()
        try:
            ending = run_share(share, _Nobody(), asked)
        finally:
            timer.cancel()
        if ending.rank is not None:
            last = f": {ending.last[-1].removeprefix('error: ')}" if ending.last else ""
            raise Fault(f"rank {ending.rank} {ending.how}{last}")
        if asked:
            raise Fault(f"not done after {SECONDS:g} s")
        return json.loads((folder / "result.json").read_text()) if node == 0 else {}


def judge_training(came_to: Mapping[str, Any], wanted: Wanted) -> Finding:
    """What the training came to, in words."""
    config = trained_config(wanted, "")
    what = f"{config.network.name} at {'x'.join(map(str, config.data.size))} in batches of {config.training.batch}"
    by = f"{wanted.world} processes" if wanted.world > 1 else "one process"
    told = f"{came_to['steps']} steps of {what} by {by}: {came_to['images_per_second']:.3g} images/s"
    if came_to["exchange_seconds"] is not None:
        told += f"; {EXCHANGED / 1e6:.0f} MB added up in {came_to['exchange_seconds']:.3f} s"
    return Finding("training", "ok", f"{told}; {came_to['memory'] / 1e9:.1f} GB a process", values=came_to)


class _Nobody:
    """An onlooker who needs no lines: the last ones come with the ending."""

    def show(self, rank: int, lines: Sequence[str]) -> None: ...

    def beat(self, states: Sequence[RankState]) -> None: ...
