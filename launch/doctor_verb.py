"""`sonotrain doctor`: whether machines, network, store and tracker are fit for a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import JsonFile, write_json
from launch.terminal import say, show_table
from launch.train_verbs import Changes

if TYPE_CHECKING:
    from launch.doctor.examine import Machine
    from launch.doctor.finding import Finding, Wanted

_STATES = {"ok": "ok", "warning": "warning", "failed": "FAILED"}


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG",
            help="The job to be fit for: a preset's name or a YAML file. Without one the dataset and the mirror are "
            "not looked at, and the training is a small one.",
        ),
    ] = None,
    changes: Changes = None,
    hostfile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Examine these hosts, as DeepSpeed lists them, over ssh."),
    ] = None,
    procs: Annotated[
        int | None,
        typer.Option(
            metavar="P", min=1, help="Processes of a host; if not given, the hostfile's slots, GPUs, or 2 at most."
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="A variable of the job; NAME alone as it is here. Repeatable."),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Find out what would keep a job from running here, or on the hosts of a hostfile, and what to do about it.

    Looks at versions, device, cores, memory, open files, disk, clocks, ports, the network between hosts, the store and
    the tracker, and trains two steps on phantoms. Exit status 1 where a check failed; warnings do not count.
    """
    from data_pipeline import Fault
    from launch.doctor.examine import examine
    from launch.doctor.report import as_json

    machines, wanted = _of_call(config, changes or (), hostfile, procs, env or ())
    names = ", ".join(machine.name for machine in machines)
    processes = f"{wanted.processes} process{'es' if wanted.processes > 1 else ''}"
    say(f"Examining {names} for {config or 'any job'} in {processes} of each host; this takes up to some minutes")
    findings = examine(wanted, machines, Path.cwd())
    _show(findings)
    write_json(json, as_json(findings, wanted))
    failed = [f"{finding.check} on {finding.host}" for finding in findings if finding.state == "failed"]
    warnings = sum(finding.state == "warning" for finding in findings)
    if failed:
        raise Fault(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}; the table says what to do")
    say(f"{len(findings)} checks, none failed, {warnings} with a warning{f'; written to {json}' if json else ''}")


def _of_call(
    source: str | None, changes: Sequence[str], hostfile: Path | None, procs: int | None, env: Sequence[str]
) -> tuple[list[Machine], Wanted]:
    """The machines of a call, and the job that they have to be fit for. Raises WrongCall."""
    from launch.doctor.finding import Wanted
    from launch.doctor.machines import of_hostfile, this_machine
    from launch.doctor.training import SMALL
    from launch.job import variables
    from trainer.config import load_config

    environment = variables(env)
    machines, room = of_hostfile(hostfile, environment) if hostfile else this_machine(environment)
    config = load_config(source, changes) if source else load_config("quick", SMALL)
    return machines, Wanted(config, source is not None, len(machines), procs or room)


def _show(findings: Sequence[Finding]) -> None:
    rows = []
    for finding in findings:
        told = f"{finding.found}\n-> {finding.advice}" if finding.advice else finding.found
        rows.append((finding.check, finding.host, _STATES[finding.state], told))
    show_table("Findings", ("check", "host", "", "found, and what to do"), rows)
