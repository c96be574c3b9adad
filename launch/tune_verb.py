"""`sonotrain tune`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from launch.options import JsonFile, write_json
from launch.terminal import say
from launch.train_verbs import Changes, Source


def tune(
    config: Source,
    changes: Changes = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be tried, and from measured trials what it would take.")
    ] = False,
    nodes: Annotated[
        int | None, typer.Option(metavar="M", min=1, help="With --dry-run: for a cluster of so many such machines.")
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --dry-run: the study whose trials tell; its own, if not given."),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Search loss weights, rates, or any keys: trials as Ray places them, judged on held-out folds (docs/tuning.md).

    Started again with the same output, it goes on. Keys that begin with tune. say what is searched and how.
    """
    from data_pipeline import WrongCall
    from launch.claim import free_cores
    from launch.cores import usable_cores
    from launch.installed import versions
    from launch.job import dying
    from launch.signals import collected
    from tuning.search import Launching, search
    from tuning.settings import load_tuning

    wanted = load_tuning(config, changes or ())
    if dry_run:
        from launch.tune_plan import show_plan

        per_trial = wanted.tune.processes * wanted.tune.cpus
        show_plan(wanted, nodes, measured, max(1, usable_cores().count // per_trial), wanted.tune.gpus or 0, json)
        return
    if nodes is not None or measured is not None:
        raise WrongCall("--nodes and --measured are for --dry-run; a search takes the machines of its cluster")
    launching = Launching(dying, versions, free_cores(), collected)
    if not launching.cores and "RAY_ADDRESS" not in os.environ:
        raise WrongCall("no core of this machine is free: other launches have claimed all; wait for them, or stop them")
    tuned = wanted.tune
    say(f"Searching {', '.join(wanted.space.dimensions)} in {tuned.trials} trials; output: {wanted.config.output}")
    results = search(wanted, launching, say)
    write_json(json, results.as_json())
    say(f"Searched; the best configuration is {results.output}/best.yaml, all else in {results.output}")
