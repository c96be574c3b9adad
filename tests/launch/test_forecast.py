"""What is said of a job before it starts, against a count by hand over its ranks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from data_pipeline import Dataset, Fault, NodeCache, Scan, WrongCall, open_dataset, plan_epoch, write_dataset
from launch.forecast import Forecast, forecast, forecast_of
from launch.forecast_table import show_forecast
from launch.job import Job
from launch.reading import Cache, cache_of, node_readings
from trainer.config import Config, load_config

NODES, PROCESSES = 2, 2
FOLDS = 3


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """106 scans of noise in three folds, each in several shards of a megabyte."""
    random = np.random.default_rng(0)
    made = []
    for number in range(106):
        height, width = (int(side) for side in random.integers(200, 300, 2))
        image = random.integers(0, 256, (height, width), dtype=np.uint8)
        patient = f"patient-{number}"
        made.append(Scan(f"scan-{number:03d}", image, image > 127, patient, patient, "benign", None))
    folder = str(tmp_path_factory.mktemp("noise"))
    folds = {scan.key: number * FOLDS // len(made) + 1 for number, scan in enumerate(made)}
    write_dataset(folder, "noise", made, folds, {}, shard_mb=1)
    return open_dataset(folder)


@pytest.fixture(scope="module")
def configure(noise: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """A configuration that trains on the noise, with changes."""
    output = tmp_path_factory.mktemp("runs") / "run"

    def configured(*changes: str) -> Config:
        fixed = [f"data.uri={noise.uri}", f"output={output}", "data.size=64x64", "training.batch=8"]
        return load_config("quick", [*fixed, "discriminators.strides=[1, 1, 1, 1, 1]", *changes])

    return configured


@pytest.fixture(scope="module")
def of_crossval(noise: Dataset, configure: Callable[..., Config]) -> Forecast:
    """A cross-validation on one or two nodes."""
    return forecast("crossval", {"": configure()}, noise, range(1, NODES + 1), PROCESSES)


def walked(config: Config, dataset: Dataset, node: int) -> tuple[list[int], list[int]]:
    """The positions that the ranks of a node come to in the first epoch, one by one, and those that they judge."""
    world = NODES * PROCESSES
    plan = plan_epoch(dataset.index, [2, 3], config.seed, 0, config.training.batch)
    places, judged = [], []
    for rank in range(node * PROCESSES, (node + 1) * PROCESSES):
        for row in plan.for_rank(world, rank):
            places += [int(position) % len(dataset.index.samples) for position in row]
        judged += [position for position, sample in enumerate(dataset.index.samples) if sample.fold == 1][rank::world]
    return places, judged


@pytest.mark.parametrize("weights", ["[]", "[1.5]"])
def test_a_node_reads_what_its_ranks_come_to(noise: Dataset, configure: Callable[..., Config], weights: str) -> None:
    config = configure(f"data.weights={weights}")
    if weights != "[]":
        noise = replace(noise, index=replace(noise.index, weights=(1.5,) * len(noise.index.samples)))
    samples = noise.index.samples
    for reading in node_readings(config, noise, NODES, PROCESSES):
        places, judged = walked(config, noise, reading.node)
        assert reading.ranks == (2 * reading.node, 2 * reading.node + 1)
        assert reading.scans == len(set(places))
        assert reading.shards == len({samples[position].shard for position in places}) > 1
        assert reading.bytes == sum(samples[position].length for position in places)
        assert reading.held_out_scans == len(judged)
        assert reading.held_out_bytes == sum(samples[position].length for position in judged)
        assert (reading.resident_scans, reading.resident_bytes) == (len(set(places)), len(set(places)) * 2 * 64 * 64)


def test_a_cache_fetches_each_shard_once_for_all_ranks_of_a_node(
    noise: Dataset, configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure()
    shards = noise.index.shards
    whole = sum(shard.bytes for shard in shards)
    cached = replace(noise, cache=NodeCache(tmp_path, whole))
    for reading in node_readings(config, cached, NODES, PROCESSES):
        places, judged = walked(config, noise, reading.node)
        for told, positions in ((reading.bytes, places), (reading.held_out_bytes, judged)):
            touched = {noise.index.samples[position].shard for position in positions}
            assert told == sum(shards[shard].bytes for shard in touched)
    assert cache_of(config, noise, NODES) == "none"
    assert cache_of(config, cached, NODES) == "all"
    # Two places of a node's ranks together, each of which reads one shard and may begin with the next.
    small, largest = configure("training.batch=4"), max(shard.bytes for shard in shards)
    assert whole > 4 * largest
    for limit, keeps in ((whole - 1, "part"), (4 * largest, "part"), (4 * largest - 1, "too small")):
        assert cache_of(small, replace(noise, cache=NodeCache(tmp_path, limit)), NODES) == keeps
    too_small = replace(noise, cache=NodeCache(tmp_path, 1 << 20))
    assert cache_of(config, too_small, NODES) == "too small"
    places, _ = walked(config, noise, 0)
    read = node_readings(config, too_small, NODES, PROCESSES)[0].bytes
    assert read == sum(noise.index.samples[position].length for position in places)


def test_memory_that_does_not_hold_all_scans_keeps_some(noise: Dataset, configure: Callable[..., Config]) -> None:
    holds = 50
    config = configure(f"data.resident_gb={holds * 2 * 64 * 64 / 1e9}")
    kept = [reading.resident_scans for reading in node_readings(config, noise, NODES, PROCESSES)]
    seen = [reading.scans for reading in node_readings(config, noise, NODES, PROCESSES)]
    assert all(0 < part < all_of_them for part, all_of_them in zip(kept, seen, strict=True))
    assert sum(kept) <= holds + NODES * PROCESSES  # each rank may share a scan or so with its neighbour
    none = node_readings(configure("data.resident_gb=0"), noise, NODES, PROCESSES)
    assert [reading.resident_bytes for reading in none] == [0, 0]


def test_steps_are_those_of_each_fold_held_out(of_crossval: Forecast, noise: Dataset) -> None:
    in_folds = noise.folds()
    told = of_crossval.as_json()
    assert (told["world_size"], told["global_batch"], told["batch_per_process"]) == (4, 8, 2)
    for training, (fold, count) in zip(told["trainings"], in_folds.items(), strict=True):
        others = sum(in_folds.values()) - count
        assert (training["fold"], training["scans"]) == (fold, others)
        assert training["steps_per_epoch"] == -(-others // 8)
        assert training["steps"] == 12 * training["steps_per_epoch"]
    assert told["steps_per_epoch"] == told["trainings"][0]["steps_per_epoch"]
    assert told["steps_of_all"] == sum(training["steps"] for training in told["trainings"])
    assert json.loads(json.dumps(told)) == told | {
        "nodes": [node | {"ranks": list(node["ranks"])} for node in told["nodes"]]
    }


def test_a_node_s_memory_is_that_of_its_processes_and_what_they_share(of_crossval: Forecast, noise: Dataset) -> None:
    memory = of_crossval.size.memory
    shared = len(noise.index.samples) * 2 * 64 * 64  # each scan is trained on with another fold held out
    assert of_crossval.resident_in_the_end == shared
    assert of_crossval.host_memory(1, gpus=False) == 2 * memory.on_cpu + shared
    assert of_crossval.host_memory(0, gpus=True) == 2 * memory.beside_gpu + memory.checkpoint + shared
    assert memory.runtime > 100e6  # measured: Python with torch and DeepSpeed
    one_node, both = of_crossval.sizes
    assert (one_node.world_size, one_node.batch, both.world_size, both.batch) == (2, 4, 4, 2)
    assert one_node.memory.scans == 2 * both.memory.scans


def test_it_is_shown_on_eighty_columns(of_crossval: Forecast, capsys: pytest.CaptureFixture[str]) -> None:
    large = {"cache_bytes": 555 * 10**9, "dataset_bytes": 999 * 10**9, "resident_in_the_end": 868_400}
    for keeps in get_args(Cache):
        show_forecast(replace(of_crossval, cache=keeps, **large))
        shown = capsys.readouterr().out
        lines = shown.splitlines()
        assert max(len(line) for line in lines if not line.startswith("dataset: ")) <= 80  # a path is shown whole
    assert "2 x 2 processes = 4, each with 2 scans of a global batch of 8" in shown
    assert "3 folds held out: 3 trainings" in shown
    for part in ("weights", "Adam's moments", "activations", "libraries, measured here", "together"):
        assert part in shown

    many = tuple(replace(of_crossval.nodes[1], node=node, ranks=(node,)) for node in range(20))
    show_forecast(replace(of_crossval, nodes=many))
    rows = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert rows[:8] == [*"0123456", "13 more"]


def test_a_size_that_cannot_share_the_batch_is_named(noise: Dataset, configure: Callable[..., Config]) -> None:
    with pytest.raises(WrongCall, match=r"^with 3 of 4 nodes: training.batch=8 cannot be shared by 3 processes"):
        forecast("train", {"": configure()}, noise, range(1, 5), 1)
    variants = {"narrow": configure(), "wide": configure("training.batch=9")}
    with pytest.raises(WrongCall, match=r"^variant wide: training.batch=9 cannot be shared by 2 processes"):
        forecast("crossval", variants, noise, range(1, 2), 2)


def test_a_run_of_another_configuration_in_the_output_is_refused(
    noise: Dataset, configure: Callable[..., Config], tmp_path: Path
) -> None:
    from trainer.run_folder import RunFolder

    RunFolder(tmp_path / "run").begin(configure(f"output={tmp_path}/run"), noise.index.digest)
    other = configure(f"output={tmp_path}/run", "seed=5")
    with pytest.raises(WrongCall, match=r"holds a run with seed=0, and this one has 5"):
        forecast("train", {"": other}, noise, range(1, 2), 1)


def test_a_dataset_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongCall, match=f"{tmp_path}/nothing holds no dataset"):
        forecast_of(Job(("train", "quick", f"data.uri={tmp_path}/nothing")))
    for name, value in {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setattr("data_pipeline.patience.FIRST_PATIENCE", 0.5)
    with pytest.raises((Fault, WrongCall), match="s3://scans/bus-bra"):
        forecast_of(Job(("train", "quick", "data.uri=s3://scans/bus-bra")))


def test_a_study_has_a_training_for_each_variant_and_fold(noise: Dataset, configure: Callable[..., Config]) -> None:
    narrow = configure("data.unseen=[2]", "network.widths=[8, 8]", "discriminators.widths=[8, 8, 8, 8]")
    variants = {"narrow": narrow, "wide": configure("data.unseen=[2]", "training.epochs=3")}
    said = forecast("crossval", variants, noise, range(1, 2), 1)
    assert [(training.variant, training.fold) for training in said.trainings] == [
        ("narrow", 1), ("wide", 1), ("narrow", 3), ("wide", 3),
    ]  # fmt: skip
    assert [training.epochs for training in said.trainings] == [12, 3, 12, 3]
    learnt = [len(noise.positions([fold])) for fold in (3, 3, 1, 1)]
    assert [training.scans for training in said.trainings] == learnt
    assert said.hungriest == "wide"


def test_a_search_is_forecast_by_one_of_its_trials(noise: Dataset) -> None:
    changes = (f"data.uri={noise.uri}", "data.size=64x64", "training.batch=8", "discriminators.strides=[1, 1, 1, 1, 1]")
    verb = ("tune", "quick", *changes, "tune.folds=[1, 2]", "tune.processes=2", "tune.seeds=[3, 4]")
    said = forecast_of(Job(verb, nodes=3, processes=4))
    assert (said.size.world_size, said.processes) == (2, 2)
    assert [training.fold for training in said.trainings] == [1, 2]
    # The last fold stays unseen, so that a trial learns from the one that is left.
    learnt = [len(noise.positions([fold])) for fold in (2, 1)]
    assert [training.scans for training in said.trainings] == learnt
