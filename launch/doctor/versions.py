"""What is installed on a node: held against what sonotrain asks for, and against the other nodes."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from launch.doctor.finding import Finding

SHOWN = ("python", "torch", "deepspeed", "numpy", "webdataset", "mlflow", "boto3", "sources")

MISSING = "not installed"

_CHECK = "versions"
_ROOMS = ("data_pipeline", "trainer", "tuning", "launch")
_SOURCES = (".py", ".yaml", ".j2")


def versions() -> dict[str, str]:
    """The version of Python and of each package that sonotrain asks for, and a digest of its own sources."""
    found = {"python": platform.python_version()}
    for requirement in _requirements():
        found[requirement.name] = _version(requirement.name)
    return found | {"sources": digest_of(Path(__file__).parents[2])}


def look_at_versions() -> Finding:
    """Whether this node has what sonotrain asks for."""
    try:
        requirements = list(_requirements())
    except PackageNotFoundError:
        return Finding(
            _CHECK, "failed", "sonotrain itself is not installed here", "run pip install for it on this host"
        )
    installed = versions()
    wrong = [each for each in requirements if not _fulfilled(each, installed[each.name])]
    found = ", ".join(f"{name} {installed[name]}" for name in SHOWN)
    if not wrong:
        return Finding(_CHECK, "ok", found, values=installed)
    named = ", ".join(f"{each.name} {installed[each.name]} is not {each.specifier}" for each in wrong)
    needed = " ".join(f"'{each}'" for each in wrong)
    return Finding(_CHECK, "failed", named, f"run pip install {needed} on this host", installed)


def compare(of_hosts: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Whether all hosts have the same; a line for each that differs from what most have."""
    counted = Counter(tuple(sorted(found.items())) for found in of_hosts.values())
    most = dict(counted.most_common(1)[0][0])
    findings = []
    for host, found in of_hosts.items():
        names = sorted(name for name in most.keys() | found.keys() if most.get(name) != found.get(name))
        if names:
            told = ", ".join(
                f"{name} {found.get(name, MISSING)}, elsewhere {most.get(name, MISSING)}" for name in names
            )
            advice = "install the same on all hosts" + (", sonotrain's own sources too" if "sources" in names else "")
            findings.append(Finding("equal versions", "failed", told, advice, host=host))
    if findings:
        return findings
    told = f"Python, {len(most) - 2} packages and sonotrain's sources are the same on {' and '.join(of_hosts)}"
    return [Finding("equal versions", "ok", told, host="all")]


def digest_of(root: Path) -> str:
    """Twelve hexadecimal digits of the sources' names and contents."""
    digest = hashlib.sha256()
    for path in sorted(path for room in _ROOMS for path in (root / room).rglob("*") if path.suffix in _SOURCES):
        digest.update(f"{path.relative_to(root)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _requirements() -> Iterator[Requirement]:
    for line in requires("sonotrain") or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return MISSING


def _fulfilled(requirement: Requirement, installed: str) -> bool:
    return installed != MISSING and requirement.specifier.contains(installed, prereleases=True)
