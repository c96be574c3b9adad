"""The folder layouts of public breast-ultrasound sets: each module finds and pairs the files of one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

from data_pipeline.faults import WrongCall
from data_pipeline.layouts import breast_lesions_usg, bus_bra, bus_uclm, busi, dicom, folder, stu
from data_pipeline.scan import Findings

LAYOUTS: Mapping[str, Callable[[Path], Findings]] = {
    "bus_bra": bus_bra.find,
    "breast_lesions_usg": breast_lesions_usg.find,
    "busi": busi.find,
    "bus_uclm": bus_uclm.find,
    "stu": stu.find,
    "folder": folder.find,
    "dicom": dicom.find,
}


def find_scans(layout: str, source: Path) -> Findings:
    """The scans of a source folder in this layout, by key, undecoded; and what cannot be used, with the reason.

    Raises WrongCall for an unknown layout, a source that is missing or no folder, and one that holds no usable scan;
    the last names the layouts in which the source does hold some.
    """
    if layout not in LAYOUTS:
        near = difflib.get_close_matches(layout.lower(), LAYOUTS, n=1)
        known = f"did you mean {near[0]}?" if near else f"known are {', '.join(LAYOUTS)}"
        raise WrongCall(f"layout {layout} is unknown; {known}")
    if not source.exists():
        raise WrongCall(f"source folder {source} does not exist")
    if not source.is_dir():
        raise WrongCall(f"source {source} is no folder")
    try:
        findings = LAYOUTS[layout](source)
    except WrongCall as wrong:
        raise WrongCall(f"{wrong}{_elsewhere(layout, source)}") from wrong
    if not findings.scans:
        name, reason = next(iter(findings.refused.items()))
        count = len(findings.refused)
        raise WrongCall(
            f"{source} holds no usable scan in layout {layout}: {count} refused, the first is {name}, {reason}"
            f"{_elsewhere(layout, source)}"
        )
    return Findings(sorted(findings.scans, key=lambda scan: scan.key), findings.refused)


def _elsewhere(layout: str, source: Path) -> str:
    """Which other layouts find scans there, for a person who named the wrong one; "" if none does."""
    fitting = [name for name in LAYOUTS if name != layout and _fits(name, source)]
    return f"; scans are found there in layout {' and '.join(fitting)}" if fitting else ""


def _fits(layout: str, source: Path) -> bool:
    try:
        return bool(LAYOUTS[layout](source).scans)
    except WrongCall:
        return False
