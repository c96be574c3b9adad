"""What a forecast says of memory, against real engines, torch's profiler, and the peak of real trainings."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import write_dataset
from data_pipeline.phantom import phantom
from tests.trainer.remembering import PRECISIONS, SIDES, engine_config, training_config
from trainer.activations import activations_of
from trainer.config import Config, load_config
from trainer.idle import runtime_memory
from trainer.memory import BUCKET, process_memory

SCRIPT = Path(__file__).with_name("remembering.py")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, mlflow_folder: Path) -> dict[str, Any]:
    """What a process tells that trains and starts engines, and the dataset that it trained on."""
    folder = tmp_path_factory.mktemp("remembering")
    scans = [phantom(number, (64, 64)) for number in range(16)]
    dataset = folder / "phantoms"
    write_dataset(str(dataset), "phantoms", scans, {scan.key: number // 8 + 1 for number, scan in enumerate(scans)}, {})
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{mlflow_folder}/mlflow.db", "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), str(dataset), str(folder)],
        env=environment | {"PYTHONPATH": str(SCRIPT.parents[2])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1]) | {"dataset": str(dataset)}


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_weights_gradients_and_moments_are_those_of_real_engines(zero: int, real: dict[str, Any]) -> None:
    said = process_memory(engine_config(zero), 1, 0)
    held = real["held"][zero]
    buffers = said.weights - 4 * held["weights"]
    assert 0 < buffers < 0.05 * said.weights  # the statistics of norms, which are no parameters
    # ZeRO fills up a part to a multiple of two values.
    assert said.gradients == pytest.approx(4 * held["gradients"], abs=16)
    assert said.moments == pytest.approx(4 * held["moments"], abs=32)
    assert held["bucket"] == (BUCKET if zero else 0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_activations_are_what_a_real_iteration_allocates(precision: str, real: dict[str, Any]) -> None:
    """They are most when the generator waits for the judgement on its maps, and no gradient is there yet."""
    assert activations_of(engine_config(precision=precision), 1).most == pytest.approx(
        real["allocated"][precision], rel=0.02
    )


@pytest.mark.slow
def test_the_sum_is_the_peak_of_real_trainings(real: dict[str, Any]) -> None:
    runtime = runtime_memory()
    said, peaks = [], []
    for side in SIDES:
        memory = process_memory(training_config(real["dataset"], side), 1, runtime)
        said.append(memory.on_cpu + memory.checkpoint)
        peaks.append(real["peaks"][str(side)])
        assert said[-1] == pytest.approx(peaks[-1], rel=0.25)
    # Libraries are the larger part of a small training; what they do not take has to fit too.
    assert said[1] - said[0] == pytest.approx(peaks[1] - peaks[0], rel=0.25)


def bytes_of(*changes: str, world_size: int = 1) -> Any:
    one_weight = ["network.widths=[1, 1]", "objective.beta=[0, 0, 0, 0]", "data.size=4x4", "training.batch=4"]
    return process_memory(load_config("quick", [*one_weight, *changes]), world_size, 0)


# By hand: convolutions of 3x3 with bias 1->1 twice on each of two levels (2x10 each) and after the rise 2->1 (19), 1->1
# (10); the rise of 2x2 (5); the head (2); six norms of two values each (12), with a mean, a variance and a count each.
PARAMETERS = 20 + 20 + 19 + 10 + 5 + 2 + 12
STATISTICS = 6 * (4 + 4 + 8)


def test_each_stage_shares_out_what_it_should_among_processes() -> None:
    whole, part = 4 * PARAMETERS, 4 * PARAMETERS // 4
    assert PARAMETERS % 4 == 0
    none = bytes_of(world_size=4)
    assert (none.weights, none.gradients, none.moments) == (whole + STATISTICS, whole, 2 * whole)
    assert none.exchange == none.exchange_on_gpu == whole
    moments = bytes_of("training.generator_zero=1", world_size=4)
    assert (moments.weights, moments.gradients, moments.moments) == (whole + STATISTICS + part, whole, 2 * part)
    assert (moments.exchange, moments.exchange_on_gpu) == (part, 4 * BUCKET + part)
    gradients = bytes_of("training.generator_zero=2", world_size=4)
    assert (gradients.weights, gradients.gradients, gradients.moments) == (whole + STATISTICS + part, part, 2 * part)
    assert (gradients.exchange, gradients.exchange_on_gpu) == (whole, 4 * BUCKET)
    weights = bytes_of("training.generator_zero=3", world_size=4)
    assert (weights.weights, weights.gradients, weights.moments) == (whole + STATISTICS + 2 * part, part, 2 * part)
    assert weights.average == whole + STATISTICS
    assert bytes_of().exchange == 0


def test_an_average_costs_a_network_and_checkpoints_a_copy_of_all() -> None:
    whole = 4 * PARAMETERS + STATISTICS
    plain, averaged = bytes_of(), bytes_of("training.ema=0.9")
    assert (plain.average, averaged.average) == (0, whole)
    assert plain.checkpoint == whole + 2 * 4 * PARAMETERS
    assert averaged.checkpoint == plain.checkpoint + whole


def test_a_process_holds_seven_batches_of_its_share_ahead_and_one_as_the_network_sees_it() -> None:
    memory = bytes_of("objective.noise=0.1", world_size=2)
    assert memory.batches == 7 * 2 * 2 * 16
    assert memory.scans == 4 * 2 * 16 * (1 + 1 + 2)


def test_a_validation_that_needs_more_than_training_counts() -> None:
    def held(batch: int) -> int:
        return activations_of(training_config_for_validation(batch), 1).most

    small, large, larger = held(1), held(64), held(128)
    assert small < large
    assert larger == pytest.approx(2 * large, rel=0.05)  # but for its weights in bf16


def training_config_for_validation(batch: int) -> Config:
    return load_config(
        "quick",
        ["data.size=64x64", "objective.beta=[0, 0, 0, 0]", "training.precision=bf16", f"validation.batch={batch}"],
    )
