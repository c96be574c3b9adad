"""What happens to servers and buckets in the middle of an epoch: it costs time, or it is told, and nothing else."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
import torch

from data_pipeline import Batch, Dataset, Fault, open_dataset, plan_epoch, stream_batches
from data_pipeline.nodecache import NodeCache
from data_pipeline.objectstore import Store
from data_pipeline.s3store import S3Store
from tests.system.radosgw import Gateway

SIZE = (32, 48)
BATCH = 6
SEEN = 3
"""Batches taken before something happens: the epoch's other twenty are not all on their way by then."""

SMALL = """
output: {output}
data: {{uri: "{uri}", size: [112, 112], cache: {cache}}}
network: {{widths: [4, 4, 8, 8, 8]}}
discriminators: {{widths: [4, 4, 4, 4], strides: [2, 2, 1, 1, 1]}}
training: {{epochs: 1, batch: 4, timeout_minutes: 1}}
folds: [1, 2, 3]
"""


@pytest.fixture(scope="module")
def made(scans):
    return scans(138, smallest=300, largest=420)


@pytest.fixture(scope="module")
def folder(packed, made) -> Dataset:
    """The scans in a folder, which nothing happens to: more than a dozen shards."""
    dataset = packed(made, "npy")
    assert len(dataset.index.shards) > 12
    return dataset


@pytest.fixture(scope="module")
def place(s3: Gateway, folder: Dataset) -> str:
    """The same dataset in a bucket."""
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket="faults")
    for path in Path(folder.uri).iterdir():
        client.upload_file(str(path), "faults", f"set/{path.name}")
    return "s3://faults/set"


@pytest.fixture(scope="module")
def places(folder: Dataset):
    return plan_epoch(folder.index, None, 3, 1, BATCH).for_rank(1, 0)


@pytest.fixture(scope="module")
def undisturbed(folder: Dataset, places) -> list[Batch]:
    return list(stream_batches(folder, places, SIZE))


@pytest.fixture(params=["streamed", "cached"])
def opened(request: pytest.FixtureRequest, place: str, tmp_path: Path):
    """The dataset read through a store of one's own, straight or by way of the node's disk."""

    def open_with(store: Store) -> Dataset:
        assert store.exists("index.json")
        dataset = open_dataset(place)
        cache = NodeCache(tmp_path / "cache", 1 << 30) if request.param == "cached" else None
        return replace(dataset, stores=(store,) * len(dataset.stores), cache=cache)

    return open_with


@pytest.fixture
def server(s3: Gateway) -> Iterator[Gateway]:
    """The server, which is well again afterwards."""
    yield s3
    s3.restore()


@pytest.fixture
def changed(place: str):
    """A function that turns one bit of an object around, which is turned back afterwards."""
    client = boto3.session.Session().client("s3")
    turned: list[tuple[str, int]] = []

    def turn(name: str, offset: int) -> None:
        data = bytearray(client.get_object(Bucket="faults", Key=f"set/{name}")["Body"].read())
        data[offset] ^= 1
        client.put_object(Bucket="faults", Key=f"set/{name}", Body=bytes(data))

    def change(name: str, offset: int) -> None:
        turned.append((name, offset))
        turn(name, offset)

    yield change
    for name, offset in turned:
        turn(name, offset)


def assert_equal(batches: list[Batch], expected: list[Batch]) -> None:
    assert [batch.keys for batch in batches] == [batch.keys for batch in expected]
    for batch, other in zip(batches, expected, strict=True):
        assert torch.equal(batch.image, other.image)
        assert torch.equal(batch.mask, other.mask)


def test_a_server_that_is_frozen_for_a_while_costs_only_time(
    server: Gateway, opened, place: str, places, undisturbed: list[Batch]
) -> None:
    store = S3Store(place, read_timeout=1, patience=60)
    epoch = stream_batches(opened(store), places, SIZE)
    batches = [next(epoch) for _ in range(SEEN)]
    server.freeze()
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, epoch)
        time.sleep(3)
        server.thaw()
        batches += rest.result(60)
    assert_equal(batches, undisturbed)
    assert store.counters.snapshot()["timeouts"] >= 1


