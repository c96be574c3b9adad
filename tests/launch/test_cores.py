"""What a process may use of a machine."""

from pathlib import Path

import pytest

from launch import cores
from launch.cores import Cores, usable_cores


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of eight cores; the folder in which a control group of either version may say more."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cores, "_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(cores, "_V1", tmp_path / "cpu.cfs_quota_us")
    return tmp_path


@pytest.mark.parametrize("limit", [None, "max 100000", "800000 100000", "nonsense"])
def test_without_a_tighter_quota_every_core_is_named(eight_cores: Path, limit: str | None) -> None:
    if limit:
        (eight_cores / "cpu.max").write_text(limit)
    assert usable_cores() == Cores(8, (0, 1, 2, 3, 4, 5, 6, 7))


@pytest.mark.parametrize(("limit", "count"), [("250000 100000", 2), ("50000 100000", 1)])
def test_a_quota_says_how_many_cores_and_not_which(eight_cores: Path, limit: str, count: int) -> None:
    (eight_cores / "cpu.max").write_text(limit)
    assert usable_cores() == Cores(count, ())
    assert usable_cores().share(0, 2) == ()


@pytest.mark.parametrize(("quota", "expected"), [("300000", Cores(3, ())), ("-1", Cores(8, tuple(range(8))))])
def test_the_older_control_groups_are_understood(eight_cores: Path, quota: str, expected: Cores) -> None:
    (eight_cores / "cpu.cfs_quota_us").write_text(quota)
    (eight_cores / "cpu.cfs_period_us").write_text("100000")
    assert usable_cores() == expected
