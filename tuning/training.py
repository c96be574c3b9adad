"""One of a trial's trainings: started the way a person does, by the command, and followed by what it writes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.atomic import replacing
from trainer.run_folder import RunFolder

Start = Callable[[Sequence[str]], Sequence[str]]
"""Makes of the arguments of sonotrain the command line that carries them out here and dies with this process."""

STOPPED = 75
"""The status of a training that has stopped when it was asked to, with a checkpoint to go on from."""

GRACE = 60.0
"""Seconds that a training has to stop: a step, and its checkpoint."""

_KILLED = 20.0

_VALIDATED = b'"validation/dsc"'

_LOST = re.compile(r"rank \d+ (was killed|gave no sign of life)")
"""What the launcher says of a rank of whose end the others can only tell that they lost it."""


@dataclass(frozen=True)
class Order:
    """A training as it is to be carried out: its configuration, whose output is its folder, and its size."""

    name: str
    config: Mapping[str, Any]
    epochs: int
    steps_per_epoch: int

    @property
    def folder(self) -> RunFolder:
        """Its folder."""
        return RunFolder(Path(self.config["output"]))


def measured(order: Order) -> dict[int, float]:
    """The DSC after each epoch that a training has told of so far, the last one's only when it has finished."""
    folder = order.folder
    told: dict[int, float] = {}
    with suppress(OSError):
        lines = folder.curves.read_bytes().splitlines()
        for line in (line for line in lines if _VALIDATED in line):  # few of them, and asked for often
            with suppress(ValueError):  # the last line may be half written
                point = json.loads(line)
                epoch, rest = divmod(point["step"], order.steps_per_epoch)
                if not rest and epoch < order.epochs:
                    told[epoch] = point["validation/dsc"]
    if folder.result.exists():
        told[order.epochs] = folder.read_result().validation["dsc"]["mean"] or 0.0
    return told


@dataclass(frozen=True)
class Place:
    """Which one a machine is of those of a training, counted from 0, and where the ranks meet on the first one."""

    node: int = 0
    nodes: int = 1
    address: str = ""
    port: int = 0


class Running:
    """A training under way, or one machine's share of it, in a process group of its own."""

    def __init__(self, start: Start, order: Order, processes: int, cpus: int, place: Place = Place()) -> None:
        """Start it, or let it go on from its last checkpoint.

        Raises BlockingIOError where it is still under way, and another OSError where its folder cannot be written to.
        """
        output = Path(order.config["output"])
        output.mkdir(parents=True, exist_ok=True)
        suffix = f"-{place.node}" if place.node else ""
        asked, self._log = output / f"asked{suffix}.yaml", output / f"trial{suffix}.log"
        with replacing(asked) as partial:
            partial.write_text(yaml.safe_dump(dict(order.config), sort_keys=False), encoding="utf-8")
        size = ("--procs", str(processes), "--cores", str(cpus))
        way, how = ("node", ("--by", "kubeflow")) if place.nodes > 1 else ("local", ("--restarts", "0"))
        program = start(("launch", way, *size, *how, "--", "train", str(asked)))
        # As PyTorchJob tells a pod its place.
        told = {"RANK": place.node, "WORLD_SIZE": place.nodes, "MASTER_ADDR": place.address, "MASTER_PORT": place.port}
        variables = {name: str(value) for name, value in told.items()} if place.nodes > 1 else {}
        self._begun_at = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            if not place.node:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the last process that writes to it has ended
            self._process = subprocess.Popen(
                program,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | variables,
            )

    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.poll()

    def stop(self, grace: float = GRACE) -> None:
        """Have it write a checkpoint and end; after grace seconds it is killed."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()  # and its ranks die with it
            self._process.wait(_KILLED)

    def why(self) -> str:
        """In one line, what it ended of: a rank that was killed, else the first error, as the cause of all others."""
        with self._log.open("rb") as log:
            log.seek(self._begun_at)
            lines = log.read().decode(errors="replace").splitlines()
        told = [line.partition("error: ")[2] for line in lines if "error: " in line]
        causes = [line for line in told if _LOST.match(line)] or told
        if causes:
            return causes[0]
        status = self.status() or 0
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return lines[-1] if lines else f"ended with status {status}, without a word"
