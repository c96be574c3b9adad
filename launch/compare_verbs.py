"""`sonotrain compare`: two models on the same scans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.measures import labelled
from launch.options import JsonFile, write_json
from launch.terminal import say, show_table

if TYPE_CHECKING:
    from trainer.comparison import Comparison, Events, PairedDifference

KEYS_SHOWN = 8
"""Keys of scans in a line; the JSON file has all."""

Table = typer.Argument(metavar="CSV", help="A table of scans' scores: evaluate --csv, or a run's validation.csv.")


def compare(first: Annotated[Path, Table], second: Annotated[Path, Table], json: JsonFile = None) -> None:
    """Compare two models on the scans that both have judged: by how much the second is better, and by chance or not.

    p is that of a sign-flip test over patients, for each measure alone.
    """
    from trainer.comparison import compare
    from trainer.score_table import read_csv

    say(f"Comparing B, {second}, with A, {first}")
    told = compare(read_csv(first), read_csv(second))
    _show(told)
    for which, keys in (("A", told.only_in_first), ("B", told.only_in_second)):
        if keys:
            say(f"{len(keys)} scans are in {which} only, and were left out: {_some(keys)}")
    write_json(json, {"first": str(first), "second": str(second), **told.as_json()})
    dsc = told.measures["dsc"]
    difference = "-" if dsc.difference is None else f"{dsc.difference:+.4f}, p {_p(dsc)},"
    where = f"; written to {json}" if json else ""
    say(f"DSC {difference} over {told.cases} scans of {told.patients} patients{where}")


def _show(told: Comparison) -> None:
    rows = []
    for name, label, digits in labelled({"unit": told.unit, "surface_tolerance": told.surface_tolerance}):
        measure = told.measures[name]
        if measure.difference is not None:
            counts = (measure.better, measure.worse, measure.equal)
            means = (f"{measure.first:.{digits}f}", f"{measure.second:.{digits}f}")
            rows.append((label, *means, _difference(measure, digits), _p(measure), *map(str, counts)))
    columns = ("measure", "A", "B", "B - A [95 % interval]", "p", "B better", "worse", "equal")
    title = f"{told.cases} scans with a lesion, {told.patients} patients"
    show_table(title, columns, rows, numbers=True)
    _say_events("lesions missed", told.missed)
    if told.normals:
        _say_events(f"of {told.normals} normal scans marked", told.marked_normals)


def _say_events(what: str, events: Events) -> None:
    said = [
        f"{len(keys)} by {whom}" + (f" ({_some(keys)})" if keys and whom != "both" else "")
        for whom, keys in (("A only", events.first_only), ("B only", events.second_only), ("both", events.both))
    ]
    say(f"{what}: {', '.join(said)}")


def _difference(measure: PairedDifference, digits: int) -> str:
    """+0.0123 [-0.0010, +0.0245], or what there is of it."""
    told = f"{measure.difference:+.{digits}f}"
    if measure.low is None or measure.high is None:
        return told
    return f"{told} [{measure.low:+.{digits}f}, {measure.high:+.{digits}f}]"


def _p(measure: PairedDifference) -> str:
    if measure.p is None:
        return "-"
    return f"{measure.p:.2g}" if measure.p >= 0.001 else "< 0.001"


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return ", ".join(keys[:KEYS_SHOWN]) + more
