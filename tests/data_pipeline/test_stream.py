import gc
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data_pipeline
from data_pipeline import Dataset, Fault, NodeCache, Scan, open_dataset, plan_epoch, resize_mask, stream_batches
from data_pipeline.stream import BATCHES_AHEAD, SHARDS_AHEAD, stream_scans
from tests.data_pipeline.counting_store import counted
from tests.waiting import wait_until

SIZE = (32, 48)
READERS = (1, 3, 8)


@pytest.fixture(scope="module")
def made(scans):
    return scans(90, largest=300)


@pytest.fixture(scope="module")
def dataset(packed, made) -> Dataset:
    """Ninety scans in three shards."""
    dataset = packed(made, "npy")
    assert len(dataset.index.shards) == 3
    return dataset


@pytest.fixture(scope="module")
def places(dataset):
    """Rank 1's part of an epoch: twelve batches of four, the last one filled up."""
    plan = plan_epoch(dataset.index, None, seed=3, epoch=1, global_batch=8)
    assert not plan.counted.all()
    return plan.for_rank(2, 1)


@pytest.fixture(autouse=True)
def threads():
    """Gives the threads that the test has started so far; at its end none may be left."""
    before = set(threading.enumerate())

    def started():
        return set(threading.enumerate()) - before

    yield started
    wait_until(lambda: not started(), seen=started)


# What comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readers", READERS)
def test_batches_are_the_plan_carried_out_whatever_the_number_of_readers(dataset, made, places, readers):
    batches = list(stream_batches(dataset, places, SIZE, readers))
    assert [list(batch.keys) for batch in batches] == [[f"scan-{number:03d}" for number in row] for row in places]
    for batch, row in zip(batches, places, strict=True):
        for tensor in (batch.image, batch.mask):
            assert tensor.dtype == torch.uint8
            assert tensor.shape == (4, 1, *SIZE)
        assert set(batch.mask.unique().tolist()) <= {0, 1}
        for place, number in enumerate(row):
            picture = Image.fromarray(made[number].image).resize(SIZE[::-1], Image.Resampling.BILINEAR)
            assert np.array_equal(batch.image[place, 0], np.asarray(picture))
            assert np.array_equal(batch.mask[place, 0], resize_mask(made[number].mask, SIZE))
    assert any(batch.mask.any() for batch in batches)


@pytest.mark.parametrize("done", [1, 7, 11, 12])
def test_starting_in_the_middle_gives_the_rest_of_the_whole(dataset, places, done):
    whole = list(stream_batches(dataset, places, SIZE))[done:]
    rest = list(stream_batches(dataset, places[done:], SIZE))
    assert len(rest) == len(places) - done
    for one, other in zip(whole, rest, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.mask, other.mask)


@pytest.mark.parametrize("readers", READERS)
def test_scans_come_in_the_order_asked_for_and_at_their_own_resolution(dataset, made, readers):
    positions = [7, 88, 7, 0, 41, 40, 39]
    found = list(stream_scans(dataset, positions, readers))
    assert [scan.key for scan in found] == [made[position].key for position in positions]
    for scan, position in zip(found, positions, strict=True):
        assert np.array_equal(scan.image, made[position].image)
        assert np.array_equal(scan.mask, made[position].mask)
        assert scan.spacing == made[position].spacing


def test_nothing_asked_for_is_nothing_read(dataset, places):
    assert list(stream_scans(dataset, [])) == []
    assert list(stream_batches(dataset, places[:0], SIZE)) == []


def test_only_what_is_asked_for_is_read(dataset, places, tmp_path):
    watched, store = counted(dataset, tmp_path / "log")
    list(stream_batches(watched, places[9:], SIZE, readers=2))
    assert len(store.noted("read")) == places[9:].size


