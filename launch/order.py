"""What every `sonotrain launch` takes: options before --, a training verb with its arguments behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from launch.options import writable

if TYPE_CHECKING:
    from launch.job import Job

RESTARTS = 3
"""How often a job is started again, if not told."""


@dataclass(frozen=True)
class Order:
    """A launch as it was asked for."""

    job: Job
    dry_run: bool
    json: Path | None
    passed_on: Sequence[str]
    """Options that are not ours, for the program that carries the job out."""


class MemberCommand(TyperCommand):
    """A command of a verb behind --, which reaches its function as `context.obj`, a list."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the verb from being read as ours."""
        place = args.index("--") if "--" in args else len(args)
        ctx.obj = args[place + 1 :]
        return super().parse_args(ctx, args[:place])


class LaunchCommand(MemberCommand):
    """A way to launch: it has the options that all have, and its function gets an Order as `context.obj`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        settings["params"] = [*_shared.params, *(settings.get("params") or ())]
        settings["context_settings"] = {"ignore_unknown_options": True, "allow_extra_args": True}
        super().__init__(*arguments, **settings)

    def invoke(self, ctx: Any) -> Any:
        """Make an order of the options that all have."""
        given = {option.name: ctx.params.pop(option.name) for option in _shared.params}
        ctx.obj = _order(ctx, **given)
        return super().invoke(ctx)


def _order(
    context: typer.Context,
    nodes: Annotated[int, typer.Option(metavar="N", help="Machines.")] = 1,
    procs: Annotated[
        int, typer.Option(metavar="P", help="Processes on each machine, at most one for each core or GPU.")
    ] = 1,
    elastic: Annotated[
        str | None,
        typer.Option(metavar="MIN:MAX", help="In place of --nodes: go on with MIN machines where not MAX are left."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="A variable of all processes; NAME alone as it is here. Repeatable."),
    ] = None,
    workdir: Annotated[
        str | None, typer.Option(metavar="DIR", help="The working directory on each machine; this one, if not given.")
    ] = None,
    restarts: Annotated[
        int, typer.Option(metavar="R", help="How often it is started again after a failure, from the last checkpoint.")
    ] = RESTARTS,
    time_limit: Annotated[
        str | None, typer.Option(metavar="H:MM:SS", help="After so long, stop with a checkpoint.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be started and what it needs; start nothing.")
    ] = False,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="With --dry-run, write it here too.")] = None,
) -> Order:
    """The options that all ways to launch have."""
    from data_pipeline import WrongCall
    from launch.job import Job, duration, node_range, variables

    if context.obj[:1] == ["tune"] and context.info_name != "kubernetes":
        raise WrongCall(
            f"launch {context.info_name} starts no tune, which launches its trials itself: leave out what stands "
            "before tune, set RAY_ADDRESS for a Ray cluster's machines, or write launch kubernetes"
        )
    sizes = node_range(elastic)
    job = Job(
        verb=tuple(context.obj),
        nodes=sizes[-1] if sizes else nodes,
        processes=procs,
        environment=variables(env or ()),
        workdir=Path(workdir or Path.cwd()),
        restarts=restarts,
        time_limit=duration(time_limit),
        elastic=sizes,
    )
    return Order(job, dry_run, writable(Path(json) if json else None), tuple(context.args))


def _read(function: Callable[..., Order]) -> Any:
    """A command with the options that a function's signature tells, as typer reads them."""
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return typer.main.get_command(app)


_shared = _read(_order)
