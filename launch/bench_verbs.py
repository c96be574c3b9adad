"""`sonotrain bench ...`: measurements beside others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.cores import usable_cores
from launch.options import JsonFile, height_and_width, writable, write_json
from launch.terminal import say, show_table
from launch.train_verbs import Changes, Source

bench = typer.Typer(no_args_is_help=True, help="Measure beside others.")

PEERS = "webdataset,litdata,mosaicml,files"


@bench.command()
def data(
    layout: Annotated[str, typer.Argument(metavar="LAYOUT", help="As `data ingest` has it.")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The folder of scans, as published.")],
    size: Annotated[str, typer.Option(metavar="HxW", help="Height and width of a batch's scans.")] = "256x256",
    batch: Annotated[int, typer.Option(metavar="B", min=1, help="Scans of a batch.")] = 8,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, help="How often each is measured; below 6 no interval can be given.")
    ] = 7,
    readers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads of ours and of the limits; all cores if not given.")
    ] = None,
    workers: Annotated[str, typer.Option(metavar="0,2", help="Worker processes of the others.")] = "0,2",
    loaders: Annotated[str, typer.Option(metavar="NAMES", help="What to measure beside ours.")] = PEERS,
    s3: Annotated[
        str | None, typer.Option("--s3", metavar="S3://BUCKET/PREFIX", help="Measure from there too; filled if empty.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the prepared sets here, and use them again; a temporary folder if not."),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Read the same scans with sonotrain and with other loaders, in turn, and compare images per second."""
    from launch.benches.data import Wanted, bench_data

    wanted = Wanted(
        layout=layout,
        source=source,
        work=work.absolute() if work else None,
        s3=_prefix(s3),
        loaders=("sonotrain", *_names(loaders)),
        size=height_and_width(size),
        batch=batch,
        rounds=rounds,
        readers=readers or usable_cores().count,
        workers=_counts(workers),
    )
    others = ", ".join(wanted.loaders[1:]) or "the limits alone"
    say(f"Reading {source} ({layout}) with sonotrain, beside {others}: {rounds} rounds at {size} in batches of {batch}")
    result = bench_data(wanted, say)
    _show(result)
    write_json(json, result)
    say(f"{len(result['rows'])} rows of {rounds} rounds{f', written to {json}' if json else ', above'}")


