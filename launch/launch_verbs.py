"""`sonotrain launch ...`: a training verb in many processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.terminal import say
from launch.train_verbs import parsed_config

launch = typer.Typer(no_args_is_help=True, help="Start a training verb in several processes.")


@launch.callback()
def _group() -> None:
    """Keep `local` a verb of its own while it is the only one."""


@launch.command(context_settings={"allow_interspersed_args": False})
def local(
    verb: Annotated[list[str], typer.Argument(metavar="-- VERB ...", help="train or crossval, with its arguments.")],
    procs: Annotated[int, typer.Option(metavar="N", min=1, help="Processes, at most one for each core.")],
    logs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where each rank's output is kept; if not given, OUTPUT/logs.")
    ] = None,
) -> None:
    """Run a training verb in N processes of this machine, for example: launch local --procs 2 -- train quick."""
    from launch.job import verb_job
    from launch.local import STOPPED, run_local

    job = verb_job(verb, procs)
    folder = logs or Path(parsed_config(verb).output) / "logs"
    say(f"Launching {procs} processes of `sonotrain {' '.join(verb)}`; their logs: {folder}")
    status = run_local(job, folder)
    if status == STOPPED:
        say(f"All {procs} processes have stopped after a checkpoint; the same call goes on; their logs are in {folder}")
    if status:
        raise typer.Exit(status)
    say(f"All {procs} processes are done; their logs are in {folder}")
