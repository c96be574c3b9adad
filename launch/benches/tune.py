"""`sonotrain bench tune`: a trial beside the same training without Ray, both by the command, in interleaved rounds.

The training is that of a study's first trial, with the paper's weights: the very file that the trial is given, but for
the folder. Alone it is started as the trial starts it, by `sonotrain launch local` on as many cores of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from data_pipeline import Dataset, Fault, WrongCall
from launch.benches.rates import estimate, paired_ratio
from launch.cores import cores_for
from launch.job import dying
from launch.machine import machine
from launch.terminal import with_progress
from trainer.feasible import dataset_of
from trainer.run_folder import RunFolder
from trainer.sources import presets
from tuning.orders import Desk
from tuning.ray_session import ADDRESS
from tuning.settings import Tuning, load_tuning, trainings
from tuning.space import paper_values

PACKAGES = ("sonotrain", "torch", "deepspeed", "ray", "optuna", "numpy")

ALONE, TRIAL = "launch local", "a trial"

OVERHEAD = 1.05
"""Time of a trial's training, of that without Ray, at most."""

TIME_LIMIT = 6 * 3600.0
"""Seconds after which a command that has not ended counts as hung."""

_TRACKER = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure: CONFIG and its changes, as `sonotrain tune` takes them, and how often."""

    source: str
    changes: Sequence[str]
    rounds: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What a command took, in seconds: until the first point of the training's curves, from there to the last one,
    and from that to its end.
    """

    start: float
    training: float
    end: float
    steps: int
    """Between the two points."""
    told: float
    """Seconds of training by the training's own result."""

    @property
    def whole(self) -> float:
        """From the command's start to its end."""
        return self.start + self.training + self.end


@dataclass(slots=True)
class Way:
    """One of the two, and what it took in each round."""

    name: str
    rounds: list[Taken] = field(default_factory=list)

    def of(self, what: str) -> list[float]:
        """Seconds of a part in each round; step are those of a single step."""
        if what == "step":
            return [taken.training / taken.steps for taken in self.rounds]
        return [getattr(taken, what) for taken in self.rounds]

    def reported(self) -> dict[str, Any]:
        """Each part: its rounds, their median and its interval."""
        parts = ("whole", "start", "training", "step", "end", "told")
        seconds = {what: {"rounds": self.of(what), **asdict(estimate(self.of(what)))} for what in parts}
        return {"name": self.name, "seconds": seconds}


