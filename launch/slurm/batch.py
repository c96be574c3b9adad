"""`sonotrain launch slurm-batch`: what a batch script becomes. It supervises its job, and has Slurm start it again."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline import Fault, WrongCall
from launch.cluster import run_cluster
from launch.job import STOPPED, Job
from launch.slurm.partition import ask
from launch.slurm.srun import Srun
from launch.terminal import say

_JOB = "SLURM_JOB_ID"


def run_batch(job: Job, logs: Path) -> int:
    """Carry out a job on the nodes that Slurm has given this one; gives 0, 2 or 75.

    Stopped with a checkpoint, because its time is up or its nodes are wanted for another job, it is put back into the
    queue, unless Slurm has done so or somebody has cancelled it. Raises what `run_cluster` does, and WrongCall outside
    of a batch job of Slurm.
    """
    number, nodes = _given(_JOB), int(_given("SLURM_JOB_NUM_NODES"))
    again = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    say(f"Job {number} of Slurm on {_given('SLURM_JOB_NODELIST')}" + (f", put back {again} times" if again else ""))
    sizes = range(job.elastic[0], nodes + 1) if job.elastic else None
    words = logs / "srun.log"
    try:
        status = run_cluster(replace(job, nodes=nodes, elastic=sizes), Srun(words, job.workdir), words)
    except WrongCall:
        raise
    except Fault as failed:
        # A rank that has hardly begun cannot answer Slurm's signal with a checkpoint.
        if not _state(number).preempted:
            raise
        say(f"Preempted: {failed}")
        status = STOPPED
    if status == STOPPED:
        _put_back(number)
    return status


@dataclass(frozen=True, slots=True)
class _State:
    name: str
    """RUNNING, CANCELLED, PENDING, ..."""
    preempted: bool


def _put_back(number: str) -> None:
    """Have Slurm start this job again, when it can, if nobody has done so or cancelled it."""
    # A job that ends by itself while it is being preempted is over for Slurm.
    if _state(number).name != "RUNNING":
        return
    try:
        ask("scontrol", "requeue", number)
    except WrongCall as refused:
        say(f"Not put back into the queue ({refused}); submitted again, it goes on from its checkpoint")
    else:
        say("Put back into the queue; it will go on from its checkpoint")


def _state(number: str) -> _State:
    try:
        told = ask("scontrol", "show", "job", "--oneliner", number)
    except WrongCall:
        return _State("UNKNOWN", preempted=False)
    state = re.search(r"\bJobState=(\w+)", told)
    preempted = re.search(r"\bPreemptTime=(\S+)", told)
    return _State(state[1] if state else "UNKNOWN", bool(preempted and preempted[1] != "None"))


def _given(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise WrongCall(f"{name} is not set: slurm-batch is what a batch job runs that launch slurm submits")
    return value
