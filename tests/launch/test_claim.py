"""Cores that belong to one launch."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline import Fault, WrongCall
from launch import claim
from launch.cores import Cores


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "usable_cores", lambda: Cores(4, (2, 3, 5, 7)))


def test_two_claims_never_share_a_core(tmp_path: Path) -> None:
    with claim.claimed_cores(2, tmp_path) as one, claim.claimed_cores(2, tmp_path) as other:
        assert (one, other) == (Cores(2, (2, 3)), Cores(2, (5, 7)))


def test_a_core_is_free_again_when_its_claim_ends(tmp_path: Path) -> None:
    with claim.claimed_cores(4, tmp_path):
        pass
    with claim.claimed_cores(4, tmp_path) as again:
        assert again.numbers == (2, 3, 5, 7)


def test_cores_that_others_keep_are_not_waited_for_without_end(tmp_path: Path) -> None:
    with (
        claim.claimed_cores(3, tmp_path),
        pytest.raises(Fault, match=r"2 cores were not free within 0 s, only 1 of 4"),
        claim.claimed_cores(2, tmp_path, patience=0.2),
    ):
        pass
    with claim.claimed_cores(4, tmp_path, patience=0):
        pass  # what the one in vain had taken is free


def test_free_cores_are_those_that_nobody_has_claimed(tmp_path: Path) -> None:
    assert claim.free_cores(tmp_path) == 4
    with claim.claimed_cores(3, tmp_path):
        assert claim.free_cores(tmp_path) == 1
    assert claim.free_cores(tmp_path) == 4


def test_more_cores_than_there_are_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(WrongCall, match="5 cores are more than the 4"), claim.claimed_cores(5, tmp_path):
        pass


def test_a_claim_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    holder = (
        "import sys, time; from pathlib import Path; from launch import claim; from launch.cores import Cores\n"
        "claim.usable_cores = lambda: Cores(4, (2, 3, 5, 7))\n"
        "with claim.claimed_cores(4, Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        began = time.monotonic()
        with pytest.raises(Fault), claim.claimed_cores(1, tmp_path, patience=0):
            pass
        other.kill()
        with claim.claimed_cores(4, tmp_path, patience=10):
            assert time.monotonic() - began < 10


def test_a_quota_has_a_number_of_cores_and_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "usable_cores", lambda: Cores(3, ()))
    with claim.claimed_cores(2, tmp_path) as mine:
        assert mine == Cores(2, ())
    assert not list(tmp_path.iterdir())
