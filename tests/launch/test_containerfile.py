"""The image's recipe, as far as it can be held against the project without building it."""

import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from launch.kubernetes.environment import HOME
from launch.kubernetes.pod import USER

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "launch" / "requirements.txt"


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Each instruction of the Containerfile with what stands behind it, in order."""
    lines = [line for line in (ROOT / "launch/Containerfile").read_text().splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in whole.splitlines() if line)]


def commands(steps: list[tuple[str, str]]) -> list[list[str]]:
    """The programs that RUN runs, with their arguments."""
    return [shlex.split(part) for name, rest in steps if name == "RUN" for part in rest.split("&&")]


def pinned() -> dict[str, str]:
    lines = [line for line in PACKAGES.read_text().splitlines() if not line.startswith("#")]
    versions = dict(line.split("==") for line in lines)
    assert len(versions) == len(lines)
    return versions


def test_it_has_no_instruction_that_is_none(steps: list[tuple[str, str]]) -> None:
    names = [name for name, _ in steps]
    assert set(names) <= {"FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT"}
    assert names.count("FROM") > 1
    assert names[0] == "FROM"
    assert json.loads(steps[-1][1]) == ["sonotrain"]


def test_each_base_has_a_version(steps: list[tuple[str, str]]) -> None:
    stages: set[str] = set()
    for base, *alias in (rest.split() for name, rest in steps if name == "FROM"):
        assert base in stages or re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)
        stages |= set(alias[1:])


def test_each_file_that_is_copied_is_there(steps: list[tuple[str, str]]) -> None:
    stages = [rest.split()[-1] for name, rest in steps if name == "FROM" and " AS " in rest]
    copied = set()
    for rest in (rest for name, rest in steps if name == "COPY"):
        origin, *sources = rest.split()[:-1] if rest.startswith("--from=") else ("", *rest.split()[:-1])
        if origin:
            assert origin.removeprefix("--from=") in stages
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            copied.add(source)
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    rooms = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert rooms | {project["project"]["readme"], *project["project"]["license-files"]} <= copied


def test_it_runs_as_the_user_that_the_pods_name(steps: list[tuple[str, str]]) -> None:
    assert [rest for name, rest in steps if name == "USER"] == [f"{USER}:{USER}"]
    (added,) = (command for command in commands(steps) if command[0] == "useradd")
    assert added[added.index("--uid") + 1] == str(USER)
    assert f"/home/{added[-1]}" == HOME
    assert "--create-home" in added


def test_pip_understands_what_it_is_asked(steps: list[tuple[str, str]]) -> None:
    calls = [command for command in commands(steps) if Path(command[0]).name == "pip"]
    assert len(calls) == 3
    for _, *arguments in calls:
        # Of a call with --help pip reads all options, and refuses one that it does not know, but does nothing.
        pip = [sys.executable, "-m", "pip", *arguments, "--help"]
        assert subprocess.run(pip, capture_output=True).returncode == 0, arguments


def required(name: str, extras: frozenset[str] = frozenset()) -> Iterator[str]:
    """Each package that one leads to, by what is installed here."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(name, extras)]
    while waiting:
        package = waiting.pop()
        if package in seen:
            continue
        seen.add(package)
        yield package[0]
        for line in importlib.metadata.requires(package[0]) or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*package[1], "")):
                other = requirement.name.lower().replace("_", "-").replace(".", "-")
                waiting.append((other, frozenset(requirement.extras)))


def test_all_that_sonotrain_needs_has_a_version() -> None:
    # What torch's builds for GPUs add torch itself names, each at one version.
    needed = {name for name in required("sonotrain") if not name.startswith(("nvidia-", "triton", "cuda-"))}
    assert needed - {"sonotrain"} == set(pinned())


def test_the_versions_are_those_that_the_project_asks_for() -> None:
    versions = pinned()
    with (ROOT / "pyproject.toml").open("rb") as file:
        asked = tomllib.load(file)["project"]["dependencies"]
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(versions[requirement.name.lower()]), requirement


@pytest.mark.slow
def test_the_wheel_holds_all_that_sonotrain_reads(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for name in ("data_pipeline", "trainer", "launch", "tuning"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(tmp_path), str(source)], check=True
    )
    (wheel,) = tmp_path.glob("sonotrain-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    # The recipe itself and its list are no part of the program.
    left_out = {"launch/Containerfile", "launch/requirements.txt"}
    there = {
        str(path.relative_to(source))
        for room in ("data_pipeline", "trainer", "launch", "tuning")
        for path in (source / room).rglob("*")
        if path.is_file()
    }
    assert packed == there - left_out
