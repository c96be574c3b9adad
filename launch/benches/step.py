"""`sonotrain bench step`: an iteration beside plain loops of the same; what processes, checkpoints and data cost it.

All that is compared is timed in turn, in rounds, by processes that live as long as that takes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data_pipeline import Fault
from launch.benches.rates import Estimate, estimate, paired_ratio
from launch.benches.step_ladder import Rung, peak, rungs
from launch.benches.step_process import ENGINES, PLAIN, StepProcesses
from launch.benches.step_tasks import (
    OURS,
    OURS_ON_DATA,
    PLAIN_LOOP,
    TWICE,
    Saved,
    Timed,
    built,
    device_name,
    difference,
    dropped,
    profiled,
    saved,
    threads,
    timed,
)
from launch.cores import usable_cores
from launch.machine import machine
from launch.terminal import with_progress
from trainer.config import Config
from trainer.feasible import check, check_iteration, dataset_of
from trainer.flops import flops_of_a_scan

PACKAGES = ("sonotrain", "torch", "deepspeed", "numpy")

ROUND_SECONDS = 5.0
"""For which a loop iterates in a round, at least twice."""

OF_THE_PLAIN_LOOP = 1.05
OF_THE_GENERATOR_TWICE = 1.1
TWO_OF_ONE = 1.8
FOR_CHECKPOINTS = 0.02
FOR_DATA = 0.03

EPOCH_SCANS = 1499
"""Of BUS-BRA's official folds 2 to 5, after which a checkpoint is written."""

SAME_STEPS = 3
SAME = 1e-5
"""The largest difference of a weight, after so many iterations, of two loops that do the same."""

STEPS_AROUND_A_CHECKPOINT = 3
PROFILED_STEPS = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure. profile is a file for the operators that take longest; compiles: also with torch.compile."""

    config: Config
    rounds: int
    profile: Path | None = None
    seconds: float = ROUND_SECONDS
    compiles: bool = True


@dataclass(slots=True)
class Row:
    """A loop in some processes, and what it came to: a Timed and a number of scans for each round."""

    name: str
    processes: StepProcesses
    loop: str
    config: Config
    memory: int | None = None
    rounds: list[Timed] = field(default_factory=list)
    scans: list[int] = field(default_factory=list)

    def build(self) -> None:
        """Make the loop."""
        peaks = self.processes.ask(built, self.name, self.loop, self.config)
        self.memory = None if None in peaks else max(peaks)

    def time(self, steps: int) -> Timed:
        """So many iterations; of several processes the time of the slowest, and the processor time of all."""
        found: list[Timed] = self.processes.ask(timed, self.name, steps)
        return Timed(
            max(each.wall for each in found),
            sum(each.processor for each in found),
            max(each.waiting for each in found),
        )

    @property
    def rates(self) -> list[float]:
        """Images a second in each round."""
        return [scans / each.wall for scans, each in zip(self.scans, self.rounds, strict=True)]


def bench_step(wanted: Wanted, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and give the result as JSON has it.

    Raises WrongCall for a configuration that cannot be trained, Fault where a process fails or ours does not come to
    the weights of the plain loop.
    """
    config = measured(wanted.config)
    check_iteration(config, 1)
    if config.data.uris:
        check(config, dataset_of(config), 1)
    bench = Bench(wanted, config, tell)
    load = os.getloadavg()[0]
    result = bench.alone()
    if not torch.cuda.is_available():
        result |= bench.together()
    return {
        "machine": {**machine(), "load_before": round(load, 2), **result.pop("device")},
        "versions": {package: version(package) for package in PACKAGES},
        "settings": _settings(wanted, config),
        **result,
        "criteria": criteria(result),
    }


def measured(config: Config) -> Config:
    """The configuration without what the plain loop lacks (clipping, running average, warm-up of beta) and mirror."""
    return config.replace(
        optimizer__clip=0.0, training__ema=0.0, objective__beta_warmup_steps=0, checkpoints__mirror=""
    )


