"""Options that several verbs take, and how their values are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from launch.terminal import speaks


def writable(file: Path | None) -> Path | None:
    """Find out before the work that its result can be written. Raises WrongCall."""
    if file is not None and not file.absolute().parent.is_dir():
        _wrong(f"there is no folder {file.parent} to write {file.name} to; make it or name another")
    return file


def fold_list(text: str | None) -> tuple[int, ...] | None:
    """The folds of 1,2,5; None for all. Raises WrongCall for what is no list of numbers from 1."""
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        _wrong(f"--folds {text} is no list of folds such as 1,2,5")
    return tuple(dict.fromkeys(int(part) for part in parts))


def weight_list(text: str | None) -> tuple[float, ...]:
    """The weights of 1,0.5; none for None. Raises WrongCall for what is no list of numbers."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        _wrong(f"--weights {text} is no list of numbers such as 1,0.5")


def height_and_width(text: str) -> tuple[int, int]:
    """The size of 160x192. Raises WrongCall for anything else."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        _wrong(f"--size {text} is no size such as 160x192, which is height x width")
    return int(height), int(width)


JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", dir_okay=False, callback=writable, help="Write the result here too."),
]
ChosenFolds = Annotated[
    str | None, typer.Option("--folds", metavar="1,2", help="Only scans of these folds; all if not given.")
]


Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        metavar="P",
        help="Probability from which a pixel is lesion, 0 to 1; what the model says if not given.",
    ),
]
Flips = Annotated[
    bool | None,
    typer.Option("--flips/--no-flips", help="Whether to look at each scan's mirror image, too; as the model says."),
]
LargestComponent = Annotated[
    bool | None,
    typer.Option(
        "--largest-component/--no-largest-component",
        help="Whether to keep only the largest part of a mask; as the model says.",
    ),
]


def _wrong(text: str) -> NoReturn:
    from data_pipeline import WrongCall

    raise WrongCall(text)


def write_json(file: Path | None, content: Any) -> None:
    """A result for machines, if a file is named and this process is the one that speaks."""
    if file is not None and speaks():
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
