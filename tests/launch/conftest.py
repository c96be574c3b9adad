"""The command as a person uses it, and what it is used on."""

import sys
from pathlib import Path

import pytest

from launch.cli import main
from tests.launch.command import Command, Outcome, write_scans


@pytest.fixture
def sonotrain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Call the command within this process, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SONOTRAIN_DEBUG", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["sonotrain", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        written = capsys.readouterr()
        return Outcome(int(end.value.code or 0), written.out, written.err)

    return call


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Ten scans of ten patients in the layout bus_bra."""
    return write_scans(tmp_path / "bus", 10)


@pytest.fixture
def dataset(sonotrain: Command, tmp_path: Path) -> Path:
    """Twelve phantoms of six patients, in three folds."""
    assert sonotrain("data", "phantom", "phantoms", "--count", 12, "--size", "48x64", "--folds", 3).status == 0
    return tmp_path / "phantoms"
