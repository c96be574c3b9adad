"""`sonotrain train` and `sonotrain crossval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.measures import show_measures
from launch.options import JsonFile, write_json
from launch.terminal import say, show_table

if TYPE_CHECKING:
    from trainer.config import Config

Source = Annotated[str, typer.Argument(metavar="CONFIG", help="A preset's name (paper, quick) or a YAML file.")]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="Changes, for example training.epochs=20.")
]


def train(config: Source, changes: Changes = None, json: JsonFile = None) -> None:
    """Train on all folds but one; started again, it goes on where it stopped."""
    from trainer.config import load_config
    from trainer.loop import train

    wanted = load_config(config, changes or ())
    say(f"Training {_plan(wanted)}, holding out fold {wanted.data.fold}; output: {wanted.output}")
    result = train(wanted)
    show_measures(f"Fold {wanted.data.fold}, held out: mean [95 % interval]", {"model": result.validation})
    write_json(json, asdict(result))
    say(
        f"Trained in {result.seconds / 60:.1f} minutes; the network is {result.checkpoint}, all else in {result.output}"
    )


def crossval(config: Source, changes: Changes = None, json: JsonFile = None) -> None:
    """Train once for each fold, held out in turn, and register the best fold's network as candidate."""
    from trainer.config import load_config
    from trainer.crossval import crossval

    wanted = load_config(config, changes or ())
    folds = f"folds {', '.join(map(str, wanted.folds))}" if wanted.folds else "every fold"
    say(f"Cross-validating {_plan(wanted)}, holding out {folds} in turn; output: {wanted.output}")
    summary = crossval(wanted)
    rows = []
    for name, mean in summary.mean.items():
        of_folds = [result.validation[name]["mean"] for result in summary.folds.values()]
        rows.append((name, *(_shown(value) for value in (*of_folds, mean, summary.sd.get(name)))))
    columns = ("measure", *(f"fold {fold}" for fold in summary.folds), "mean", "sd")
    show_table("Each fold, held out", columns, rows, numbers=True)
    write_json(json, asdict(summary))
    registered = (
        f"the network of fold {summary.best_fold} is {summary.model.uri}" if summary.model else "not registered"
    )
    say(f"Cross-validated; {registered}; all else is in {summary.output}")


def parsed_config(arguments: Sequence[str]) -> Config:
    """The configuration that a training verb with these arguments would run. Raises what the verb would raise."""
    from trainer.config import load_config

    verb, *rest = arguments
    group: Any = typer.main.get_command(_verbs)
    with group.commands[verb].make_context(f"sonotrain {verb}", rest) as context:
        return load_config(context.params["config"], context.params["changes"] or ())


_verbs = typer.Typer()
for _verb in (train, crossval):
    _verbs.command()(_verb)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _plan(config: Config) -> str:
    """What a training will do, in half a line."""
    training, size = config.training, "x".join(map(str, config.data.size))
    return (
        f"{config.network.name} at {size} on {', '.join(config.data.uris) or '(no data.uri)'}, "
        f"{training.epochs} epochs in batches of {training.batch}"
    )
