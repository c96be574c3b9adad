import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import data_pipeline
from data_pipeline import EpochPlan, Index, Sample, Shard, WrongCall, plan_epoch, rank_places

WORLDS = (1, 2, 4, 8)


def index_of(folds_by_shard: list[list[int]]) -> Index:
    """An index of shards that hold samples of these folds."""
    samples: list[Sample] = []
    for shard, folds in enumerate(folds_by_shard):
        for place, fold in enumerate(folds):
            name = f"scan-{len(samples)}"
            samples.append(Sample(name, name, name, fold, "benign", 300, 400, None, shard, place * 1024, 1024, 0))
    shards = [
        Shard(f"shard-{number}.tar", len(folds) * 1024, f"{number:064x}") for number, folds in enumerate(folds_by_shard)
    ]
    return Index("noise", "png", tuple(shards), tuple(samples), {})


SMALL = index_of([[1, 2, 1, 3], [2, 2, 1], [3, 1, 1, 2, 3], [1]])

indexes = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=9), min_size=1, max_size=9).map(index_of)
seeds = st.integers(0, 2**40)
epochs = st.integers(0, 500)
global_batches = st.integers(1, 5).map(lambda times: 8 * times)


def reading_order(plan: EpochPlan) -> list[int]:
    """The samples place after place, without those that fill up."""
    return [int(position) for position in plan.order.T[plan.counted.T]]


# Contract ---------------------------------------------------------------------------------------------------


