"""`sonotrain evaluate`, `predict` and `models ...`: trained networks in use."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from launch.measures import show_measures
from launch.options import ChosenFolds, JsonFile, fold_list, writable, write_json
from launch.terminal import say, show_table, with_progress

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder, or models:/NAME@ALIAS.")]

REGISTERED = "breast-ultrasound-segmenter"
BASELINES = ("untrained", "centred_ellipse")

models = typer.Typer(no_args_is_help=True, help="Registered models: list them, pull them.")


def evaluate(
    model: Model,
    destination: Annotated[str, typer.Argument(metavar="DEST", help="The dataset to judge it on.")],
    folds: ChosenFolds = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Judge its untrained network and a centred ellipse, too.")
    ] = False,
    json: JsonFile = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", dir_okay=False, callback=writable, help="Write a row for each scan."),
    ] = None,
) -> None:
    """Judge a model on each scan of a dataset, at the scan's own resolution."""
    from data_pipeline import open_dataset
    from launch.judging import judge
    from trainer.metrics import summarise
    from trainer.score_table import write_csv

    chosen = fold_list(folds)
    dataset = open_dataset(destination)
    where = f"folds {folds}" if chosen else "all folds"
    say(f"Evaluating {model} on {dataset.index.name}, {where}, in {dataset.uri}")
    scores = judge(model, dataset, chosen, baselines)
    summaries = {name: summarise(of_scans).as_json() for name, of_scans in scores.items()}
    show_measures(f"{model} on {dataset.index.name}, {where}: mean [95 % interval]", summaries)
    if csv:
        write_csv(csv, scores["model"])
    told, *others = summaries.values()
    about = {"model": model, "dataset": dataset.uri, "digest": dataset.index.digest, "folds": chosen}
    write_json(json, {**about, **told, "baselines": dict(zip(BASELINES, others, strict=False))})
    dsc = told["dsc"]["mean"]
    files = " and ".join(str(file) for file in (json, csv) if file)
    where = f"; written to {files}" if files else ""
    say(f"DSC {'-' if dsc is None else f'{dsc:.4f}'} over {len(scores['model'])} scans{where}")


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
