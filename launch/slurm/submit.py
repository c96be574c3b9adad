"""Submit a Job to Slurm, after asking it whether there is room for one."""

from __future__ import annotations

import os
import shlex
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline import Fault, WrongCall
from launch.job import STOPPED, Job
from launch.preview import Preview
from launch.slurm.partition import NoSlurm, Partition, ask, chosen, last_words, partitions
from launch.slurm.passed_on import asks_for_gpus, partition_names, require_no_clash
from launch.slurm.script import TASK, PerFold, batch_script, log_of
from launch.terminal import say
from launch.train_verbs import parsed_config, source_and_changes

ANSWER = 60.0
"""Seconds in which sbatch has to have submitted."""

# What stands in the script is not to be changed by these variables of sbatch, nor by the job that this may run in.
_NOT_HANDED_ON = (
    "SBATCH_ARRAY_INX",
    "SBATCH_EXPORT",
    "SBATCH_JOB_NAME",
    "SBATCH_NO_REQUEUE",
    "SBATCH_OPEN_MODE",
    "SBATCH_OUTPUT",
    "SBATCH_REQUEUE",
    "SBATCH_SIGNAL",
    "SBATCH_TIMELIMIT",
    "SBATCH_WAIT",
    TASK,
)


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """What can be asked of Slurm alone."""

    array: bool = False
    """A cross-validation as an array: a task for each fold at the same time, and a job behind them that summarises."""
    wait: bool = False
    """Wait until the job is over."""


def plan(job: Job, options: SlurmOptions, passed_on: Sequence[str]) -> Preview:
    """What `run` would submit. Raises WrongCall as it does, but for a Slurm that is not there: then it asks for no GPU.

    Where a command needs the number that Slurm gives the first job, ARRAY stands for it.
    """
    try:
        room = _room(job, passed_on)
    except NoSlurm:
        require_no_clash(passed_on, tuple(job.environment))
        room = []
    submission = _submission(job, options, passed_on, room)
    commands = [submission.command]
    if submission.folds:
        commands.append(submission.summary("ARRAY"))
    return Preview(commands, submission.script, environment=[f"{name}=(hidden)" for name in job.environment])


def run(job: Job, options: SlurmOptions, passed_on: Sequence[str]) -> int:
    """Submit a job, say how to follow it, and give 0; with options.wait, when it is over, its own status: 0, 2 or 75.

    Raises WrongCall, before anything is submitted, for what Slurm has no room for and where it is not there, and Fault
    where a job that was waited for failed.
    """
    submission = _submission(job, options, passed_on, _room(job, passed_on))
    logs = log_of(job.workdir.absolute() / submission.output, "").parent
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise WrongCall(f"{logs} cannot be made a folder for logs: {refused.strerror}") from refused
    wait = options.wait and not submission.folds
    with _Submitted(submission.command, submission, job, wait) as first:
        what = f"of {len(submission.folds)} tasks, one for each fold, " if submission.folds else ""
        say(f"Submitted job {first.number} {what}for `sonotrain {shlex.join(job.verb)}`")
        if not submission.folds:
            return first.followed(logs)
    try:
        behind = _Submitted(submission.summary(first.number), submission, job, options.wait)
    except Fault:
        ask("scancel", first.number)
        raise
    with behind as last:
        say(f"Submitted job {last.number}, which begins when all of them are done: the table, and the registration")
        return last.followed(logs)


