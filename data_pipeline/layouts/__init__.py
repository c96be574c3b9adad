"""The folder layouts of public breast-ultrasound sets: each module finds and pairs the files of one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

from data_pipeline.faults import WrongCall
from data_pipeline.layouts import breast_lesions_usg, bus_bra
from data_pipeline.scan import Findings

LAYOUTS: Mapping[str, Callable[[Path], Findings]] = {
    "bus_bra": bus_bra.find,
    "breast_lesions_usg": breast_lesions_usg.find,
}


def find_scans(layout: str, source: Path) -> Findings:
    """The scans of a source folder in this layout, by key, undecoded; and what cannot be used, with the reason.

    Raises WrongCall for an unknown layout, a source that is missing or no folder, and one that holds no usable scan.
    """
    if layout not in LAYOUTS:
        near = difflib.get_close_matches(layout.lower(), LAYOUTS, n=1)
        known = f"did you mean {near[0]}?" if near else f"known are {', '.join(LAYOUTS)}"
        raise WrongCall(f"layout {layout} is unknown; {known}")
    if not source.exists():
        raise WrongCall(f"source folder {source} does not exist")
    if not source.is_dir():
        raise WrongCall(f"source {source} is no folder")
    findings = LAYOUTS[layout](source)
    if not findings.scans:
        name, reason = next(iter(findings.refused.items()))
        count = len(findings.refused)
        raise WrongCall(
            f"{source} holds no usable scan in layout {layout}: {count} refused, the first is {name}, {reason}"
        )
    return Findings(sorted(findings.scans, key=lambda scan: scan.key), findings.refused)