@pytest.mark.parametrize("cached", [False, True])
def test_jumping_to_nine_tenths_of_an_epoch_costs_what_starting_it_costs(packed, tmp_path, cached):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (300, 400), dtype=np.uint8) for _ in range(180)]
    equal = [Scan(f"scan-{number:03d}", image, image > 99, "p", "p", "", None) for number, image in enumerate(images)]
    dataset = packed(equal, "npy")
    assert len(dataset.index.shards) >= 18
    places = plan_epoch(dataset.index, None, 0, 0, 2).for_rank(2, 1)
    begun = BATCHES_AHEAD + 1
    reads, fetched = [], []
    for done in (0, 9 * len(places) // 10):
        watched, store = counted(dataset, tmp_path / f"log-{done}")
        if cached:
            watched = replace(watched, cache=NodeCache(tmp_path / f"cache-{done}", 1 << 30))
        batches = stream_batches(watched, places[done:], SIZE, readers=2)
        next(batches)
        if not cached:
            wait_until(lambda store=store: len(store.noted("read")) == begun)
        batches.close()
        reads.append(store.bytes_read())
        fetched.append(len(store.noted("download")))
    if cached:
        assert reads == [0, 0]
        needed = {dataset.index.samples[position].shard for position in places[:begun].ravel()}
        assert all(count <= len(needed) + SHARDS_AHEAD + 1 for count in fetched)
    else:
        assert reads[1] == reads[0] < 0.04 * sum(sample.length for sample in dataset.index.samples)


def test_reading_runs_ahead_of_a_slow_training_and_not_away_from_it(dataset, places, tmp_path):
    watched, store = counted(dataset, tmp_path / "log")
    batches = stream_batches(watched, places[:, :1].repeat(6, axis=0), SIZE, readers=2)
    next(batches)
    wait_until(lambda: len(store.noted("read")) >= 5)
    time.sleep(0.5)
    assert len(store.noted("read")) < 24, "one batch taken, a few ready, a few in the readers' hands"
    batches.close()


# What is damaged ---------------------------------------------------------------------------------------------------


def damaged(dataset: Dataset, tmp_path: Path, position: int, damage) -> Dataset:
    """A copy whose sample at this position of the index has its bytes changed by damage(slice) in place."""
    for path in Path(dataset.uri).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    sample = dataset.index.samples[position]
    shard = tmp_path / dataset.index.shards[sample.shard].name
    data = bytearray(shard.read_bytes())
    whole = data[sample.offset : sample.offset + sample.length]
    damage(whole)
    data[sample.offset : sample.offset + sample.length] = whole
    shard.write_bytes(data)
    return open_dataset(str(tmp_path))


def garble_first_header(data: bytearray) -> None:
    data[100] ^= 0xFF


def garble_mask_header(data: bytearray) -> None:
    data[data.index(b".mask.png")] ^= 0xFF


def garble_mask(data: bytearray) -> None:
    data[data.index(b"IDAT") + 8] ^= 0xFF


def garble_image(data: bytearray) -> None:
    data[data.index(b"NUMPY")] ^= 0xFF


def wipe(data: bytearray) -> None:
    data[:] = bytes(len(data))


DAMAGES = [garble_first_header, garble_mask_header, garble_mask, garble_image, wipe]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("readers", [1, 4])
def test_a_damaged_sample_raises_a_fault_that_names_it_after_the_batches_before_it(
    dataset, places, tmp_path, threads, damage, readers
):
    position = int(places[6, 2])
    broken = damaged(dataset, tmp_path, position, damage)
    batches = stream_batches(broken, places, SIZE, readers)
    for row in places[:6]:
        assert list(next(batches).keys) == [broken.index.samples[position].key for position in row]
    with pytest.raises(Fault) as told:
        next(batches)
    shard = broken.index.shards[broken.index.samples[position].shard].name
    assert str(told.value).startswith(f"{tmp_path}/{shard}: scan-{position:03d}: ")
    assert "\n" not in str(told.value)
    # The error is still held here, and with it all that its traceback refers to.
    wait_until(lambda: not threads())


@pytest.mark.parametrize("readers", [1, 4])
def test_scans_end_with_a_fault_and_without_threads_too(dataset, tmp_path, threads, readers):
    broken = damaged(dataset, tmp_path, 40, garble_mask)
    scans = stream_scans(broken, broken.positions(), readers)
    with pytest.raises(Fault, match="scan-040: its bytes are not those that were written") as told:
        list(scans)
    wait_until(lambda: not threads(), seen=lambda: told)


def test_a_truncated_shard_raises_a_fault_that_names_it(dataset, places, tmp_path):
    broken = damaged(dataset, tmp_path, 0, lambda data: None)
    shard = tmp_path / broken.index.shards[broken.index.samples[places[6, 2]].shard].name
    os.truncate(shard, 100_000)
    with pytest.raises(Fault, match=rf"^{shard} does not hold \d+ bytes at offset \d+: it is truncated"):
        list(stream_batches(broken, places, SIZE))


def test_a_missing_shard_raises_a_fault_that_names_it(dataset, places, tmp_path):
    broken = damaged(dataset, tmp_path, 0, lambda data: None)
    shard = tmp_path / broken.index.shards[broken.index.samples[places[6, 2]].shard].name
    shard.unlink()
    with pytest.raises(Fault, match=f"{shard} is missing"):
        list(stream_batches(broken, places, SIZE))


# What is left behind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 1, 5])
@pytest.mark.parametrize("leave", ["close", "forget"])
@pytest.mark.parametrize("stream", ["batches", "scans"])
def test_a_stream_that_is_left_early_leaves_no_thread(dataset, places, threads, taken, leave, stream):
    items = stream_batches(dataset, places, SIZE, 3) if stream == "batches" else stream_scans(dataset, range(90), 3)
    for _ in range(taken):
        next(items)
    if taken:
        assert threads()
    if leave == "close":
        items.close()
    del items
    gc.collect()
    wait_until(lambda: not threads())


def test_an_error_in_the_training_leaves_no_thread(dataset, places, threads):
    def train():
        for _ in stream_batches(dataset, places, SIZE):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    gc.collect()
    wait_until(lambda: not threads())


def test_a_process_that_ends_in_the_middle_of_a_stream_does_end(dataset):
    program = (
        "import sys; from data_pipeline import open_dataset, plan_epoch, stream_batches\n"
        "dataset = open_dataset(sys.argv[1])\n"
        "batches = stream_batches(dataset, plan_epoch(dataset.index, None, 0, 0, 4).order, (32, 32))\n"
        "print(len(next(batches).keys))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(data_pipeline.__file__).parents[1])}
    call = [sys.executable, "-c", program, dataset.uri]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")
