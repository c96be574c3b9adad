"""`sonotrain evaluate`, `predict` and `models ...`: trained networks in use."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.datasets_table import show_datasets
from launch.measures import show_measures
from launch.options import (
    ChosenFolds,
    Flips,
    JsonFile,
    LargestComponent,
    Threshold,
    fold_list,
    writable,
    write_json,
)
from launch.terminal import say, show_table, with_progress

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A checkpoint's, a run's or an ensemble's folder, or models:/NAME@ALIAS.")
]

REGISTERED = "breast-ultrasound-segmenter"

models = typer.Typer(no_args_is_help=True, help="Registered models: list them, pull them; and make one of several.")


def evaluate(
    model: Model,
    destinations: Annotated[
        list[str], typer.Argument(metavar="DEST", help="The dataset to judge it on; of several each has a row.")
    ],
    folds: ChosenFolds = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Judge its untrained network and a centred ellipse, too.")
    ] = False,
    threshold: Threshold = None,
    flips: Flips = None,
    largest_component: LargestComponent = None,
    json: JsonFile = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv", metavar="FILE", dir_okay=False, callback=writable, help="Write a row for each scan of a dataset."
        ),
    ] = None,
) -> None:
    """Judge a model on each scan of one or several datasets, at the scan's own resolution."""
    from data_pipeline import WrongCall
    from launch.judging import found_folder, judge, opened_datasets, opened_model, seen_in_training
    from trainer.metrics import summarise
    from trainer.score_table import write_csv

    chosen = fold_list(folds)
    datasets = opened_datasets(destinations)
    if csv and len(datasets) > 1:
        raise WrongCall(f"--csv takes the scans of one dataset and {len(datasets)} are named; evaluate them apart")
    folder = found_folder(model)
    segmenter = opened_model(folder, threshold, flips, largest_component)
    use = {key: getattr(segmenter, key) for key in ("threshold", "flips", "largest_component")}
    where = f"{f'folds {folds}' if chosen else 'all folds'}, {', '.join(f'{key} {use[key]}' for key in use)}"
    told: dict[str, dict[str, Any]] = {}
    for name, dataset in datasets.items():
        say(f"Evaluating {model} on {name}, {where}, in {dataset.uri}")
        seen = seen_in_training(folder, dataset, chosen)
        if seen:
            say(f"Warning: {seen} of these {len(dataset.positions(chosen))} scans were trained on; that flatters it")
        scores = judge(segmenter, folder, dataset, chosen, baselines)
        if csv:
            write_csv(csv, scores["model"])
        about = {"model": model, "dataset": dataset.uri, "digest": dataset.index.digest, "folds": chosen}
        summaries = {judged: summarise(of_scans).as_json() for judged, of_scans in scores.items()}
        told[name] = {**about, **use, "seen_in_training": seen, **summaries.pop("model"), "baselines": summaries}
    files = " and ".join(str(file) for file in (json, csv) if file)
    written = f"; written to {files}" if files else ""
    if len(told) > 1:
        show_datasets(f"{model}, {where}", told)
        write_json(json, told)
        say(f"{model} was judged on {', '.join(told)}{written}")
    else:
        ((name, one),) = told.items()
        show_measures(f"{model} on {name}, {where}: mean [95 % interval]", {"model": one, **one["baselines"]})
        write_json(json, one)
        dsc = one["dsc"]["mean"]
        say(f"DSC {'-' if dsc is None else f'{dsc:.4f}'} over {one['cases']} scans with a lesion{written}")


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder for masks, overlays and numbers.")],
) -> None:
    """Outline lesions in image files of any size: a mask, an overlay and a line of numbers for each."""
    from data_pipeline import Fault
    from launch.judging import found_folder, opened_model
    from trainer.predict import LINES, predict_files

    segmenter = opened_model(found_folder(model))
    say(f"Predicting with {model}; masks and overlays go to {out}")
    told = predict_files(segmenter, images, out, lambda files: with_progress(files, "images outlined", len(files)))
    unread = [(line["file"], line["error"]) for line in told if "error" in line]
    if unread:
        show_table("Not predicted", ("file", "reason"), unread)
    say(f"{len(told) - len(unread)} masks and overlays are in {out}, their numbers in {out / LINES}")
    if unread:
        raise Fault(f"{len(unread)} of {len(told)} images cannot be read; the others are done")


@models.command("list")
def list_versions(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="The registered model.")] = REGISTERED,
    json: JsonFile = None,
) -> None:
    """Show the versions of a registered model, newest first."""
    from trainer.registry import list_models

    say(f"Listing the versions of {name}")
    versions = list_models(name)
    rows = [
        (
            version.version,
            " ".join(version.aliases),
            "-" if version.dsc is None else f"{version.dsc:.4f}",
            (version.dataset_digest or "-")[:12],
            f"{version.created:%Y-%m-%d %H:%M} UTC",
        )
        for version in versions
    ]
    show_table(name, ("version", "aliases", "DSC", "data digest", "created"), rows)
    write_json(json, {"name": name, "versions": [asdict(version) for version in versions]})
    say(f"{len(versions)} versions of {name}; pull one with: sonotrain models pull models:/{name}/VERSION DIR")


@models.command()
def pull(
    uri: Annotated[str, typer.Argument(metavar="MODEL", help="models:/NAME@ALIAS or models:/NAME/VERSION.")],
    into: Annotated[Path, typer.Argument(metavar="DIR", help="The model gets a folder of its own below this one.")],
) -> None:
    """Download a registered model's weights and description; none of its code is run."""
    from trainer.registry import pull

    say(f"Pulling {uri} into {into}")
    say(f"{uri} is in {pull(uri, into)}")


@models.command()
def ensemble(
    into: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that the ensemble goes to, which is made.")],
    members: Annotated[list[str], typer.Argument(metavar="MODEL", help="What it is made of; see evaluate.")],
    threshold: Threshold = None,
    flips: Flips = None,
    largest_component: LargestComponent = None,
) -> None:
    """Make one model of several, whose probabilities are averaged, with the mean of their thresholds."""
    from launch.judging import found_folder
    from trainer.ensemble import write_ensemble

    say(f"Making one model of {', '.join(members)}")
    write_ensemble([found_folder(member) for member in members], into, threshold, flips, largest_component)
    say(f"The ensemble of {len(members)} is {into}; evaluate and predict take it as they take any model")