@given(indexes, seeds, epochs, st.integers(1, 40), st.booleans())
def test_every_sample_counts_exactly_once(index, seed, epoch, global_batch, shuffle):
    plan = plan_epoch(index, None, seed, epoch, global_batch, shuffle)
    assert sorted(plan.order[plan.counted]) == list(range(len(index.samples)))
    assert plan.samples == len(index.samples)
    assert plan.batches == -(-len(index.samples) // global_batch)
    assert plan.order.shape == plan.counted.shape == (plan.batches, global_batch)


@given(indexes, seeds, epochs, st.integers(1, 40))
def test_the_last_batch_is_filled_up_with_the_first_at_the_same_places(index, seed, epoch, global_batch):
    plan = plan_epoch(index, None, seed, epoch, global_batch)
    assert plan.counted[:-1].all()
    filling = ~plan.counted[-1]
    assert filling.sum() == plan.order.size - len(index.samples)
    assert list(filling) == sorted(filling), "what fills up comes last"
    if plan.batches > 1:
        assert list(plan.order[-1, filling]) == list(plan.order[0, filling])


@given(indexes, seeds, st.integers(1, 64))
def test_a_batch_larger_than_the_dataset_holds_it_again_and_again(index, seed, beyond):
    count = len(index.samples)
    plan = plan_epoch(index, None, seed, 0, count + beyond)
    assert plan.batches == 1
    first = [int(position) for position in plan.order[0, :count]]
    assert sorted(first) == list(range(count))
    assert list(plan.order[0]) == [first[place % count] for place in range(count + beyond)]
    assert plan.counted.sum() == count


@given(indexes, seeds, epochs, global_batches, st.sets(st.integers(1, 4), min_size=1))
def test_every_rank_gets_equal_batches_which_side_by_side_are_the_same_at_any_world_size(
    index, seed, epoch, global_batch, folds
):
    assume(folds & {sample.fold for sample in index.samples})
    alone = plan_epoch(index, folds, seed, epoch, global_batch).for_rank(1, 0)
    for world in WORLDS:
        plan = plan_epoch(index, folds, seed, epoch, global_batch)
        shares = [plan.for_rank(world, rank) for rank in range(world)]
        assert {share.shape for share in shares} == {(plan.batches, global_batch // world)}
        assert np.array_equal(np.concatenate(shares, axis=1), alone)


@given(indexes, seeds, epochs, global_batches, st.sampled_from(WORLDS))
def test_a_rank_reads_its_share_and_at_most_two_shards_more(index, seed, epoch, global_batch, world):
    plan = plan_epoch(index, None, seed, epoch, global_batch)
    shard_of = [sample.shard for sample in index.samples]
    in_all = Counter(shard_of)
    reading = reading_order(plan)
    assert len(list(groupby(reading, key=shard_of.__getitem__))) == len(in_all), "a shard's samples lie together"
    if plan.batches == 1:
        return  # it repeats itself, wherever its samples lie
    for rank in range(world):
        mine = {int(position) for position in plan.for_rank(world, rank).ravel()}
        begin = min(map(reading.index, mine))
        assert mine == set(reading[begin : begin + len(mine)]), "one contiguous part of the reading order"
        read = Counter(shard_of[position] for position in mine)
        partly = [shard for shard, count in read.items() if count < in_all[shard]]
        assert len(partly) <= 2
        touched = sum(index.shards[shard].bytes for shard in read)
        share = sum(index.samples[position].length for position in mine)
        assert touched <= share + sum(sorted(shard.bytes for shard in index.shards)[-2:])


@given(indexes, seeds, epochs, st.integers(1, 20), st.sets(st.integers(1, 4), min_size=1), st.booleans())
def test_only_the_folds_asked_for_are_read(index, seed, epoch, global_batch, folds, shuffle):
    wanted = [position for position, sample in enumerate(index.samples) if sample.fold in folds]
    if not wanted:
        with pytest.raises(WrongCall, match="no scan of noise is in folds"):
            plan_epoch(index, folds, seed, epoch, global_batch, shuffle)
        return
    plan = plan_epoch(index, folds, seed, epoch, global_batch, shuffle)
    assert sorted(plan.order[plan.counted]) == wanted
    assert set(plan.order.ravel()) == set(wanted)


def test_unshuffled_each_place_reads_a_stretch_of_the_index_in_its_order():
    plan = plan_epoch(SMALL, None, 3, 4, 5, shuffle=False)
    assert plan.order.tolist() == [[0, 3, 6, 9, 11], [1, 4, 7, 10, 12], [2, 5, 8, 9, 11]]
    assert plan.counted.tolist() == [[True] * 5, [True] * 5, [True] * 3 + [False] * 2]
    assert reading_order(plan) == list(range(13))


# Chance -----------------------------------------------------------------------------------------------------


def test_another_epoch_seed_or_dataset_gives_another_order_and_the_same_ones_the_same():
    index = index_of([[1] * 20] * 5)
    other = index_of([[1] * 20] * 4 + [[1] * 19 + [2]])
    orders = {
        tuple(plan_epoch(chosen, None, seed, epoch, 8).order.ravel())
        for chosen, seed, epoch in [(index, 0, 0), (index, 0, 1), (index, 1, 0), (index, 1, 1), (other, 0, 0)]
    }
    assert len(orders) == 5
    assert tuple(plan_epoch(index_of([[1] * 20] * 5), None, 1, 0, 8).order.ravel()) in orders


def test_over_epochs_every_sample_comes_first_and_last_about_equally_often():
    index = index_of([[1, 1], [1, 1], [1, 1], [1, 1]])
    orders = np.array([reading_order(plan_epoch(index, None, 5, epoch, 1)) for epoch in range(2000)])
    for place in (0, 1, 4, 7):
        # 250 expected; the standard deviation of a binomial count is 15.
        assert np.bincount(orders[:, place], minlength=8) == pytest.approx(np.full(8, 250), abs=75)


def test_folds_may_come_in_any_order_and_kind_of_collection():
    plans = [plan_epoch(SMALL, folds, 1, 2, 4).order.tolist() for folds in ([1, 3], (3, 1), {1, 3}, [3, 1, 1])]
    assert plans == [plans[0]] * 4


def test_another_process_with_another_hash_seed_makes_the_same_plan(packed):
    dataset = packed(12)
    program = (
        "import sys; from data_pipeline import open_dataset, plan_epoch\n"
        "print(plan_epoch(open_dataset(sys.argv[1]).index, {1, 3}, 7, 5, 4).order.tolist())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(data_pipeline.__file__).parents[1])}
    call = [sys.executable, "-c", program, dataset.uri]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == str(plan_epoch(dataset.index, {1, 3}, 7, 5, 4).order.tolist())


def splitmix64(seed: int):
    """Steele, Lea and Flood (2014), Figure 16, with Python's integers."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        word = seed
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        yield word ^ word >> 31


def recomputed(index: Index, folds: set[int], seed: int, epoch: int, global_batch: int) -> list[list[int]]:
    """The plan from its description, one sample after the other."""
    base = int.from_bytes(hashlib.sha256(f"{index.digest} {seed} {epoch}".encode()).digest()[:8], "big")
    of_sample = list(islice(splitmix64(base), len(index.samples)))
    of_shard = list(islice(splitmix64(2**64 - 1 - base), len(index.shards)))
    chosen = [position for position, sample in enumerate(index.samples) if sample.fold in folds]
    left = sorted(chosen, key=lambda position: (of_shard[index.samples[position].shard], of_sample[position]))
    longer = len(left) % global_batch or global_batch
    batches = -(-len(left) // global_batch)
    stretches = []
    for place in range(global_batch):
        length = batches if place < longer else batches - 1
        stretches.append(left[:length])
        left = left[length:]
    return [[stretch[batch % len(stretch)] for stretch in stretches] for batch in range(batches)]


def test_the_reference_is_splitmix64():
    assert list(islice(splitmix64(1234567), 3)) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_order_of_one_small_dataset_stays_what_it_was_in_every_version():
    order = plan_epoch(SMALL, {1, 2}, seed=7, epoch=3, global_batch=4).order.tolist()
    assert order == recomputed(SMALL, {1, 2}, 7, 3, 4)
    assert order == [[6, 9, 1, 2], [5, 8, 0, 12], [4, 10, 1, 2]]


@given(indexes, seeds, epochs, st.integers(1, 12))
def test_the_plan_is_what_its_description_says(index, seed, epoch, global_batch):
    assume(global_batch <= len(index.samples))
    plan = plan_epoch(index, None, seed, epoch, global_batch)
    assert plan.order.tolist() == recomputed(index, {1, 2, 3, 4}, seed, epoch, global_batch)


# Limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(), (1.5,) * 500_000 + (1.0,) * 500_000], ids=["each once", "weights"])
def test_an_epoch_of_a_million_samples_is_planned_in_under_a_second(weights):
    of_shard = [Sample("k", "p", "g", shard % 5 + 1, "benign", 300, 400, None, shard, 0, 1, 0) for shard in range(2000)]
    shards = tuple(Shard(f"shard-{number}.tar", 500, "0" * 64) for number in range(2000))
    index = Index("large", "png", shards, tuple(sample for sample in of_shard for _ in range(500)), {}, weights)
    vars(index)["digest"] = "0" * 64  # opening a dataset has computed it before anything is planned
    started = time.process_time()
    plan = plan_epoch(index, None, 0, 0, 256)
    mine = plan.for_rank(64, 5)
    taken = time.process_time() - started
    assert plan.samples == (1_250_000 if weights else 1_000_000)
    assert mine.shape == (plan.batches, 4)
    assert taken < 1


@pytest.mark.parametrize(("global_batch", "world"), [(4, 3), (1, 2), (10, 4), (2, 8)])
def test_a_global_batch_that_the_world_size_does_not_divide_is_named(global_batch, world):
    with pytest.raises(WrongCall, match=f"global batch of {global_batch} cannot be shared by {world} processes"):
        plan_epoch(SMALL, None, 0, 0, global_batch).for_rank(world, 0)


@pytest.mark.parametrize("rank", [-1, 2, 3])
def test_a_rank_outside_the_world_is_named(rank):
    with pytest.raises(WrongCall, match=f"rank {rank} is not one of 0 to 1"):
        rank_places(4, 2, rank)


@pytest.mark.parametrize("folds", [{9}, set()])
def test_folds_without_a_scan_are_a_wrong_call(folds):
    with pytest.raises(WrongCall, match="no scan of noise is in folds"):
        plan_epoch(SMALL, folds, 0, 0, 4)
