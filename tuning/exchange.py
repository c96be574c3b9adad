"""The weights that trials of a population hand on: put aside after each epoch of exchange, and begun with by others.

A checkpoint's files never change once they are there, so that nothing is copied: they are linked.

trials/0003/fold-1/...                                   a training of trial 3
trials/0003/exchange/epoch-0004/fold-1/step-00000123/    its weights after epoch 4, for others
trials/0003/generation-02/fold-1/...                     what goes on from another trial's weights, and so on
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from trainer.checkpoint_files import MANIFEST, begin, name_of, names, partial_of, put_in_place
from tuning.training import Order

KEPT = 2
"""Of how many epochs of exchange, the last ones, the weights of a trial stay."""

_ASIDE = "exchange"


def put_aside(order: Order, epoch: int) -> bool:
    """Link a training's checkpoint of this epoch's end, for others; False while it has yet to be written.

    One that has come and gone, is damaged or could not be written is not waited for. Raises OSError where the disk
    refuses.
    """
    name = name_of(epoch * order.steps_per_epoch)
    folder = order.folder.path.parent
    target = _aside(folder, epoch) / order.name / name
    if target.is_dir():
        return True
    there = names(order.folder.checkpoints)
    if name not in there:
        return any(other > name for other in there)
    try:
        _link(order.folder.checkpoints / name, target)
    except (FileNotFoundError, ValueError, KeyError):  # the training has just removed it, or it is damaged
        return True
    for old in sorted((folder / _ASIDE).iterdir())[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return True


def has_weights(folder: Path, epoch: int, trainings: Iterable[str]) -> bool:
    """Whether all these trainings in a folder have put aside what they were after this epoch."""
    return all(names(_aside(folder, epoch) / training) for training in trainings)


def take_over(donor: Path, epoch: int, folder: Path) -> None:
    """Give the trainings in folder, which is made anew, the weights that those in the donor's had after this epoch.

    Raises OSError where that cannot be.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for training in _aside(donor, epoch).iterdir():
        for name in names(training):
            _link(training / name, folder / training.name / "checkpoints" / name)


def forget(folder: Path) -> None:
    """Remove all weights of a generation that nobody goes on from."""
    forget_aside(folder)
    for checkpoints in folder.glob("*/checkpoints"):
        shutil.rmtree(checkpoints, ignore_errors=True)


def forget_aside(folder: Path) -> None:
    """Remove what was put aside for others."""
    shutil.rmtree(folder / _ASIDE, ignore_errors=True)


def _aside(folder: Path, epoch: int) -> Path:
    return folder / _ASIDE / f"epoch-{epoch:04d}"


def _link(checkpoint: Path, target: Path) -> None:
    """Make a checkpoint appear in another place as well, all of it or nothing."""
    partial = begin(target)
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        for name in (MANIFEST, *manifest["sha256"]):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            _link_file(checkpoint / name, partial / name)
        put_in_place(target)
    except BaseException:
        shutil.rmtree(partial_of(target), ignore_errors=True)
        raise


def _link_file(path: Path, place: Path) -> None:
    try:
        os.link(path, place)
    except OSError:
        shutil.copy2(path, place)  # on a file system without links
