"""BUSI (Al-Dhabyani et al., Data in Brief 2020): benign (1).png with benign (1)_mask.png, in a folder of each class."""

from __future__ import annotations

import re
from pathlib import Path

from data_pipeline.faults import WrongCall
from data_pipeline.layouts.listing import list_files
from data_pipeline.layouts.pairs import Pair, below, class_folders, findings_of, pair_files
from data_pipeline.scan import Findings, ScanFiles

_NAME = re.compile(r"(benign|malignant|normal)[ _-]*\(?(\d+)\)?", re.IGNORECASE)


def find(source: Path) -> Findings:
    """Pair every CLASS (N).png with CLASS (N)_mask.png, CLASS (N)_mask_1.png..., wherever below the source they lie.

    The masks lie beside their image, or in a folder mask beside one of images. The label is the class in the name. The
    set tells no patients, so that each image is a patient and a group of its own; its near-duplicates, of which it has
    many, are for others to find. A normal scan may lack its mask, which is empty.
    Raises WrongCall where there is no CLASS (N).png.
    """
    files, refused = list_files(source)
    pairs, unpaired = pair_files(files, source)
    refused |= unpaired
    scans = []
    for pair in pairs:
        name = _NAME.fullmatch(pair.image.stem)
        if name is None:
            refused[below(source, pair.image)] = "is neither CLASS (N).png nor CLASS (N)_mask.png"
        elif class_folders(pair.home) - {name[1].lower()}:
            refused[below(source, pair.image)] = "lies in the folder of another class"
        else:
            scans.append(_scan(pair, name[1].lower(), int(name[2])))
    if not scans:
        raise WrongCall(f"{source} holds no scan of BUSI: looked for benign (N).png with benign (N)_mask.png")
    return findings_of(scans, refused, source)


def _scan(pair: Pair, label: str, number: int) -> ScanFiles:
    key = f"{label}-{number}"
    return ScanFiles(key, pair.image, pair.masks, patient=key, group=key, label=label)
