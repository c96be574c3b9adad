"""`sonotrain bench step`: loops that do the same iteration, and what is told of their times."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline import Fault
from launch.bench_verbs import show_steps
from launch.benches.step import Wanted, bench_step, criteria
from launch.benches.step_ladder import rungs
from launch.benches.step_plain import PlainLoop
from launch.benches.step_process import PLAIN, StepProcesses
from launch.benches.step_tasks import resident_batches, threads
from launch.cores import usable_cores
from launch.phantoms import Phantoms, write_phantoms
from tests.launch.command import Command
from tests.trainer.plain import PlainTraining, matters
from trainer.config import Config, load_config
from trainer.processes import World
from trainer.step import MicroBatch

SMALL = (
    *("data.size=[112, 112]", "network.widths=[4, 6, 8, 10, 12]", "discriminators.widths=[4, 6, 8, 10]"),
    *("training.batch=4", "training.precision=fp32", "training.channels_last=false"),
)


@pytest.fixture
def config() -> Config:
    return load_config("quick", SMALL)


def batches(config: Config) -> list[list[MicroBatch]]:
    return resident_batches(config, World(0, 1, torch.device("cpu")))


def trained(config: Config, **how: bool) -> PlainLoop:
    loop = PlainLoop(config, torch.device("cpu"), **how)
    for pieces in batches(config)[:2]:
        loop.iterate(pieces)
    return loop


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("training.accumulation=2",),
        ("objective.adversarial=non_saturating", "objective.smoothing=0.1", "discriminators.input=image_x_mask"),
        ("objective.noise=0.1",),
    ],
)
def test_the_plain_loop_is_the_iteration_that_is_written_out_elsewhere(changes: tuple[str, ...]):
    config = load_config("quick", (*SMALL, *changes))
    loop, apart = PlainLoop(config, torch.device("cpu")), PlainTraining(config)
    pieces = batches(config)[0]

    loop.iterate(pieces)
    apart.iterate([pieces])

    for ours, theirs in ((loop.generator, apart.generator), (loop.discriminators, apart.discriminators)):
        expected = matters(theirs)
        assert expected.keys() == matters(ours).keys()
        for name, value in matters(ours).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


def test_computing_the_generator_twice_comes_to_the_same_weights(config: Config):
    once, twice = trained(config), trained(config, twice=True)

    for ours, theirs in ((once.generator, twice.generator), (once.discriminators, twice.discriminators)):
        assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_without_an_adversary_the_plain_loop_leaves_the_discriminators_alone():
    config = load_config("quick", (*SMALL, "objective.beta=[0, 0, 0, 0]"))
    before = PlainLoop(config, torch.device("cpu"))

    loop = trained(config)

    assert all(map(torch.equal, loop.discriminators.parameters(), before.discriminators.parameters()))
    assert not any(map(torch.equal, loop.generator.parameters(), before.generator.parameters()))


@pytest.mark.slow
def test_a_process_that_fails_is_named_with_what_it_says():
    with StepProcesses(PLAIN) as processes:
        (count,) = processes.ask(threads)
        assert count >= 1
        with pytest.raises(Fault, match=r"1 plain process: TypeError: threads\(\) takes 1 positional argument"):
            processes.ask(threads, "too much")


def test_the_ladder_of_a_cpu_begins_with_fp32_and_ends_with_ours():
    ladder, missing = rungs(torch.device("cpu"), compiles=False)

    assert ladder[0].name == "fp32"
    assert (ladder[-1].loop, ladder[-1].channels_last, ladder[-1].compile) == ("engines", True, False)
    assert missing.keys() - {"bf16"} == {"TF32", "compile"}
    assert [rung.precision for rung in ladder] == sorted((rung.precision for rung in ladder), reverse=True)


# -- the whole ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve phantoms in three folds."""
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(Phantoms(str(folder), 12, (48, 64), seed=0, folds=3, codec="png", shard_mb=64))
    return folder


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile") / "operators.txt"


@pytest.fixture(scope="module")
def result(phantoms: Path, profile: Path) -> dict[str, Any]:
    """What a benchmark of one short round came to, as JSON has it."""
    config = load_config("quick", (*SMALL, f"data.uri={phantoms}"))
    wanted = Wanted(config, rounds=1, profile=profile, seconds=0.1, compiles=False)
    return json.loads(json.dumps(bench_step(wanted, print)))


