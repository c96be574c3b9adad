"""`sonotrain demo`: the whole way on phantoms, by the commands that a person would type."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from launch.terminal import say, show_table

TRACKER = "sqlite:///mlflow.db"
MODEL = "models:/breast-ultrasound-segmenter@candidate"

PICTURES = {"small": (120, 150), "tall": (260, 190), "wide": (150, 300)}
"""Height and width of the image files to predict on: none is as the scans that the network was trained on."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A verb with its arguments, and the file that is there when it is done."""

    purpose: str
    arguments: tuple[str, ...]
    result: str


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder that everything goes to.")] = Path(
        "demo"
    ),
) -> None:
    """Phantoms, shards, training in two processes, two folds, registry, evaluation, prediction: in minutes.

    Run again with the same folder, it keeps what is finished and goes on with the rest.
    """
    folder = out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    own_tracker = "MLFLOW_TRACKING_URI" in os.environ
    # MLflow's default too, said aloud so that an ./mlruns of old cannot change it.
    os.environ.setdefault("MLFLOW_TRACKING_URI", TRACKER)
    say(f"cd {folder}")
    _draw_pictures()
    rows = [(step.purpose, _carry_out(step), step.result) for step in _steps()]
    began = time.monotonic()
    _draw_overlay(Path("overlay.png"))
    rows.append(("draw an overlay", f"{time.monotonic() - began:.0f} s", "overlay.png"))
    show_table(f"The demo, in {folder}", ("step", "time", "result"), rows)
    look = f"cd {folder} && {Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {TRACKER}"
    say(f"Look at the runs: {'at your MLFLOW_TRACKING_URI' if own_tracker else look}")
    say(f"Look at the outlines on scans that the network never saw: {folder / 'overlay.png'}")


def _steps() -> list[_Step]:
    from launch.cores import usable_cores

    processes = str(min(2, usable_cores().count))
    pictures = [f"pictures/{name}.png" for name in PICTURES]
    return [
        _Step(
            "make phantoms to train on",
            ("data", "phantom", "phantoms", "--count", "240", "--size", "160x192", "--seed", "1"),
            "phantoms/index.json",
        ),
        _Step(
            "train on two folds, register",
            ("launch", "local", "--procs", processes, "--", "crossval", "demo"),
            "run/crossval.json",
        ),
        _Step(
            "make others that it never saw",
            ("data", "phantom", "unseen", "--count", "80", "--size", "180x200", "--seed", "2"),
            "unseen/index.json",
        ),
        _Step(
            "evaluate on those",
            ("evaluate", MODEL, "unseen", "--baselines", "--json", "evaluation.json", "--csv", "evaluation.csv"),
            "evaluation.json",
        ),
        _Step(
            "predict on image files",
            ("predict", MODEL, *pictures, "--out", "predictions"),
            "predictions/predictions.jsonl",
        ),
    ]


def _carry_out(step: _Step) -> str:
    """Run a step in this folder, or keep what an earlier demo made of it; the time that it took."""
    from data_pipeline import Fault
    from launch.job import bound, sonotrain

    command = f"sonotrain {shlex.join(step.arguments)}"
    if Path(step.result).exists():
        say(f"\n$ {command}\nkept: {step.result} is there already")
        return "kept"
    say(f"\n$ {command}")
    began = time.monotonic()
    status = subprocess.run(bound(sonotrain(*step.arguments)), check=False).returncode
    if status:
        raise Fault(f"the demo could not {step.purpose} (the reason stands above); run it again to go on from here")
    return f"{time.monotonic() - began:.0f} s"


def _draw_pictures() -> None:
    """Image files as a person may have them."""
    from PIL import Image

    from data_pipeline.phantom import phantom

    Path("pictures").mkdir(exist_ok=True)
    for number, (name, size) in enumerate(PICTURES.items()):
        Image.fromarray(phantom(number, size, seed=3).image).save(f"pictures/{name}.png")


def _draw_overlay(picture: Path) -> None:
    """Scans that the network never saw, with truth and prediction."""
    from data_pipeline import open_dataset
    from launch.judging import found_folder, opened_model
    from trainer.overlay import sheet_of

    dataset = open_dataset("unseen")
    sheet_of(opened_model(found_folder(MODEL)), dataset, dataset.positions(), picture)
