"""A checkpoint's files: published by their manifest, verified by it, and removed when newer ones have come."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger("sonotrain")

MANIFEST = "manifest.json"

NOT_WRITTEN = (OSError, SafetensorError)
"""What a disk that is full, gone or read-only raises."""


def name_of(step: int) -> str:
    """The name of the checkpoint after so many steps."""
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    """The steps that a checkpoint's name tells."""
    return int(name.removeprefix("step-"))


def names(folder: Path) -> list[str]:
    """Every checkpoint below folder, oldest first, sound or not."""
    return sorted(path.name for path in folder.iterdir() if is_name(path.name)) if folder.is_dir() else []


def is_name(name: str) -> bool:
    """Whether this is how a checkpoint is called."""
    return re.fullmatch(r"step-\d{8}", name) is not None


def partial_of(target: Path) -> Path:
    """The folder beside target in which its files come together, and which nobody takes for a checkpoint."""
    return target.with_name(f".{target.name}.partial")


def begin(target: Path) -> Path:
    """That folder, made anew and empty."""
    partial = partial_of(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish(target: Path, tensors: Mapping[str, dict[str, Tensor]], texts: Mapping[str, Any]) -> None:
    """Add files of tensors and of JSON to what was begun for target, and make it the checkpoint of that name.

    What is there afterwards is either all of it, on the disk and covered by the manifest, or nothing. Raises one of
    NOT_WRITTEN.
    """
    partial = partial_of(target)
    try:
        for name, content in tensors.items():
            save_file(content, partial / name)
        for name, text in texts.items():
            (partial / name).write_text(json.dumps(text, indent=1), encoding="utf-8")
        sha256 = {name: sha256_of(partial / name) for name in files(partial)}
        (partial / MANIFEST).write_text(json.dumps({"format": 1, "sha256": sha256}, indent=1), encoding="utf-8")
        put_in_place(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def put_in_place(target: Path) -> None:
    """Make what has come together for target the checkpoint of that name, all of it on the disk."""
    partial = partial_of(target)
    for path in (*partial.rglob("*"), partial):
        _sync(path)
    discard(target)  # where a run comes by again after it went back behind a damaged one
    partial.rename(target)
    _sync(target.parent)


def newest(folder: Path, tell: Callable[[str], None] = log.warning) -> Path | None:
    """The newest sound checkpoint below folder, or None; a damaged one is named and passed over."""
    for name in reversed(names(folder)):
        wrong = damage(folder / name)
        if not wrong:
            return folder / name
        tell(f"checkpoint {folder / name} is damaged ({wrong}); going back to the one before it")
    return None


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files by its manifest; empty when it is sound."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        there = set(files(checkpoint))  # so that no name in a manifest leads elsewhere
        for name, sha256 in manifest["sha256"].items():
            if name not in there:
                return f"{name} is missing"
            if sha256_of(checkpoint / name) != sha256:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as broken:
        return f"{type(broken).__name__}: {broken}"
    return ""


def superseded(kept: Sequence[str], keep: int, best_step: int) -> list[str]:
    """Which of these checkpoints, oldest first, are neither among the newest `keep` nor the best."""
    return [name for name in kept[:-keep] if name != name_of(best_step)]


def prune(folder: Path, keep: int, best_step: int) -> None:
    """Remove all but the newest checkpoints and the best."""
    for name in superseded(names(folder), keep, best_step):
        discard(folder / name)


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint, which at no time looks like a damaged one."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.doomed")
    shutil.rmtree(doomed, ignore_errors=True)
    if checkpoint.exists():
        checkpoint.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def clear_away(folder: Path) -> None:
    """Remove what a process that was killed had not finished writing or removing."""
    for pattern in (".step-*.partial", ".step-*.doomed"):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def files(checkpoint: Path) -> Iterable[str]:
    """Every file of a checkpoint but its manifest, by its path below it, in order."""
    paths = (path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != MANIFEST)


def sha256_of(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
