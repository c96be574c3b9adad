"""A search by the command, as a process of its own, and the trainings that it has under way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from launch.claim import free_cores
from launch.cores import usable_cores
from tuning.journal import StudyRecord, read_journal

TINY = {
    "data": {"size": [64, 64], "readers": 1, "resident_gb": 0},
    "network": {"widths": [4, 4, 8, 8, 8], "norm": "group"},
    "objective": {"stages": 2},
    "discriminators": {"widths": [4, 4, 4, 4], "strides": [1, 1, 1, 1, 1], "norm": "group"},
    "optimizer": {"generator_rate": 5e-3},
    "training": {"epochs": 3, "batch": 4, "precision": "fp32", "timeout_minutes": 1},
}
"""A training of seconds."""

PATIENCE = 600.0
"""Seconds for what is waited for: most of it is the start of processes on a machine that does more than this."""


def require_two_cores() -> None:
    """Skip where two trials cannot run at a time."""
    if usable_cores().count < 2:
        pytest.skip("two trials at a time need two cores")
    if free_cores() < usable_cores().count:
        pytest.skip("other launches have claimed cores")


class Search:
    """Calls of `sonotrain tune` in one folder, one at a time, of this configuration."""

    def __init__(self, folder: Path, uri: str, tune: dict[str, Any], **branches: Any) -> None:
        self.output = folder / "study"
        self.config = folder / "search.yaml"
        tree: dict[str, Any] = {name: branch | branches.pop(name, {}) for name, branch in TINY.items()}
        tree["data"]["uri"] = uri
        self.config.write_text(yaml.safe_dump({**tree, **branches, "output": str(self.output), "tune": tune}))
        self._folder = folder
        self._process: subprocess.Popen[Any] | None = None

    @property
    def process(self) -> psutil.Process:
        """The driver."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def start(
        self,
        begin: Callable[..., subprocess.Popen[Any]] = lambda *program, **options: subprocess.Popen(program, **options),
        **variables: str,
    ) -> None:
        """Call it, through `begin` with these variables."""
        own = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RANK")}
        with (self._folder / "said").open("ab") as said:
            self._process = begin(
                *(sys.executable, "-P", "-m", "launch.cli", "tune", str(self.config)),
                cwd=self._folder,
                env=own | {"MLFLOW_TRACKING_URI": f"sqlite:///{self._folder}/mlflow.db"} | variables,
                stdout=said,
                stderr=said,
            )

    def said(self) -> str:
        """All that its calls have written."""
        return (self._folder / "said").read_text()

    def until(self, true: Callable[[], object]) -> None:
        """Wait for it while the driver runs."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert self._process is not None
            assert self._process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.01)

    def ended(self) -> int:
        """Its exit status, which is waited for."""
        assert self._process is not None
        return self._process.wait(PATIENCE)

    def send(self, number: signal.Signals) -> None:
        """Send the driver a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        """End what still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(20)

    def training(self, number: int) -> Path:
        """The folder of a trial's first training."""
        return self.output / f"trials/{number:04d}/fold-1"

    def checkpoints(self, number: int) -> list[str]:
        """Those of that training which are whole, oldest first."""
        return sorted(path.parent.name for path in self.training(number).glob("checkpoints/step-*/manifest.json"))

    def launcher(self, number: int) -> psutil.Process | None:
        """The launch of that training, while it runs."""
        return self._running("launch local", number)

    def rank(self, number: int) -> psutil.Process | None:
        """Its only rank."""
        return self._running("-m launch.cli train", number)

    def study(self) -> StudyRecord:
        """What the journal tells, nothing before there is one."""
        return read_journal(self.output) if (self.output / "journal.jsonl").exists() else StudyRecord()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Those of a kind, in the journal's order."""
        lines = (self.output / "journal.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def _running(self, what: str, number: int) -> psutil.Process | None:
        asked = str(self.training(number) / "asked.yaml")
        for process in self.process.children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if what in line and line.endswith(asked):
                return process
        return None
