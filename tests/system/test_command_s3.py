"""The command against a real S3 server."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_pipeline import open_dataset, verify_dataset
from tests.launch.command import write_scans


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Six scans of six patients in the layout bus_bra."""
    return write_scans(tmp_path / "bus", 6)


def sonotrain(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call the command in a process of its own."""
    call = [sys.executable, "-P", "-m", "launch.cli", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, env=os.environ | environment, timeout=120, check=False)


def error_of(ended: subprocess.CompletedProcess[str]) -> str:
    """The one line that tells what is wrong."""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_scans_go_to_a_bucket_and_are_found_there(bucket: str, scans: Path, tmp_path: Path) -> None:
    place = f"s3://{bucket}/bus-bra"
    assert sonotrain("data", "ingest", "bus_bra", scans, place, "--folds", 2).returncode == 0
    assert sonotrain("data", "verify", place).returncode == 0
    assert sonotrain("data", "info", place, "--json", tmp_path / "info.json").returncode == 0
    assert json.loads((tmp_path / "info.json").read_text())["samples"] == 6
    again = sonotrain("data", "ingest", "bus_bra", scans, place, "--folds", 2)
    assert again.returncode == 2
    assert "holds a dataset already" in error_of(again)


@pytest.mark.parametrize("where", ["bucket", "folder"])
def test_of_two_ingests_to_one_place_one_wins_and_the_other_is_told(bucket: str, tmp_path: Path, where: str) -> None:
    sources = [write_scans(tmp_path / "few", 16), write_scans(tmp_path / "more", 20)]
    place = f"s3://{bucket}/bus-bra" if where == "bucket" else str(tmp_path / "bus-bra")
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda source: sonotrain("data", "ingest", "bus_bra", source, place), sources))
    won, lost = sorted(ended, key=lambda each: each.returncode)
    assert (won.returncode, lost.returncode) == (0, 2)
    assert re.search("holds a dataset already|index.json exists already", error_of(lost))
    assert verify_dataset(place) == []
    assert len(open_dataset(place).index.samples) == (16, 20)[ended.index(won)]


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_does_not_exist_is_a_wrong_call(scans: Path) -> None:
    for call in (["ingest", "bus_bra", scans, "s3://no-such-bucket/x"], ["info", "s3://no-such-bucket/x"]):
        ended = sonotrain("data", *call)
        assert ended.returncode == 2
        assert "the bucket no-such-bucket does not exist" in error_of(ended)


@pytest.mark.parametrize(
    ("credential", "reason"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, "the secret key is wrong"),
        ({"AWS_ACCESS_KEY_ID": "not-the-key"}, "the server does not know the access key"),
    ],
)
def test_wrong_credentials_are_a_wrong_call_and_are_not_shown(
    bucket: str, scans: Path, credential: dict[str, str], reason: str
) -> None:
    for call in (["ingest", "bus_bra", scans, f"s3://{bucket}/x"], ["info", f"s3://{bucket}/x"]):
        ended = sonotrain("data", *call, **credential)
        assert ended.returncode == 2
        assert reason in error_of(ended)
        for secret in (*credential.values(), os.environ["AWS_SECRET_ACCESS_KEY"]):
            assert secret not in ended.stdout + ended.stderr
