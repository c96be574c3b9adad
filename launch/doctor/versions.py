"""What is installed on a node: held against what sonotrain asks for, and against the other nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError

from packaging.requirements import Requirement

from launch.doctor.finding import Finding
from launch.installed import MISSING, SOURCES, requirements, versions

SHOWN = ("python", "torch", "deepspeed", "numpy", "webdataset", "mlflow", "boto3", SOURCES)

_CHECK = "versions"


def look_at_versions() -> Finding:
    """Whether this node has what sonotrain asks for."""
    try:
        asked_for = list(requirements())
    except PackageNotFoundError:
        return Finding(
            _CHECK, "failed", "sonotrain itself is not installed here", "run pip install for it on this host"
        )
    installed = versions()
    wrong = [each for each in asked_for if not _fulfilled(each, installed[each.name])]
    found = ", ".join(f"{name} {installed[name]}" for name in SHOWN)
    if not wrong:
        return Finding(_CHECK, "ok", found, values=installed)
    named = ", ".join(f"{each.name} {installed[each.name]} is not {each.specifier}" for each in wrong)
    needed = " ".join(f"'{each}'" for each in wrong)
    return Finding(_CHECK, "failed", named, f"run pip install {needed} on this host", installed)


def compare(of_hosts: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Whether all hosts have the same of what is told of them; a line for each that differs from most."""
    names = sorted({name for found in of_hosts.values() for name in found})
    counted = {name: Counter(found[name] for found in of_hosts.values() if name in found) for name in names}
    usual = {name: counts.most_common(1)[0][0] for name, counts in counted.items()}
    findings = []
    for host, found in of_hosts.items():
        if differs := [name for name in found if found[name] != usual[name]]:
            told = ", ".join(f"{name} {found[name]}, elsewhere {usual[name]}" for name in differs)
            what = "the same sources of sonotrain" if differs == [SOURCES] else "the same versions"
            findings.append(Finding("equal versions", "failed", told, f"install {what} on all hosts", host=host))
    if findings:
        return findings
    told = f"Python, {len(names) - 2} packages and sonotrain's sources: the same on {', '.join(of_hosts)}"
    return [Finding("equal versions", "ok", told, host="all")]


def _fulfilled(requirement: Requirement, installed: str) -> bool:
    return installed != MISSING and requirement.specifier.contains(installed, prereleases=True)