@bench.command()
def step(
    config: Source = "bus-bra",
    changes: Changes = None,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, help="How often each is measured; below 6 no interval can be given.")
    ] = 7,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", dir_okay=False, callback=writable, help="Write down the operators that take longest."
        ),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Take the time of a training iteration, beside plain loops that do the same, alone and in two processes.

    With data.uri=... an iteration on that dataset too, and how long it waits for its scans.
    """
    from launch.benches.step import Wanted, bench_step
    from trainer.config import load_config

    wanted = load_config(config, changes or ())
    size = "x".join(map(str, wanted.data.size))
    say(f"Timing iterations of {config} on {wanted.training.batch} scans of {size}: {rounds} rounds")
    result = bench_step(Wanted(wanted, rounds, profile), say)
    show_steps(result)
    write_json(json, result)
    say(f"{rounds} rounds{f', written to {json}' if json else ', above'}")


@bench.command()
def tune(
    config: Source = "quick",
    changes: Changes = None,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, help="How often each is measured; below 6 no interval can be given.")
    ] = 7,
    json: JsonFile = None,
) -> None:
    """Take the time of a trial of sonotrain tune, beside that of the same training without Ray."""
    from launch.benches.tune import Wanted, bench_tune

    say(f"Timing a trial of {config} on this machine, and the same training by launch local: {rounds} rounds")
    result = bench_tune(Wanted(config, changes or (), rounds), say)
    show_trials(result)
    write_json(json, result)
    say(f"{rounds} rounds{f', written to {json}' if json else ', above'}")


def show_trials(result: Mapping[str, Any]) -> None:
    """What both took, one of the other, and what was promised."""
    parts = {
        "until the first point of the curves": "start",
        "from there to the last": "training",
        "a step of these": "step",
        "from that to the end": "end",
        "the whole command": "whole",
    }
    alone, trial = (way["seconds"] for way in result["ways"])
    told = result["trial_of_alone"]
    show_table(
        "Seconds: median [95 % interval]",
        ("", "launch local", "a trial", "a trial is"),
        [
            (
                name,
                *(_interval(way[part], "{:.3f}" if part == "step" else "{:.1f}") for way in (alone, trial)),
                _interval(told[part], "{:.3f}") + " x"
                if part in told
                else _interval(result["more_seconds"][part], "{:+.1f}") + " s",
            )
            for name, part in parts.items()
        ],
        numbers=True,
    )
    _show_promises(result["criteria"])


def show_steps(result: Mapping[str, Any]) -> None:
    """Speeds, the ladder, and what was promised."""
    rows = [*result["loops"], *([result["data"]] if "data" in result else []), *result.get("processes", ())]
    show_table(
        "An iteration: median [95 % interval]",
        ("", "scans", "images/s", "TFLOP/s", "processor ms an image"),
        [
            (
                row["name"],
                row["batch"],
                _interval(row["images_per_second"], "{:,.2f}"),
                f"{row['tflops']:.3g}",
                f"{1e3 * row['processor_seconds_an_image']['median']:,.1f}",
            )
            for row in rows
        ],
        numbers=True,
    )
    if "ladder" in result:
        show_table(
            "Each added to the last",
            ("", "images/s", "of the one below", "TFLOP/s", "of the chip's peak", "memory, MB"),
            [
                (
                    rung["name"],
                    _interval(rung["images_per_second"], "{:,.2f}"),
                    _times(rung["of_the_one_below"]),
                    f"{rung['tflops']:.3g}",
                    f"{100 * rung['share_of_peak']:.1f} %",
                    "" if rung["peak_bytes"] is None else _megabytes(rung["peak_bytes"]),
                )
                for rung in result["ladder"]["rungs"]
            ],
            numbers=True,
        )
    _show_promises(result["criteria"])


def _show_promises(criteria: Sequence[Mapping[str, Any]]) -> None:
    show_table(
        "Promises",
        ("what", "wanted", "measured", ""),
        [
            (
                each["what"],
                f"{each['bound']} {each['wanted']:g}",
                _interval(each, "{:.3f}"),
                "met" if each["met"] else "MISSED",
            )
            for each in criteria
        ],
    )


def _show(result: Mapping[str, Any]) -> None:
    """Rates, memory and what was promised."""
    rows = result["rows"]
    columns = ("", "codec", "from", "first epoch, images/s", "later epochs", "ours is, first", "ours is, later")
    show_table(
        "Images per second: median [95 % interval]",
        columns,
        [
            (
                *(row[what] for what in ("name", "codec", "place")),
                *(_rate(row[epoch]) for epoch in ("first", "later")),
                *(_times(row[epoch].get("ours_is")) for epoch in ("first", "later")),
            )
            for row in rows
        ],
        numbers=True,
    )
    show_table(
        "Peak of memory while reading, MB, above what the imports take",
        ("", "codec", "a quarter of the scans", "all scans"),
        [
            (row["name"], row["codec"], *map(_megabytes, peaks))
            for row in rows
            if None not in (peaks := (row["peak_bytes_of_a_quarter"], row["peak_bytes"]))
        ],
        numbers=True,
    )
    promised = result["criteria"]["ratios"]
    show_table(
        "Promises",
        ("what", "wanted", "measured", ""),
        [(each["what"], f"{each['wanted']:g}", _interval(each, "{:.2f}"), "met" if each["met"] else "MISSED")
         for each in promised],
    )  # fmt: skip
    ahead = result["criteria"]["peers ahead"]
    say("No other loader is ahead on the same codec" if not ahead else f"Ahead of ours: {'; '.join(ahead)}")


def _rate(found: Mapping[str, Any]) -> str:
    return _interval(found, "{:,.0f}")


def _times(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else _interval(found, "{:.2f}") + " x"


def _interval(found: Mapping[str, Any], form: str) -> str:
    """The median, with its interval where there is one."""
    if found["low"] is None:
        return form.format(found["median"])
    return f"{form} [{form}, {form}]".format(found["median"], found["low"], found["high"])


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f}"


def _names(text: str) -> tuple[str, ...]:
    known = PEERS.split(",")
    names = tuple(name for name in text.split(",") if name)
    if unknown := [name for name in names if name not in known]:
        _wrong(f"there is no loader {unknown[0]} to measure; choose of {PEERS}")
    return names


def _counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        _wrong(f"--workers {text} is no list of numbers such as 0,2")
    return tuple(sorted({int(part) for part in parts}))


def _prefix(uri: str | None) -> str | None:
    if uri is not None and not uri.startswith("s3://"):
        _wrong(f"--s3 {uri} is no s3://bucket/prefix")
    return uri.rstrip("/") if uri else None


def _wrong(text: str) -> None:
    from data_pipeline import WrongCall

    raise WrongCall(text)