def bench_tune(wanted: Wanted, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and give the result as JSON has it.

    Raises WrongCall for a search that cannot be, or whose trials need several machines, and Fault where a command fails
    or the trial was given another training.
    """
    source = wanted.source if wanted.source in presets() else str(Path(wanted.source).absolute())
    changes = (*wanted.changes, *_one_trial(load_tuning(source, wanted.changes)))
    tuning = load_tuning(source, changes)
    dataset = dataset_of(tuning.config)
    Desk(tuning, dataset, ()).check(paper_values(tuning.space, tuning.config))
    processes, cpus = tuning.tune.processes, tuning.tune.cpus
    cores_for(processes * cpus)
    load = os.getloadavg()[0]
    alone, trial = Way(ALONE), Way(TRIAL)
    with tempfile.TemporaryDirectory(prefix="sonotrain-bench-") as folder:
        bench = Bench(source, changes, dataset, Path(folder))
        turns = [
            (number, way)
            for number in range(wanted.rounds)
            for way in ((alone, trial) if number % 2 == 0 else (trial, alone))
        ]
        for number, way in with_progress(turns, "trainings", len(turns)):
            way.rounds.append(bench.run(way.name, number))
            took = way.rounds[-1]
            tell(f"round {number + 1}, {way.name}: {took.whole:.1f} s, of which {took.training:.1f} s between points")
    return {
        "machine": {**machine(), "load_before": round(load, 2)},
        "versions": {package: version(package) for package in PACKAGES},
        "settings": {
            "rounds": wanted.rounds,
            "config": wanted.source,
            "changes": list(wanted.changes),
            "processes": processes,
            "cores_of_a_process": cpus,
            "epochs": tuning.config.training.epochs,
            "dataset": dataset.index.digest,
        },
        **compared(alone, trial),
    }


def compared(alone: Way, trial: Way) -> dict[str, Any]:
    """Both ways, what a trial takes of the time without Ray, how much later it starts and ends, and what is wanted."""
    ratios = {what: paired_ratio(trial.of(what), alone.of(what)) for what in ("whole", "training", "step", "told")}
    later = {
        what: estimate([ours - without for ours, without in zip(trial.of(what), alone.of(what), strict=True)])
        for what in ("start", "end")
    }
    return {
        "ways": [alone.reported(), trial.reported()],
        "trial_of_alone": {what: asdict(ratio) for what, ratio in ratios.items()},
        "more_seconds": {what: asdict(difference) for what, difference in later.items()},
        "criteria": [
            {
                "what": "time of a trial's training: of the same without Ray",
                "bound": "at most",
                "wanted": OVERHEAD,
                **asdict(ratios["training"]),
                "met": ratios["training"].median <= OVERHEAD,
            }
        ],
    }


class Bench:
    """The two commands, each in a folder of its own that goes with its round."""

    def __init__(self, source: str, changes: Sequence[str], dataset: Dataset, folder: Path) -> None:
        self._source = source
        self._changes = changes
        self._dataset = dataset
        self._folder = folder

    def run(self, way: str, number: int) -> Taken:
        """Carry one of them out. Raises Fault."""
        output = self._folder / f"{'trial' if way == TRIAL else 'alone'}-{number}"
        tuning = load_tuning(self._source, (*self._changes, f"output={output}"))
        (training,) = trainings(tuning.tune, tuning.config)
        asked = Desk(tuning, self._dataset, ()).config(0, paper_values(tuning.space, tuning.config), training)
        folder = RunFolder(Path(asked.output))
        if way == TRIAL:
            command = ["tune", self._source, *self._changes, f"output={output}"]
        else:
            file = self._folder / f"alone-{number}.yaml"
            file.write_text(yaml.safe_dump(asked.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
            size = ("--procs", str(tuning.tune.processes), "--cores", str(tuning.tune.cpus))
            command = ["launch", "local", *size, "--restarts", "0", "--", "train", str(file)]
        began = time.time()
        self._carry_out(way, command)
        ended = time.time()
        if way == TRIAL and _read(folder.path / "asked.yaml") != asked.model_dump(mode="json"):
            raise Fault("the trial was given another training than the one that it was to be held against")
        return taken(began, ended, folder)

    def _carry_out(self, way: str, command: Sequence[str]) -> None:
        # A tracker and a folder of their own, so that nobody finds these among their runs; a Ray of this machine alone.
        environment = os.environ | {_TRACKER: f"sqlite:///{self._folder}/mlflow.db"}
        environment.pop(ADDRESS, None)
        try:
            done = subprocess.run(
                dying(command),
                env=environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=TIME_LIMIT,
            )
        except subprocess.TimeoutExpired as late:
            raise Fault(f"{way}: not done within {TIME_LIMIT / 3600:.0f} hours") from late
        if done.returncode:
            said = [line for line in done.stdout.splitlines() if line.strip()] or ["without a word"]
            told = next((line for line in reversed(said) if line.startswith("error: ")), said[-1])
            raise Fault(f"{way}: ended with status {done.returncode}: {told.removeprefix('error: ')}")


def taken(began: float, ended: float, folder: RunFolder) -> Taken:
    """What a command took between two moments (seconds since the epoch), by the curves in the training's folder.

    Raises Fault where these have fewer than two points: they have one after each ten steps, and one an epoch.
    """
    lines = folder.curves.read_text(encoding="utf-8").splitlines() if folder.curves.exists() else []
    points = [(point["time"], point["step"]) for point in map(json.loads, lines)]
    if not points or points[0][1] == points[-1][1]:
        raise Fault("a training of fewer than two points of ten steps or an epoch is too short to be timed")
    (first, step), (last, last_step) = points[0], points[-1]
    told = folder.read_result().seconds
    return Taken(first - began, last - first, ended - last, last_step - step, told)


def _one_trial(tuning: Tuning) -> tuple[str, ...]:
    """Changes that leave of a search its first trial, with its first training, on this machine, wherever started."""
    if tuning.tune.nodes > 1:
        raise WrongCall(f"tune.nodes={tuning.tune.nodes}: a trial is measured on one machine; set tune.nodes=1")
    first = trainings(tuning.tune, tuning.config)[0]
    places = [uri if "://" in uri else str(Path(uri).absolute()) for uri in tuning.config.data.uris]
    return (
        f"data.uri={json.dumps(places)}",
        "tune.trials=1",
        "tune.scheduler=none",
        "tune.trainings_by_rung=[]",
        "tune.unseen=[]",
        f"tune.folds=[{first.fold}]",
        f"tune.seeds=[{first.seed}]",
        "tune.storage=''",
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        told: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as unreadable:
        raise Fault(f"{path}: cannot be read ({unreadable})") from unreadable
    return told
