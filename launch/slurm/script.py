"""The batch script: what it asks of Slurm, and the supervisor that it becomes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from data_pipeline import WrongCall
from launch.job import Job, sonotrain

NOTICE = timedelta(seconds=120)
"""How long before its time limit a job is asked to stop with a checkpoint, at most; never more than half of the limit.

Slurm may ask up to a minute early.
"""

TASK = "SLURM_ARRAY_TASK_ID"
"""The variable in which a task of an array finds its fold."""

_PLAIN = re.compile(r"[\w./:@,+%-]+")


@dataclass(frozen=True, slots=True)
class PerFold:
    """What the tasks of an array train: each the fold that is its own number."""

    training: Sequence[str]
    """train, its configuration and changes."""
    output: str
    """The folder below which each fold has its own, fold-K."""
    mirror: str = ""
    """Likewise the checkpoints' mirror; empty for none."""

    def changes(self, fold: str) -> list[str]:
        """What sets a fold's training apart."""
        folders = {"output": self.output, "checkpoints.mirror": self.mirror}
        return [f"data.fold={fold}", *(f"{key}={folder}/fold-{fold}" for key, folder in folders.items() if folder)]


def batch_script(job: Job, output: Path, gpus: bool, folds: PerFold | None = None) -> str:
    """A script for sbatch. With `folds` it is for an array's tasks, and for the job behind them, which runs job.verb.

    output is the folder of the run, below which the log is kept. gpus is whether each process is to get a GPU. It holds
    no variable of the job: sbatch hands on the environment that it is called in. Raises WrongCall for folders that
    cannot be written in a script of Slurm.
    """
    least, most = job.sizes[0], job.sizes[-1]
    options = {
        "job-name": f"sonotrain-{output.name}",
        "nodes": str(most) if least == most else f"{least}-{most}",
        # One task for each node, but not told so: Slurm would then give as few nodes of a range as it may.
        "cpus-per-task": str(job.processes),
    }
    if gpus:
        options["gpus-per-node"] = str(job.processes)
    if job.time_limit:
        options["time"] = _time(job.time_limit)
    notice = min(NOTICE, job.time_limit / 2) if job.time_limit else NOTICE
    options |= {
        "signal": f"B:USR1@{round(notice.total_seconds())}",
        "open-mode": "append",
        "export": "ALL",
        "chdir": str(job.workdir.absolute()),
        # In a file's name %j is the job's number, and %% a per cent sign.
        "output": str(log_of(Path(str(job.workdir.absolute() / output).replace("%", "%%")), "%j")),
    }
    flags = ["requeue"]
    if job.elastic:
        flags.append("no-kill")
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={_quoted(name, value)}" for name, value in options.items()),
        *(f"#SBATCH --{name}" for name in flags),
        "",
        "# exec: a signal that Slurm sends to this shell is one to the supervisor.",
    ]
    if folds:
        lines += [f'if [ -n "${{{TASK}:-}}" ]; then', f"    exec {_supervised_fold(job, folds)}", "fi"]
    lines.append(f"exec {shlex.join(_supervisor(job, job.verb, one=folds is not None))}")
    return "\n".join(lines) + "\n"


def log_of(output: Path, number: str) -> Path:
    """Where a job's own output is kept."""
    return output / "logs" / f"slurm-{number}.out"


def _supervised_fold(job: Job, folds: PerFold) -> str:
    """The supervisor of an array's task, with places for its fold's number that the shell fills in."""
    changes = (f'{shlex.quote(change)}"${TASK}"' for change in folds.changes(""))
    return " ".join([shlex.join(_supervisor(job, folds.training)), *changes])


def _supervisor(job: Job, verb: Sequence[str], one: bool = False) -> tuple[str, ...]:
    """The program that a batch script becomes. With `one` it runs a single process."""
    options = ["--procs", "1" if one else str(job.processes), "--restarts", str(job.restarts)]
    if job.elastic and not one:
        options += ["--elastic", f"{job.elastic[0]}:{job.elastic[-1]}"]
    return sonotrain("launch", "slurm-batch", *options, "--", *verb)


def _quoted(name: str, value: str) -> str:
    """A value as sbatch reads it in a script."""
    # A backslash in a file's name turns off its %j, and cannot be written otherwise.
    if not value.isprintable() or "\\" in value:
        raise WrongCall(
            f"--{name}: {value!r} cannot be written in a script of Slurm; name a folder without \\ and tabs"
        )
    return value if _PLAIN.fullmatch(value) else '"' + value.replace('"', '\\"') + '"'


def _time(limit: timedelta) -> str:
    """As Slurm writes it, D-HH:MM:SS."""
    seconds = round(limit.total_seconds())
    days, seconds = divmod(seconds, 86400)
    clock = f"{seconds // 3600:02}:{seconds % 3600 // 60:02}:{seconds % 60:02}"
    return f"{days}-{clock}" if days else clock