@pytest.mark.slow
@pytest.mark.timeout(600)  # it starts five processes
def test_a_benchmark_tells_what_was_measured(result: dict[str, Any], profile: Path):
    assert result["same_iteration"]["steps"] == 3
    assert 0 <= result["same_iteration"]["largest_difference"] <= 1e-5
    assert [row["name"] for row in result["loops"]] == ["sonotrain", "plain loop", "plain loop, generator twice"]
    measured = [*result["loops"], *result["ladder"]["rungs"], *result.get("processes", []), result["data"]]
    assert all(row["images_per_second"]["rounds"] == [row["images_per_second"]["median"]] for row in measured)
    assert all(row["processor_seconds_an_image"]["median"] > 0 for row in measured)
    flops = result["settings"]["flops_of_a_scan"]
    assert all(row["tflops"] == pytest.approx(row["images_per_second"]["median"] * flops / 1e12) for row in measured)
    assert [row["batch"] for row in result.get("processes", [])] == ([2, 4] if usable_cores().count > 1 else [])
    for rung in result["ladder"]["rungs"]:
        of_peak = rung["tflops"] / result["ladder"]["peaks"][rung["precision"]]["tflops"]
        assert rung["share_of_peak"] == pytest.approx(of_peak)
    assert result["machine"]["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert result["versions"]["torch"] == torch.__version__
    assert "sonotrain, 3 iterations" in (text := profile.read_text())
    assert "plain loop, 3 iterations" in text
    assert "aten::convolution_backward" in text


@pytest.mark.slow
def test_what_is_promised_follows_from_what_was_measured(result: dict[str, Any]):
    found = {each["what"]: each for each in result["criteria"]}
    ours, plain, twice = (row["images_per_second"]["median"] for row in result["loops"])

    assert found["time of an iteration: of the plain loop's"]["median"] == pytest.approx(plain / ours)
    assert found["images/s: of the loop that computes the generator twice"]["median"] == pytest.approx(ours / twice)
    if "processes" in result:
        one, two = (row["images_per_second"]["median"] for row in result["processes"])
        assert found["images/s of two pinned processes: of one"]["median"] == pytest.approx(two / one)
    (saved,) = result["checkpoint"]["rounds"]
    share = saved["cost"] / (1499 / 4 * saved["usual"])
    assert found["share of time for checkpoints, one an epoch"]["median"] == pytest.approx(share)
    assert 0 < saved["on_path"] < result["checkpoint"]["first"]["on_path"] + 1
    assert 0 <= found["share of time waiting for data"]["median"] < 1


@pytest.mark.slow
def test_the_tables_say_whether_a_promise_is_met(result: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    show_steps(result)

    shown = capsys.readouterr().out
    assert shown.count("met") + shown.count("MISSED") == len(result["criteria"])
    assert "sonotrain, on data" in shown
    assert "+ channels-last" in shown


@pytest.mark.parametrize(
    ("ours", "plain", "twice", "met"),
    [(100.0, 105.0, 90.0, (True, True)), (100.0, 106.0, 91.0, (False, False)), (100.0, 50.0, 95.0, (True, False))],
)
def test_a_promise_is_met_up_to_its_bound(ours: float, plain: float, twice: float, met: tuple[bool, bool]):
    result = {
        "loops": [{"images_per_second": {"rounds": [rate] * 3}} for rate in (ours, plain, twice)],
        "checkpoint": {"share": {"median": 0.02, "low": None, "high": None}},
    }

    of_plain, of_twice, for_checkpoints = criteria(result)

    assert (of_plain["met"], of_twice["met"]) == met
    assert for_checkpoints["met"]


def test_a_wrong_call_is_told_before_any_work(sonotrain: Command, tmp_path: Path):
    for arguments, error in (
        (("nosuch",), "nosuch: neither a file nor a preset"),
        (("quick", "data.size=100x112"), "the nearest to 100 is 96"),
        (("quick", "--profile", tmp_path / "no" / "file"), "there is no folder"),
    ):
        ended = sonotrain("bench", "step", *arguments)

        assert ended.status == 2
        assert error in ended.error