class Bench:
    """The measurements of one configuration."""

    def __init__(self, wanted: Wanted, config: Config, tell: Callable[[str], None]) -> None:
        self._wanted = wanted
        self._config = config
        self._tell = tell
        self._flops = flops_of_a_scan(config)

    def alone(self) -> dict[str, Any]:
        """What one process does: beside plain loops, on data, with checkpoints, and in which arithmetic."""
        ours, plain = StepProcesses(ENGINES), StepProcesses(PLAIN)
        with ours, plain:
            result: dict[str, Any] = {
                "device": {"device": ours.ask(device_name)[0], "threads": ours.ask(threads)[0]},
                "same_iteration": self._require_same(ours),
            }
            rows = [
                Row("sonotrain", ours, OURS, self._config),
                Row("plain loop", plain, PLAIN_LOOP, self._config),
                Row("plain loop, generator twice", plain, TWICE, self._config),
            ]
            with tempfile.TemporaryDirectory(prefix="sonotrain-bench-") as folder, self._ready(rows):
                self._take_turns(rows)
                result["loops"] = [self._reported(row) for row in rows]
                if self._wanted.profile is not None:
                    self._profile(rows[:2], self._wanted.profile)
                result["checkpoint"] = self._checkpoints(rows[0], Path(folder))
            if self._config.data.uris:
                result["data"] = self._data(ours)
            result["ladder"] = self._ladder(ours, plain)
        return result

    def together(self) -> dict[str, Any]:
        """What two processes do, each on its core and in one thread, beside one with as much work as each of them."""
        cores, batch = usable_cores().numbers, self._config.training.batch
        if len(cores) < 2 or batch % (2 * self._config.training.accumulation):
            self._tell("Two processes are left out: they need two cores, and a batch that can be halved")
            return {}
        alone = self._config.replace(training__batch=batch // 2)
        one, two = StepProcesses(ENGINES, 1, cores), StepProcesses(ENGINES, 2, cores)
        with one, two:
            rows = [
                Row("one process, one thread", one, OURS, alone),
                Row("two processes, one thread each", two, OURS, self._config),
            ]
            with self._ready(rows):
                self._take_turns(rows)
            return {"processes": [self._reported(row) for row in rows]}

    # -- parts -----------------------------------------------------------------------------------------------------

    def _require_same(self, ours: StepProcesses) -> dict[str, Any]:
        """Raise Fault unless engines and plain loop come to the same weights, in fp32."""
        exact = self._config.replace(
            training__precision="fp32", training__channels_last=False, training__compile=False,
            training__batch=2 * self._config.training.accumulation,
        )  # fmt: skip
        (largest,) = ours.ask(difference, exact, SAME_STEPS)
        if not largest <= SAME:
            raise Fault(f"after {SAME_STEPS} iterations ours and the plain loop differ by {largest:.1e} in a weight")
        return {"steps": SAME_STEPS, "largest_difference": largest, "allowed": SAME}

    @contextmanager
    def _ready(self, rows: Sequence[Row]) -> Iterator[None]:
        """Build the rows' loops, and drop them afterwards; where something fails, their processes end anyway."""
        for row in with_progress(rows, "loops warmed up", len(rows)):
            row.build()
        yield
        for processes in {id(row.processes): row.processes for row in rows}.values():
            processes.ask(dropped)

    def _take_turns(self, rows: Sequence[Row]) -> None:
        """Time every row once a round, from the first to the last and back."""
        steps = {row.name: max(2, round(self._wanted.seconds / row.time(1).wall)) for row in rows}
        turns = [row for number in range(self._wanted.rounds) for row in (rows if number % 2 == 0 else rows[::-1])]
        for row in with_progress(turns, "rounds timed", len(turns)):
            row.rounds.append(row.time(steps[row.name]))
            row.scans.append(steps[row.name] * row.config.training.batch)

    def _profile(self, rows: Sequence[Row], file: Path) -> None:
        parts = [f"{row.name}, {PROFILED_STEPS} iterations\n{row.processes.ask(profiled, row.name, PROFILED_STEPS)[0]}"
                 for row in rows]  # fmt: skip
        file.write_text("\n".join(parts), encoding="utf-8")

    def _checkpoints(self, row: Row, folder: Path) -> dict[str, Any]:
        """What one costs, and of an epoch's time. The first, which fetches memory for all, is told apart."""
        taken: list[Saved] = []
        for number in with_progress(range(self._wanted.rounds + 1), "checkpoints saved", self._wanted.rounds + 1):
            arguments = (row.name, row.config, folder, number + 1, STEPS_AROUND_A_CHECKPOINT)
            taken += row.processes.ask(saved, *arguments)
        first, *later = taken
        batch = row.config.training.batch
        return {
            "epoch_scans": EPOCH_SCANS,
            "first": asdict(first),
            "rounds": [asdict(each) for each in later],
            "share": asdict(estimate([each.cost / (EPOCH_SCANS / batch * each.usual) for each in later])),
        }

    def _data(self, ours: StepProcesses) -> dict[str, Any]:
        """Training on the dataset itself, one round right after the other, so that nothing is read in a pause."""
        row = Row("sonotrain, on data", ours, OURS_ON_DATA, self._config)
        with self._ready([row]):
            self._take_turns([row])
        waiting = [each.waiting / each.wall for each in row.rounds]
        return self._reported(row) | {"waiting_share": {"rounds": waiting, **asdict(estimate(waiting))}}

    def _ladder(self, ours: StepProcesses, plain: StepProcesses) -> dict[str, Any]:
        """Each rung's speed, and what it adds to the one below."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        name = ours.ask(device_name)[0]
        ladder, missing = rungs(device, self._wanted.compiles)
        for what, why in missing.items():
            self._tell(f"{what} is left out, for {why}")
        rows = [
            Row(rung.name, ours if rung.loop == OURS else plain, rung.loop, rung.of(self._config)) for rung in ladder
        ]
        with self._ready(rows):
            self._take_turns(rows)
        peaks = {precision: plain.ask(peak, name, precision)[0] for precision in {rung.precision for rung in ladder}}
        below = [rows[0], *rows[:-1]]
        return {
            "left_out": missing,
            "peaks": {precision: {"tflops": rate, "from": source} for precision, (rate, source) in peaks.items()},
            "rungs": [
                self._rung(rung, row, under, peaks[rung.precision][0])
                for rung, row, under in zip(ladder, rows, below, strict=True)
            ],
        }

    def _rung(self, rung: Rung, row: Row, under: Row, chip: float) -> dict[str, Any]:
        reported = self._reported(row)
        return {
            **asdict(rung),
            **reported,
            "share_of_peak": reported["tflops"] / chip,
            "of_the_one_below": asdict(paired_ratio(row.rates, under.rates)),
        }

    def _reported(self, row: Row) -> dict[str, Any]:
        """Images a second, the arithmetic of a plain iteration that this is, and processor seconds an image."""
        rates = estimate(row.rates)
        processor = [each.processor / scans for each, scans in zip(row.rounds, row.scans, strict=True)]
        return {
            "name": row.name,
            "batch": row.config.training.batch,
            "images_per_second": {"rounds": row.rates, **asdict(rates)},
            "tflops": rates.median * self._flops / 1e12,
            "processor_seconds_an_image": {"rounds": processor, **asdict(estimate(processor))},
            "peak_bytes": row.memory,
        }


def criteria(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What ours promises: ratios within rounds, and shares of time, beside what is wanted."""

    def rates(part: str, place: int) -> list[float]:
        found: list[float] = result[part][place]["images_per_second"]["rounds"]
        return found

    ours, plain, twice = (rates("loops", place) for place in range(3))
    most, least = "at most", "at least"
    found = [
        ("time of an iteration: of the plain loop's", most, OF_THE_PLAIN_LOOP, paired_ratio(plain, ours)),
        ("images/s: of the loop that computes the generator twice", least, OF_THE_GENERATOR_TWICE,
         paired_ratio(ours, twice)),
        ("share of time for checkpoints, one an epoch", most, FOR_CHECKPOINTS,
         Estimate(**result["checkpoint"]["share"])),
    ]  # fmt: skip
    if "processes" in result:
        ratio = paired_ratio(rates("processes", 1), rates("processes", 0))
        found.append(("images/s of two pinned processes: of one", least, TWO_OF_ONE, ratio))
    if "data" in result:
        share = {name: result["data"]["waiting_share"][name] for name in ("median", "low", "high")}
        found.append(("share of time waiting for data", most, FOR_DATA, Estimate(**share)))
    return [
        {
            "what": what,
            "bound": bound,
            "wanted": wanted,
            **asdict(value),
            "met": value.median <= wanted if bound == most else value.median >= wanted,
        }
        for what, bound, wanted, value in found
    ]


def _settings(wanted: Wanted, config: Config) -> dict[str, Any]:
    branches = ("network.", "discriminators.", "objective.", "optimizer.", "training.")
    return {
        "rounds": wanted.rounds,
        "round_seconds": wanted.seconds,
        "flops_of_a_scan": flops_of_a_scan(config),
        "size": list(config.data.size),
        **{key: value for key, value in config.flat().items() if key.startswith(branches)},
    }
