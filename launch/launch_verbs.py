"""`sonotrain launch ...`: a training verb in many processes, on one machine or many."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.order import LaunchCommand, MemberCommand, Order
from launch.terminal import say
from launch.train_verbs import parsed_config

if TYPE_CHECKING:
    from launch.preview import Preview

launch = typer.Typer(
    no_args_is_help=True,
    help="Start a training verb in many processes, for example: launch local --procs 2 -- train quick. "
    "Options that are not known here are handed on to the program that carries the job out.",
)


@launch.command(cls=LaunchCommand)
def local(
    context: typer.Context,
    logs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where each rank's output is kept; if not given, OUTPUT/logs.")
    ] = None,
) -> None:
    """Run a training verb in processes of this machine."""
    from data_pipeline import WrongCall
    from launch import local as here

    order: Order = context.obj
    if order.passed_on:
        raise WrongCall(f"{order.passed_on[0]} is no option of launch local; the verb stands behind --")
    enter(order.job.workdir)
    folder = logs or logs_of(order)
    carry_out(order, lambda: here.plan(order.job), lambda: here.run(order.job, folder), folder)


@launch.command(cls=MemberCommand)
def node(
    context: typer.Context,
    by: Annotated[
        str, typer.Option(metavar="WAY", help="Who starts it: deepspeed, slurm, kubeflow (PyTorchJob) or trainer.")
    ],
    procs: Annotated[int, typer.Option(metavar="P", min=1, help="Processes on this machine.")] = 1,
    control: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What a supervisor has written for this node; read once.")
    ] = None,
) -> None:
    """Run one machine's share of a job; a scheduler or a supervisor starts it on each machine."""
    from launch.job import sonotrain
    from launch.member import run_member

    logs = Path(parsed_config(context.obj).output) / "logs"
    status = run_member(by, procs, sonotrain(*context.obj), logs, control)
    if status:
        raise typer.Exit(status)


def enter(workdir: Path) -> None:
    """Go to the working directory. Raises WrongCall where it is no folder."""
    from data_pipeline import WrongCall

    try:
        os.chdir(workdir)
    except OSError as refused:
        raise WrongCall(f"--workdir {workdir}: {refused.strerror}") from refused


def logs_of(order: Order) -> Path:
    """Where the logs of a launch lie, below its output. Raises what its verb would raise."""
    return Path(parsed_config(order.job.verb).output) / "logs"


def carry_out(order: Order, plan: Callable[[], Preview], run: Callable[[], int], logs: Path) -> None:
    """Show the plan of an order, or run it and say how it ended."""
    preview = plan()
    if order.dry_run:
        _show(order, preview)
        return
    from launch.job import STOPPED

    job = order.job
    many = f"{job.processes * job.nodes} processes" + (f" on {job.nodes} machines" if job.nodes > 1 else "")
    say(f"Launching {many} of `sonotrain {' '.join(job.verb)}`; their logs: {logs}")
    status = run()
    if status == STOPPED:
        say(f"All {many} have stopped after a checkpoint; the same call goes on; their logs are in {logs}")
    if status:
        raise typer.Exit(status)
    say(f"All {many} are done; their logs are in {logs}")


def _show(order: Order, preview: Preview) -> None:
    """A plan, for people and for machines."""
    from launch.options import write_json

    for name in preview.environment:
        say(f"environment: {name}")
    for command in preview.commands:
        say(shlex.join(command))
    for text in filter(None, (preview.script, preview.manifest)):
        say(text.rstrip("\n"))
    told = {"commands": [list(command) for command in preview.commands], "script": preview.script}
    write_json(order.json, told | {"manifest": preview.manifest, "environment": list(preview.environment)})
