"""`sonotrain data ...`: datasets written, described, checked, and the order in which training reads them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from launch.options import ChosenFolds, JsonFile, fold_list, height_and_width, weight_list, writable, write_json
from launch.terminal import say, show_table, speaks, with_progress

if TYPE_CHECKING:
    from data_pipeline import Dataset

REFUSED_SHOWN = 30
"""Refused scans named on the terminal; the index has them all."""

data = typer.Typer(no_args_is_help=True, help="Write, describe and check datasets.")

Layout = Annotated[
    str, typer.Argument(metavar="LAYOUT", help="bus_bra, breast_lesions_usg, busi, bus_uclm, stu, folder or dicom.")
]
Source = Annotated[Path, typer.Argument(metavar="SRC", help="The folder of scans, as published.")]
Codec = Annotated[
    Literal["png", "npy"], typer.Option(help="Images as png (half the bytes, decoded once a run) or npy (read faster).")
]
Destination = Annotated[str, typer.Argument(metavar="DEST", help="The dataset: a path or s3://bucket/prefix.")]


@data.command()
def ingest(
    layout: Layout,
    source: Source,
    destination: Destination,
    folds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            help="Divide into N folds, or else 5; the set's own are kept if N is theirs or not given.",
        ),
    ] = None,
    splits: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Take the folds from a table with columns key and fold, or nnU-Net's splits_final.json.",
        ),
    ] = None,
    codec: Codec = "png",
    shard_mb: Annotated[int, typer.Option(metavar="N", min=1, help="Megabytes of a shard.")] = 32,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first scan that cannot be used.")] = False,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The dataset's name; if not given, LAYOUT.")] = None,
    json: JsonFile = None,
) -> None:
    """Pack a folder of scans into a dataset of shards, with folds that share no patient and no near-duplicates."""
    from data_pipeline import WrongCall, open_dataset
    from launch.ingest import Ingestion, facts_of_folds, ingest

    if folds is not None and splits is not None:
        raise WrongCall("--folds divides the scans anew and --splits takes their folds from a file; give one of them")
    say(f"Ingesting {source} ({layout}) to {destination}")
    wanted = Ingestion(layout, source, destination, name or layout, folds, splits, codec, shard_mb, strict)
    ingested = ingest(wanted, say)
    by_fold = facts_of_folds(ingested)
    labels = list(by_fold[0]["labels"])
    rows = (
        (fold["fold"], fold["scans"], fold["patients"], *fold["labels"].values(), f"{fold['lesion_area']:.2%}")
        for fold in by_fold
    )
    show_table("Folds", ("fold", "scans", "patients", *labels, "mean lesion area"), rows, numbers=True)
    more = {"near_duplicates": ingested.duplicates, "overruled": ingested.overruled, "by_fold": by_fold}
    _describe(open_dataset(destination), json, more)


@data.command()
def audit(
    layout: Layout,
    source: Source,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, callback=writable, help="Write a page with pictures here."),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Say what is wrong with a folder of scans, before it is ingested: broken files, odd masks, doubles, leaks."""
    from data_pipeline.audit import audit
    from data_pipeline.layouts import find_scans
    from launch.audit import audit_for_machines, audit_in_a_line, show_audit
    from launch.cores import usable_cores
    from trainer.atomic import replacing

    say(f"Auditing {source} ({layout}); nothing in it is changed")
    found = find_scans(layout, source)
    workers, count = usable_cores().count, len(found.scans)
    say(f"{count} scans found; each is read once, and compared with all others")
    audited = audit(found, workers, lambda outcomes: with_progress(outcomes, "scans read", count))
    show_audit(audited)
    write_json(json, {"layout": layout, "source": str(source), **audit_for_machines(audited)})
    if html is not None and speaks():
        from launch.audit_page import draw_page

        title = f"Audit of {source.absolute().name} ({layout})"
        page = draw_page(audited, title, workers, lambda drawn, total: with_progress(drawn, "pictures drawn", total))
        with replacing(html) as partial:
            partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    written = " and ".join(str(file) for file in (html, json) if file is not None)
    say(f"Audit of {source}: {audit_in_a_line(audited)}{f', written to {written}' if written else ', listed above'}")


@data.command()
def phantom(
    destination: Destination,
    count: Annotated[int, typer.Option(metavar="N", min=2, help="How many scans.")],
    size: Annotated[str, typer.Option(metavar="HxW", help="Height and width in pixels.")],
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Other seeds give other scans.")] = 0,
    folds: Annotated[int, typer.Option(metavar="N", min=2, help="Divide into N folds.")] = 5,
    codec: Codec = "png",
    shard_mb: Annotated[int, typer.Option(metavar="N", min=1, help="Megabytes of a shard.")] = 32,
    json: JsonFile = None,
) -> None:
    """Write a dataset of synthetic scans with known lesions."""
    from data_pipeline import open_dataset
    from launch.phantoms import Phantoms, write_phantoms

    shape = height_and_width(size)
    say(f"Making {count} phantoms of {size} pixels in {destination}")
    write_phantoms(Phantoms(destination, count, shape, seed, folds, codec, shard_mb))
    _describe(open_dataset(destination), json)