@dataclass(frozen=True)
class _Submission:
    script: str
    command: Sequence[str]
    output: Path
    folds: Sequence[int]
    passed_on: Sequence[str]

    def summary(self, array: str) -> list[str]:
        """The command for the job behind an array of this number."""
        alone = ["--nodes=1", "--cpus-per-task=1"]
        if "--gpus-per-node=" in self.script:
            alone.append("--gpus-per-node=1")
        after = [f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes"]
        return ["sbatch", "--parsable", *self.passed_on, *alone, *after]


def _submission(job: Job, options: SlurmOptions, passed_on: Sequence[str], room: Sequence[Partition]) -> _Submission:
    config = parsed_config(job.verb)
    _require_batch(job)
    gpus = any(partition.has_gpus for partition in room) and not asks_for_gpus(passed_on)
    folds = _folds(job) if options.array else ()
    script = batch_script(job, Path(config.output), gpus, _per_fold(job, folds[0]) if folds else None)
    command = ["sbatch", "--parsable", *passed_on]
    if folds:
        command.append(f"--array={','.join(map(str, folds))}")
    return _Submission(script, command, Path(config.output), folds, passed_on)


def _room(job: Job, passed_on: Sequence[str]) -> list[Partition]:
    """Where the job can run. Raises WrongCall where it never can, and NoSlurm."""
    require_no_clash(passed_on, tuple(job.environment))
    ask("sbatch", "--version")
    found = chosen(partition_names(passed_on), partitions())
    for partition in found:
        partition.require_room(job, asks_for_gpus(passed_on))
    return found


def _require_batch(job: Job) -> None:
    """Raise WrongCall where the global batch cannot be divided on a number of nodes that Slurm may give."""
    from trainer.feasible import check_iteration

    config = parsed_config(job.verb)
    for nodes in job.sizes:
        check_iteration(config, nodes * job.processes)


def _folds(job: Job) -> tuple[int, ...]:
    """The folds that a cross-validation holds out. Raises WrongCall for another verb, and for a study."""
    from trainer.crossval import held_out_folds
    from trainer.feasible import dataset_of
    from trainer.study import is_study

    if job.verb[0] != "crossval" or is_study(source_and_changes(job.verb)[0]):
        raise WrongCall("--array is for the folds of crossval CONFIG; it cannot divide another verb, nor a study")
    config = parsed_config(job.verb)
    return config.folds or held_out_folds(config, dataset_of(config))


def _per_fold(job: Job, one: int) -> PerFold:
    """What each task of an array trains, which is what crossval would: else it would not find it done."""
    from trainer.config import load_config
    from trainer.crossval import of_fold

    config = parsed_config(job.verb)
    source, changes = source_and_changes(job.verb)
    folds = PerFold(("train", source, *changes), config.output, config.checkpoints.mirror.rstrip("/"))
    if load_config(source, [*changes, *folds.changes(str(one))]) != of_fold(config, one):
        raise WrongCall(f"--array: output={config.output!r} cannot be written as key=value; name another folder")
    return folds


class _Submitted:
    """A job that sbatch has taken, and sbatch itself, as long as it waits for the job's end."""

    def __init__(self, command: Sequence[str], submission: _Submission, job: Job, wait: bool) -> None:
        """Raises WrongCall with sbatch's own words where it refuses, and Fault where it does not answer."""
        self._wait = wait
        self._sbatch = subprocess.Popen(
            [*command, *(["--wait"] if wait else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(job.environment),
        )
        silent = threading.Timer(ANSWER, self._sbatch.kill)
        silent.start()
        assert self._sbatch.stdin is not None
        assert self._sbatch.stdout is not None
        with self._sbatch.stdin as script:
            script.write(submission.script)
        self._sbatch.stdin = None  # else communicate would want to flush it
        # With --parsable a line holds the job's number, and behind a semicolon the cluster's name.
        self.number = self._sbatch.stdout.readline().strip().partition(";")[0]
        silent.cancel()
        if not self.number.isdecimal():
            _, complaint = self._sbatch.communicate()
            if self._sbatch.returncode < 0:
                raise Fault(f"sbatch did not answer within {ANSWER:g} s; squeue tells whether the job was submitted")
            raise WrongCall(f"Slurm refuses the job: {last_words(complaint).removeprefix('sbatch: error: ')}")

    def __enter__(self) -> _Submitted:
        return self

    def __exit__(self, *_: object) -> None:
        self._sbatch.kill()
        self._sbatch.communicate()

    def followed(self, logs: Path) -> int:
        """Say how to follow the job; wait for it, if that was asked for, and give its status."""
        log = log_of(logs.parent, self.number)
        say(f"Its output: {log}; squeue --jobs {self.number} tells where it stands, scancel {self.number} ends it")
        if not self._wait:
            return 0
        self._sbatch.communicate()
        status = self._sbatch.returncode
        if status in (0, WrongCall.exit_status, STOPPED):
            return status
        raise Fault(f"job {self.number} failed, with status {status}; its output is in {log}")


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    """What sbatch hands on to the job."""
    return {name: value for name, value in os.environ.items() if name not in _NOT_HANDED_ON} | dict(own)
