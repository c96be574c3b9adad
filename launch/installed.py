"""What is installed on a machine, to be held against what others have; read in a moment, without importing it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from data_pipeline import WrongCall

MISSING = "not installed"

SOURCES = "sources"
"""The name under which the digest of sonotrain's own sources stands among the versions."""

_ROOMS = ("data_pipeline", "trainer", "tuning", "launch")
_SUFFIXES = (".py", ".yaml", ".j2")


def versions() -> dict[str, str]:
    """The version of Python and of each package that sonotrain asks for, and a digest of its own sources."""
    found = {"python": platform.python_version()}
    for requirement in requirements():
        found[requirement.name] = _version(requirement.name)
    return found | {SOURCES: digest_of(Path(__file__).parents[1])}


def require_equal(of_hosts: Mapping[str, Mapping[str, str]]) -> None:
    """Raise WrongCall where hosts differ in anything, or this machine, which only watches, has another sonotrain."""
    for name in sorted({name for found in of_hosts.values() for name in found}):
        hosts_of: dict[str, list[str]] = {}
        for host, found in of_hosts.items():
            hosts_of.setdefault(found.get(name, "missing"), []).append(host)
        if name == SOURCES:
            hosts_of.setdefault(versions()[SOURCES], []).append("this machine")
        if len(hosts_of) > 1:
            what = "sonotrain's own sources differ" if name == SOURCES else f"{name} differs"
            told = ", ".join(f"{version} on {' and '.join(hosts)}" for version, hosts in hosts_of.items())
            raise WrongCall(f"{what}: {told}; install the same everywhere")


def requirements() -> Iterator[Requirement]:
    """What sonotrain asks for on this machine. Raises PackageNotFoundError where it is not installed itself."""
    for line in requires("sonotrain") or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def digest_of(root: Path) -> str:
    """Twelve hexadecimal digits of the sources' names and contents."""
    digest = hashlib.sha256()
    for path in sorted(path for room in _ROOMS for path in (root / room).rglob("*") if path.suffix in _SUFFIXES):
        digest.update(f"{path.relative_to(root)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return MISSING
