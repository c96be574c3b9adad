"""STU-Hospital (Zhuang et al., PLoS ONE 2019): Test_Image_1.png with mask_1.png, whose size is often another."""

from __future__ import annotations

import re
from pathlib import Path

from data_pipeline.faults import WrongCall
from data_pipeline.layouts.listing import list_files, with_suffix
from data_pipeline.layouts.pairs import Place, below, findings_of, place_of
from data_pipeline.scan import Findings, ScanFiles, safe_key

_NAME = re.compile(r"(test_image|mask)_0*(\d+)", re.IGNORECASE)


def find(source: Path) -> Findings:
    """Pair every Test_Image_N.png with the mask_N.png of its folder, wherever below the source they lie.

    The set tells no patients and no labels: each image is a patient and a group of its own, and its label "unknown".
    The masks show what the images do, at sizes of their own, and are brought to the images'.
    Raises WrongCall where there is no Test_Image_N.png.
    """
    files, refused = list_files(source)
    images: list[tuple[Place, Path]] = []
    masks: dict[Place, Path] = {}
    for path in with_suffix(files, ".png"):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            refused[below(source, path)] = "is neither Test_Image_N.png nor mask_N.png"
            continue
        place = (*place_of(path, source)[:-1], match[2])
        if match[1].lower() == "test_image":
            images.append((place, path))
        elif masks.setdefault(place, path) != path:
            refused[below(source, path)] = f"is a second mask {match[2]} of one folder"
    if not images:
        raise WrongCall(f"{source} holds no scan of STU-Hospital: looked for Test_Image_N.png with mask_N.png")
    for place in masks.keys() - {place for place, _ in images}:
        refused[below(source, masks[place])] = f"has no image: Test_Image_{place[-1]}.png is missing"
    return findings_of((_scan(path, masks.get(place)) for place, path in images), refused, source)


def _scan(image: Path, mask: Path | None) -> ScanFiles:
    key = safe_key(image.stem)
    return ScanFiles(key, image, () if mask is None else (mask,), key, group=key, label="unknown", fit_masks=True)
