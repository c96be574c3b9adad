"""`sonotrain train` and `sonotrain crossval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.measures import show_measures
from launch.options import JsonFile, write_json
from launch.terminal import say, show_table

if TYPE_CHECKING:
    from launch.job import Job
    from trainer.config import Config
    from trainer.study_table import StudyTable
    from tuning.settings import Tuning

Source = Annotated[str, typer.Argument(metavar="CONFIG", help="A preset's name (paper, quick) or a YAML file.")]
SourceOrStudy = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A preset's name (paper, quick) or a YAML file; or a study's (paper-comparison, paper-ablation, "
        "paper-readings, each with -quick behind it for two cores).",
    ),
]
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


def crossval(config: SourceOrStudy, changes: Changes = None, json: JsonFile = None) -> None:
    """Train once for each fold, held out in turn, and register a network as candidate; or carry out a study.

    A study trains each of its variants so and writes a table of them, with intervals and paired differences. Started
    again, it skips what is finished and goes on with the rest.
    """
    from trainer.study import is_study

    if is_study(config):
        _study(config, changes or (), json)
    else:
        _crossval(config, changes or (), json)


def _crossval(source: str, changes: Sequence[str], json: Path | None) -> None:
    from trainer.config import load_config
    from trainer.crossval import crossval

    wanted = load_config(source, changes)
    say(f"Cross-validating {_plan(wanted)}, holding out {_folds(wanted)} in turn; output: {wanted.output}")
    summary = crossval(wanted)
    rows = []
    for name, mean in summary.mean.items():
        of_folds = [result.validation[name]["mean"] for result in summary.folds.values()]
        rows.append((name, *(_shown(value) for value in (*of_folds, mean, summary.sd.get(name)))))
    columns = ("measure", *(f"fold {fold}" for fold in summary.folds), "mean", "sd")
    show_table("Each fold, held out", columns, rows, numbers=True)
    write_json(json, asdict(summary))
    which = "ensemble" if summary.registered == "ensemble" else f"network of fold {summary.best_fold}"
    registered = f"the {which} is {summary.model.uri}" if summary.model else "not registered"
    say(f"Cross-validated; {registered}; the folds' ensemble is {summary.ensemble}; all else is in {summary.output}")


def _study(source: str, changes: Sequence[str], json: Path | None) -> None:
    from data_pipeline import Fault
    from trainer.study import load_study
    from trainer.study_run import run_study

    study = load_study(source, changes)
    shared, count = study.shared, len(study.variants)
    say(
        f"Comparing {count} variants ({', '.join(study.variants)}): {_plan(shared, study.table)}, "
        f"holding out {_folds(shared)} in turn; output: {shared.output}"
    )
    summary = run_study(study)
    _show_study(summary.table)
    write_json(json, summary.as_json())
    output = Path(summary.output)
    say(f"Compared {count} variants; the table is {output / 'table.md'}, every scan's scores {output / 'scores.png'}")
    if summary.diverged:
        raise Fault(f"not in the table, since they diverged: {'; '.join(summary.diverged)}; {output} has the others")


def _show_study(table: StudyTable) -> None:
    """The paper's columns; table.md has more."""
    from trainer.study_text import cells, headings, meaning

    kept = [place for place, heading in enumerate(headings(table)) if not heading.startswith(_ONLY_IN_FILES)]
    rows = [[cells(row, table)[place].replace(" [", "\n[") for place in kept] for row in table.rows]
    show_table(f"{table.title}: {meaning(table)}", [headings(table)[place] for place in kept], rows, numbers=True)


def parsed_config(arguments: Sequence[str]) -> Config:
    """The configuration that a training verb with these arguments would run, of a study what its variants share.

    Raises what the verb would raise.
    """
    return next(iter(parsed_variants(arguments).values()))


def parsed_variants(arguments: Sequence[str]) -> Mapping[str, Config]:
    """The configurations that a training verb with these arguments would run: a study's by name, or one without.

    Of tune that which it varies, with the folds of a trial. Raises what the verb would raise.
    """
    from trainer.config import load_config
    from trainer.study import is_study, load_study
    from tuning.settings import trainings

    if arguments[0] == "tune":
        tuning = parsed_tuning(arguments)
        folds = dict.fromkeys(training.fold for training in trainings(tuning.tune, tuning.config))
        return {"": tuning.config.replace(folds=tuple(folds))}
    source, changes = source_and_changes(arguments)
    if arguments[0] == "crossval" and is_study(source):
        return load_study(source, changes).variants
    return {"": load_config(source, changes)}


def parsed_tuning(arguments: Sequence[str]) -> Tuning:
    """The search that tune with these arguments would carry out. Raises what it would raise."""
    from tuning.settings import load_tuning

    return load_tuning(*source_and_changes(arguments))


def require_sizes(job: Job) -> None:
    """Raise what the verb of a job would raise on any number of nodes that it may run on, without its dataset."""
    from data_pipeline import WrongCall
    from trainer.feasible import check_iteration

    if job.verb[0] == "tune":
        tuning = parsed_tuning(job.verb)
        check_iteration(tuning.config, tuning.tune.nodes * tuning.tune.processes)
        return
    for config in parsed_variants(job.verb).values():
        for nodes in reversed(job.sizes):
            try:
                check_iteration(config, nodes * job.processes)
            except WrongCall as wrong:
                of_fewer = f"with {nodes} of {job.nodes} nodes: " if nodes < job.nodes else ""
                raise WrongCall(f"{of_fewer}{wrong}") from wrong


def source_and_changes(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """CONFIG and the key=value changes of a training verb with these arguments. Raises what the verb would raise."""
    verb, *rest = arguments
    with _command(verb).make_context(f"sonotrain {verb}", rest) as context:
        return context.params["config"], context.params["changes"] or ()


def _command(verb: str) -> Any:
    """A verb as typer reads its arguments."""
    app = typer.Typer(add_completion=False)
    if verb == "tune":
        from launch.tune_verb import tune

        app.command()(tune)
    else:
        app.command()({"train": train, "crossval": crossval}[verb])
    return typer.main.get_command(app)


_ONLY_IN_FILES = ("Folds", "HD95", "Normal", "Parameters", "Minutes")
"""How headings begin for which a terminal has no room."""


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _folds(config: Config) -> str:
    if config.folds:
        return f"folds {', '.join(map(str, config.folds))}"
    return "every other fold" if config.data.unseen else "every fold"


def _plan(config: Config, what: str = "") -> str:
    """What a training will do, in half a line."""
    training, size = config.training, "x".join(map(str, config.data.size))
    unseen = f" (fold {', '.join(map(str, config.data.unseen))} unseen)" if config.data.unseen else ""
    return (
        f"{what or config.network.name} at {size} on {', '.join(config.data.uris) or '(no data.uri)'}{unseen}, "
        f"{training.epochs} epochs in batches of {training.batch}"
    )