@data.command()
def info(destination: Destination, json: JsonFile = None) -> None:
    """Say what a dataset holds, from its index alone."""
    from data_pipeline import open_dataset

    _describe(open_dataset(destination), json)


@data.command()
def splits(
    destination: Destination,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            callback=writable,
            help="A table; or, if its name ends in .json, splits as nnU-Net has them.",
        ),
    ],
) -> None:
    """Write a dataset's folds to a file that `data ingest --splits` takes, from its index alone."""
    from data_pipeline import open_dataset
    from data_pipeline.splits import splits_text
    from trainer.atomic import replacing

    dataset = open_dataset(destination)
    with replacing(out) as partial:
        partial.write_text(splits_text(dataset.index.samples, out.suffix.lower()), encoding="utf-8")
    say(f"{len(dataset.index.samples)} scans in {len(dataset.folds())} folds, written to {out}")


@data.command()
def verify(destination: Destination) -> None:
    """Read every byte of a dataset again and compare it with what was written."""
    from data_pipeline import Fault, open_dataset, verify_dataset

    shards = open_dataset(destination).index.shards
    say(f"Reading {len(shards)} shards of {destination} again")
    wrong = verify_dataset(destination, seen=lambda shard: say(f"{shard.name}: {shard.bytes:,} bytes read"))
    for line in wrong:
        say(line)
    if wrong:
        raise Fault(f"{destination} is damaged in {len(wrong)} places, listed above; ingest it again elsewhere")
    say(f"{destination} is sound")


@data.command()
def order(
    destinations: Annotated[
        list[str], typer.Argument(metavar="DEST...", help="The dataset, or several that are read as one.")
    ],
    seed: Annotated[int, typer.Option(metavar="S", min=0)],
    epoch: Annotated[int, typer.Option(metavar="E", min=0)],
    global_batch: Annotated[int, typer.Option(metavar="G", min=1, help="Scans of one iteration over all ranks.")],
    world: Annotated[int, typer.Option(metavar="W", min=1, help="Number of ranks.")],
    rank: Annotated[int, typer.Option(metavar="R", min=0, help="Whose order, from 0.")],
    start: Annotated[int, typer.Option(metavar="P", min=0, help="Begin at this place of the global order.")] = 0,
    folds: ChosenFolds = None,
    weights: Annotated[
        str | None, typer.Option(metavar="W,...", help="How often an epoch sees each dataset's scans: 1,0.5")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Say in which order a rank reads scans in an epoch, without reading a shard."""
    from data_pipeline import WrongCall, open_datasets, plan_epoch

    dataset = open_datasets(destinations, weight_list(weights))
    chosen = fold_list(folds)
    dataset.positions(chosen)
    plan = plan_epoch(dataset.index, chosen, seed, epoch, global_batch)
    places = plan.for_rank(world, rank)
    if start % global_batch or start > plan.order.size:
        raise WrongCall(f"--start {start} is no multiple of the global batch, {global_batch}, up to {plan.order.size}")
    keys = [dataset.index.key_of(number) for number in places[start // global_batch :].ravel().tolist()]
    shuffling = plan.shuffling(dataset.index)
    write_json(json, {"keys": keys, "samples": plan.samples, "batches": plan.batches, "shuffling": asdict(shuffling)})
    if json is None:
        for key in keys:
            say(key)
    say(
        f"neighbours in a shard are {shuffling.apart:.0f} scans apart in the epoch on average, "
        f"{100 * shuffling.of_epoch:.0f} % of it (33 % is a perfect shuffle); "
        f"{100 * shuffling.in_one_batch:.1f} % of them share a batch"
    )
    say(f"{len(keys)} scans of rank {rank} of {world} in epoch {epoch}{f', written to {json}' if json else ', above'}")


def _describe(dataset: Dataset, json: Path | None, more: dict[str, Any] | None = None) -> None:
    """A dataset's index for a person and, if wanted, for a machine, which is told more."""
    index = dataset.index
    facts: dict[str, Any] = {
        "name": index.name,
        "digest": index.digest,
        "codec": index.codec,
        "samples": len(index.samples),
        "patients": len({sample.patient for sample in index.samples}),
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        "folds": dataset.folds(),
        "refused": dict(index.refused),
    }
    folds = ", ".join(f"{fold}: {count}" for fold, count in facts["folds"].items())
    shown = {**facts, "bytes": f"{facts['bytes']:,}", "folds": folds, "refused": len(index.refused)}
    show_table("Dataset", ("what", "value"), shown.items())
    if index.refused:
        show_table("Refused", ("scan or file", "reason"), list(index.refused.items())[:REFUSED_SHOWN])
        if len(index.refused) > REFUSED_SHOWN:
            say(f"... and {len(index.refused) - REFUSED_SHOWN} more, named in {dataset.uri}/index.json")
    write_json(json, facts | (more or {}))
    say(f"Dataset {index.name}: {len(index.samples)} scans in {dataset.uri}")
