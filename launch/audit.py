"""An audit on the terminal and for machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from data_pipeline.audit import Audit, Spread
from launch.terminal import show_table

FINDINGS_SHOWN = 10
"""Findings of a section on the terminal; the page shows more of them, and JSON has all."""

KEYS_SHOWN = 4
"""Scans that a line on the terminal names."""


def show_audit(audited: Audit) -> None:
    """The set as a whole, what was found in numbers, and the first findings of each section."""
    show_table("Scans", ("what", "value"), overview_rows(audited))
    show_table(
        "Found",
        ("what", "findings", "scans or files"),
        ((section.title, len(section.findings), len(section.keys)) for section in audited.sections),
        numbers=True,
    )
    if any(section.findings for section in audited.sections):
        show_table("Findings", ("what", "scan or file", "why"), _first_findings(audited))


def overview_rows(audited: Audit) -> list[tuple[str, str]]:
    """The set as a whole, in words."""
    seen = audited.overview
    folds = ", ".join(f"{fold}: {count}" for fold, count in seen.folds.items())
    return [
        ("scans read", f"{seen.scans}, of {seen.patients} patients"),
        ("labels", ", ".join(f"{label}: {count}" for label, count in seen.labels.items()) or "none"),
        ("with a lesion", str(seen.with_lesion)),
        ("spacing known", f"{seen.with_spacing} of {seen.scans}"),
        ("the set's own folds", folds or "none"),
        ("height in pixels", _spread(seen.height, "{:.0f}")),
        ("width in pixels", _spread(seen.width, "{:.0f}")),
        *((f"lesion area, {label}", _spread(area, "{:.1%}")) for label, area in seen.lesion_area.items()),
    ]


def audit_for_machines(audited: Audit) -> dict[str, Any]:
    """Counts and lists: the overview's fields; findings by section; and all duplicates, as pairs and as groups."""
    return {
        **asdict(audited.overview),
        "findings": {
            section.name: {
                "count": len(section.findings),
                "list": [{"keys": list(finding.keys), "says": finding.says} for finding in section.findings],
            }
            for section in audited.sections
        },
        "duplicate_pairs": [[first, second, round(correlation, 6)] for first, second, correlation in audited.pairs],
        "duplicate_groups": [list(group) for group in audited.groups],
    }


def audit_in_a_line(audited: Audit) -> str:
    """How much was found."""
    seen = audited.overview.scans
    kinds = [section for section in audited.sections if section.findings]
    if not kinds:
        return f"nothing to look at, scans read: {seen}"
    concerned = set().union(*(section.keys for section in kinds))
    return f"scans or files to look at: {len(concerned)} (kinds of findings: {len(kinds)}), scans read: {seen}"


def _first_findings(audited: Audit) -> Iterator[tuple[str, str, str]]:
    """Rows of the terminal's table: a section's title beside its first finding."""
    for section in audited.sections:
        title = section.title
        for finding in section.findings[:FINDINGS_SHOWN]:
            yield title, _named(finding.keys), finding.says
            title = ""
        if len(section.findings) > FINDINGS_SHOWN:
            yield "", "", f"... and {len(section.findings) - FINDINGS_SHOWN} more"


def _named(keys: tuple[str, ...]) -> str:
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return ", ".join(keys[:KEYS_SHOWN]) + more


def _spread(spread: Spread | None, form: str) -> str:
    if spread is None:
        return "none"
    smallest, median, largest = (form.format(value) for value in (spread.smallest, spread.median, spread.largest))
    return f"{smallest} to {largest}, median {median}"
