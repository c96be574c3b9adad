"""Training verbs in two real processes, as the command starts them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.cores import usable_cores
from tests.launch.command import Command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(usable_cores().count < 2, reason="two processes need two cores"),
]

SMALL = """
output: run
data: {uri: phantoms, size: [112, 112]}
network: {widths: [4, 4, 8, 8, 8]}
discriminators: {widths: [4, 4, 4, 4], strides: [2, 2, 1, 1, 1]}
optimizer: {generator_rate: 1.0e-2}
training: {epochs: 1, batch: 4, timeout_minutes: 1}
folds: [1, 2]
"""


@pytest.fixture
def launched(dataset: Path, tmp_path: Path) -> list[str]:
    """How a launch of two processes begins; small.yaml beside the dataset is what they train."""
    assert dataset.parent == tmp_path
    (tmp_path / "small.yaml").write_text(SMALL)
    return [sys.executable, "-P", "-m", "launch.cli", "launch", "local", "--procs", "2", "--"]


def test_two_processes_cross_validate_and_the_registered_network_is_used(
    launched: list[str], sonotrain: Command, tmp_path: Path, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    call = [*launched, "crossval", "small.yaml", "--json", "crossval.json"]
    ended = subprocess.run(call, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.splitlines()[-1] == "All 2 processes are done; their logs are in run/logs"
    assert "Cross-validating" in (tmp_path / "run/logs/rank-0.log").read_text()
    assert "Cross-validating" not in (tmp_path / "run/logs/rank-1.log").read_text()
    told = json.loads((tmp_path / "crossval.json").read_text())
    assert set(told["folds"]) == {"1", "2"}
    model = told["model"]["uri"]
    assert model == "models:/breast-ultrasound-segmenter@candidate"

    # Once more: each fold is done, and its network stays the version that it is.
    again = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "validated: DSC" not in again.stdout
    assert json.loads((tmp_path / "crossval.json").read_text()) == told

    listed = sonotrain("models", "list", "--json", "versions.json")
    assert listed.status == 0
    (version,) = json.loads(Path("versions.json").read_text())["versions"]
    assert version["aliases"] == ["candidate"]
    assert version["dataset_digest"] == told["folds"]["1"]["digest"]

    fold = str(told["best_fold"])
    assert sonotrain("evaluate", model, "phantoms", "--folds", fold, "--json", "evaluation.json").status == 0
    judged = json.loads(Path("evaluation.json").read_text())
    assert judged["dsc"]["mean"] == pytest.approx(told["folds"][fold]["validation"]["dsc"]["mean"], abs=1e-6)
    assert judged["seen_in_training"] == 0
    run = told["folds"][fold]["output"]
    assert sonotrain("evaluate", run, "phantoms", "--folds", fold, "--json", "of-run.json").status == 0
    assert json.loads(Path("of-run.json").read_text()) == judged | {"model": run}

    ensemble = sonotrain("evaluate", told["ensemble"], "phantoms", "--folds", "1,2", "--json", "ensemble.json")
    assert "Warning: 8 of these 8 scans were trained on; that flatters it" in ensemble.output.splitlines()
    assert json.loads(Path("ensemble.json").read_text())["cases"] > 0

    assert sonotrain("predict", model, scans / "bus_0001-l.png", "--out", "predictions").status == 0
    assert Path("predictions/bus_0001-l.overlay.png").exists()
    pulled = sonotrain("models", "pull", model, "pulled").output.split(" is in ")[-1].strip()
    assert (Path(pulled) / "generator.safetensors").exists()

    # With the ensemble wanted instead, nothing is trained, and it becomes the next version.
    call = [sys.executable, "-P", "-m", "launch.cli", "crossval", "small.yaml", "tracking.registers=ensemble"]
    ended = subprocess.run(
        [*call, "--json", "other.json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    assert "the ensemble is models:/breast-ultrasound-segmenter@candidate" in ended.stdout
    other = json.loads((tmp_path / "other.json").read_text())
    assert (other["model"]["version"], other["folds"], other["registered"]) == (2, told["folds"], "ensemble")
    pulled = sonotrain("models", "pull", model, "pulled").output.split(" is in ")[-1].strip()
    assert len(json.loads((Path(pulled) / "network.json").read_text())["members"]) == 2


def test_a_launch_told_to_stop_goes_on_later_and_a_rank_that_dies_is_named_and_the_other_ended(
    launched: list[str], tmp_path: Path
) -> None:
    *before, dashes = launched
    call = [*before, "--restarts", "0", dashes, "train", "small.yaml", "training.epochs=500"]

    def launch(output: Path) -> subprocess.Popen[bytes]:
        """Launch it, and return once it trains."""
        with output.open("w") as sink:
            launcher = subprocess.Popen(call, cwd=tmp_path, stdout=sink, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while "validated" not in output.read_text():
            assert launcher.poll() is None, output.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return launcher

    launcher = launch(tmp_path / "stopped")
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=60) == 75, (tmp_path / "stopped").read_text()
    *_, told, last = (tmp_path / "stopped").read_text().splitlines()
    stopped = re.fullmatch(r"SIGTERM: stopped after step (\d+); started again, it goes on", told)
    assert stopped, told
    assert (tmp_path / f"run/checkpoints/step-{int(stopped[1]):08d}/manifest.json").exists()
    assert last == "All 2 processes have stopped when asked to; the same call goes on; their logs are in run/logs"

    launcher = launch(tmp_path / "killed")
    ranks = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    killed = time.monotonic()
    assert launcher.wait(timeout=60) == 1
    assert time.monotonic() - killed < 20
    last = (tmp_path / "killed").read_text().splitlines()[-1]
    assert re.match(
        r"error: rank 1 was killed by SIGKILL after step \d+; the other processes were ended; its log is ", last
    )
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
