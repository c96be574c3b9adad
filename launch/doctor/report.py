"""The findings for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.doctor.finding import Finding, Wanted


def as_json(findings: Sequence[Finding], wanted: Wanted) -> dict[str, Any]:
    """ok, how many of each state, and the findings with their numbers."""
    states = [finding.state for finding in findings]
    return {
        "ok": "failed" not in states,
        "counts": {state: states.count(state) for state in ("ok", "warning", "failed")},
        "nodes": wanted.nodes,
        "processes": wanted.processes,
        "findings": [finding.as_json() for finding in findings],
    }
