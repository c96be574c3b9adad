"""Lesions outlined in image files of any size: a mask, an overlay and a line of numbers for each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline import WrongCall
from data_pipeline.pixels import UnreadableImage, read_gray
from trainer.atomic import replacing
from trainer.evaluate import Predictor
from trainer.overlay import overlay

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MASK, OVERLAY, LINES = ".mask.png", ".overlay.png", "predictions.jsonl"


def predict_files(
    predictor: Predictor,
    images: Sequence[Path],
    out: Path,
    progress: Callable[[list[Path]], Iterable[Path]] = iter,
) -> list[dict[str, Any]]:
    """Outline each image; write `<stem>.mask.png` (0 and 255), `<stem>.overlay.png` and a line of predictions.jsonl.

    images are files, or folders that stand for the image files in them; both pictures have the image's size.
    progress passes the files on, one at a time, as they are worked through. predictions.jsonl grows with each and
    tells of this call alone. Its lines are returned:
      file          as it was named
      mask, overlay names of the pictures, in out
      height, width pixels
      lesion        whether any pixel was marked
      area_px, area_fraction    how much was marked, in pixels and as a fraction of the image
      box           [top, left, bottom, right] of what was marked, the last two just outside; null without a lesion
      probability   mean probability inside, 0..1; null without a lesion
    or, for an image that cannot be read, file and error; the others go on.

    Raises WrongCall, before anything is written, for a file that is missing, a folder without an image, and two
    images whose pictures would have one name; Fault when a picture cannot be written.
    """
    files = _image_files(images)
    _refuse_overwriting(files, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lines = (out / LINES).open("w", encoding="utf-8")
    except OSError as refused:
        raise WrongCall(f"{out} cannot be written to: {refused.strerror}; name another folder") from refused
    told = []
    with lines:
        for file in progress(files):
            told.append(_predict(predictor, file, out))
            lines.write(json.dumps(told[-1]) + "\n")
            lines.flush()
    return told


def _image_files(named: Sequence[Path]) -> list[Path]:
    """The files in order, each once, with the image files of folders in the folders' place."""
    files: dict[Path, Path] = {}
    for path in named:
        if path.is_dir():
            found = sorted(entry for entry in path.iterdir() if _is_image_name(entry.name) and entry.is_file())
            if not found:
                raise WrongCall(f"{path} holds no image file ({', '.join(IMAGE_SUFFIXES)})")
        elif path.is_file():
            found = [path]
        else:
            raise WrongCall(f"{path} is not there; name image files, or folders of them")
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def _is_image_name(name: str) -> bool:
    """Not the hidden files that file managers leave beside images, and not what an earlier prediction wrote."""
    hidden, written = name.startswith("."), name.endswith((MASK, OVERLAY))
    return name.lower().endswith(IMAGE_SUFFIXES) and not hidden and not written


def _refuse_overwriting(files: Sequence[Path], out: Path) -> None:
    owners: dict[Path, Path] = {}
    inputs = {file.resolve() for file in files}
    for file in files:
        for target in _targets(file, out):
            if target in owners:
                raise WrongCall(f"{owners[target]} and {file} would both be written to {target}; predict them apart")
            if target.resolve() in inputs:
                raise WrongCall(f"{target} is to be predicted on and would be overwritten; name another folder")
            owners[target] = file


def _targets(file: Path, out: Path) -> Iterator[Path]:
    for suffix in (MASK, OVERLAY):
        yield out / f"{file.stem}{suffix}"


def _predict(predictor: Predictor, file: Path, out: Path) -> dict[str, Any]:
    try:
        image = read_gray(file)
    except UnreadableImage as reason:
        return {"file": str(file), "error": str(reason)}
    probability = predictor.probabilities([image])[0]
    mask = predictor.marked(probability)
    mask_file, overlay_file = _targets(file, out)
    _save(mask.astype(np.uint8) * np.uint8(255), mask_file)
    _save(overlay(image, mask), overlay_file)
    return {
        "file": str(file),
        "mask": mask_file.name,
        "overlay": overlay_file.name,
        "height": image.shape[0],
        "width": image.shape[1],
        **_measured(mask, probability),
    }


def _measured(mask: NDArray[np.bool_], probability: NDArray[np.float32]) -> dict[str, Any]:
    if not mask.any():
        return {"lesion": False, "area_px": 0, "area_fraction": 0.0, "box": None, "probability": None}
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return {
        "lesion": True,
        "area_px": int(np.count_nonzero(mask)),
        "area_fraction": float(mask.mean()),
        "box": [int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1],
        "probability": float(probability[mask].mean(dtype=np.float64)),
    }


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    with replacing(path) as partial:
        Image.fromarray(pixels).save(partial, "PNG")
