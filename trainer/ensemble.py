"""Several trained networks published as one model."""

from __future__ import annotations

import json
import shutil
import statistics
import uuid
from collections.abc import Sequence
from pathlib import Path

from data_pipeline import Fault, WrongCall
from trainer import networks
from trainer.serving import Segmenter, load_segmenter
from trainer.serving.opening import DESCRIPTION
from trainer.serving.package import copy_model


def write_ensemble(
    folders: Sequence[Path],
    into: Path,
    threshold: float | None = None,
    flips: bool | None = None,
    largest_component: bool | None = None,
) -> None:
    """Write one model of the networks of model folders, whose probabilities are averaged, to the folder `into`.

    The files are copied, so that nothing else is needed, and the folder appears when it is whole. threshold is the
    mean of the members' own where it is not given; flips and largest_component are what the members agree on.
    Raises WrongCall for a folder that holds no sound model or an ensemble, for one that comes twice, for members that
    do not agree, and where `into` is there already; Fault when it cannot be written.
    """
    if into.exists():
        raise WrongCall(f"{into} is there already; name another folder")
    if not folders:
        raise WrongCall(f"no member is named for the ensemble {into}; name one or more models")
    segmenters = {folder: _opened(folder) for folder in folders}
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise WrongCall(f"a member of the ensemble {into} is named twice; name each once")
    try:
        together = Segmenter.ensemble(
            list(segmenters.values()),
            statistics.fmean(one.threshold for one in segmenters.values()) if threshold is None else threshold,
            _agreed("flips", segmenters) if flips is None else flips,
            _agreed("largest_component", segmenters) if largest_component is None else largest_component,
        )
    except ValueError as wrong:
        raise WrongCall(f"{into}: {wrong}") from wrong
    _publish(folders, into, together)


def _opened(folder: Path) -> Segmenter:
    try:
        segmenter = load_segmenter(folder, networks.build)
    except ValueError as broken:
        raise WrongCall(str(broken)) from broken
    if len(segmenter.members) > 1:
        raise WrongCall(f"{folder} is an ensemble itself; name its members")
    return segmenter


def _agreed(option: str, segmenters: dict[Path, Segmenter]) -> bool:
    (first, value), *others = ((folder, bool(getattr(one, option))) for folder, one in segmenters.items())
    for folder, other in others:
        if other != value:
            flag = option.replace("_", "-")
            raise WrongCall(f"{first} and {folder} do not agree on {option}; give --{flag} or --no-{flag}")
    return value


def _publish(folders: Sequence[Path], into: Path, together: Segmenter) -> None:
    """Beside its place first, and there when it is whole."""
    names = [f"member-{number}" for number in range(1, len(folders) + 1)]
    told = {
        "members": names,
        "threshold": together.threshold,
        "flips": together.flips,
        "largest_component": together.largest_component,
    }
    partial = into.with_name(f".{into.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.mkdir(parents=True)
        for name, folder in zip(names, folders, strict=True):
            copy_model(folder, partial / name)
        (partial / DESCRIPTION).write_text(json.dumps(told, indent=1), encoding="utf-8")
        partial.rename(into)
    except OSError as failed:
        reason = failed.strerror or failed
        raise Fault(f"{into} cannot be written: {reason}; make room or name another place") from failed
    finally:
        shutil.rmtree(partial, ignore_errors=True)