def test_a_server_that_is_killed_and_started_again_costs_only_time(
    server: Gateway, opened, place: str, places, undisturbed: list[Batch]
) -> None:
    """With time-outs and patience as they are for everybody."""
    store = S3Store(place)
    epoch = stream_batches(opened(store), places, SIZE)
    batches = [next(epoch) for _ in range(SEEN)]
    server.kill()
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, epoch)
        time.sleep(2)
        server.start()
        batches += rest.result(60)
    assert_equal(batches, undisturbed)
    assert store.counters.snapshot()["retries"] >= 1


def test_a_server_that_is_gone_for_good_is_an_error_in_the_stated_time(
    server: Gateway, opened, place: str, places, undisturbed: list[Batch]
) -> None:
    epoch = stream_batches(opened(S3Store(place, read_timeout=1, patience=3)), places, SIZE)
    batches = [next(epoch) for _ in range(SEEN)]
    server.kill()
    killed = time.monotonic()
    with pytest.raises(Fault, match=rf"^{place}/shard-.*: no connection to {server.endpoint} for \d+ s; is the server"):
        batches += epoch
    # The patience counts from the begin of a try, which may be before the kill; a busy machine takes its time to read.
    assert 2 <= time.monotonic() - killed < 3 + 15
    assert_equal(batches, undisturbed[: len(batches)])


def test_a_server_that_answers_nothing_any_more_is_an_error_in_the_stated_time(
    server: Gateway, opened, place: str, places, undisturbed: list[Batch]
) -> None:
    epoch = stream_batches(opened(S3Store(place, read_timeout=1, patience=3)), places, SIZE)
    batches = [next(epoch) for _ in range(SEEN)]
    server.freeze()
    frozen = time.monotonic()
    with pytest.raises(Fault, match=rf"^{place}/shard-.*: the S3 server {server.endpoint} was silent for \d+ s"):
        batches += epoch
    assert 2 <= time.monotonic() - frozen < 3 + 1 + 15
    assert_equal(batches, undisturbed[: len(batches)])


def test_one_changed_byte_is_named_and_nothing_of_it_comes_out(
    opened, place: str, places, undisturbed: list[Batch], changed
) -> None:
    dataset = opened(S3Store(place))
    sample = dataset.index.samples[places[len(places) // 2, 1]]
    shard = dataset.index.shards[sample.shard]
    changed(shard.name, sample.offset + sample.length // 2)
    batches: list[Batch] = []
    with pytest.raises(Fault, match=rf"{place}/{shard.name}.*bytes are not those that were written"):
        batches += stream_batches(dataset, places, SIZE)
    assert_equal(batches, undisturbed[: len(batches)])
    assert not any(sample.key in batch.keys for batch in batches)


def test_a_shard_that_changes_in_the_middle_of_an_epoch_is_named(
    opened, place: str, places, undisturbed: list[Batch], changed
) -> None:
    dataset = opened(S3Store(place))
    epoch = stream_batches(dataset, places, SIZE)
    batches = [next(epoch) for _ in range(SEEN)]
    sample = dataset.index.samples[places[-1, -1] if places[-1, -1] not in places[:-1] else places[-1, 0]]
    shard = dataset.index.shards[sample.shard]
    changed(shard.name, sample.offset + sample.length // 2)
    with pytest.raises(Fault, match=rf"{place}/{shard.name}.*bytes are not those that were written"):
        batches += epoch
    assert len(batches) >= SEEN
    assert_equal(batches, undisturbed[: len(batches)])


@pytest.mark.slow
def test_training_ends_at_a_changed_byte_and_has_learnt_nothing_of_it(
    folder: Dataset, place: str, tmp_path: Path, changed
) -> None:
    sample = folder.index.samples[-1]
    shard = folder.index.shards[sample.shard]
    changed(shard.name, sample.offset + sample.length // 2)
    (tmp_path / "small.yaml").write_text(SMALL.format(uri=place, cache=tmp_path / "cache", output=tmp_path / "run"))
    call = [sys.executable, "-P", "-m", "launch.cli", "train", str(tmp_path / "small.yaml")]
    ended = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 1
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
    assert f"{place}/{shard.name}" in line
    assert not list((tmp_path / "run").rglob("*.safetensors"))
