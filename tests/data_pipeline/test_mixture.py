import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from data_pipeline import (
    Dataset,
    Index,
    NodeCache,
    Sample,
    Scan,
    Shard,
    WrongCall,
    open_dataset,
    open_datasets,
    plan_epoch,
    resident_scans,
    stream_batches,
    stream_scans,
    write_dataset,
)
from data_pipeline.augment import augment

WORLDS = (1, 2, 4, 8)
SIZE = (32, 48)


@pytest.fixture(scope="module")
def place(scans, tmp_path_factory):
    """A factory of datasets of a name: where each lies."""

    def make(name: str, count: int, seed: int, codec: str = "png") -> str:
        made = scans(count, seed)
        folder = tmp_path_factory.mktemp("mixture") / name.replace("/", "-")
        folds = {scan.key: number // 2 % 3 + seed for number, scan in enumerate(made)}
        in_folds = sorted(made, key=lambda scan: (folds[scan.key], scan.key))
        write_dataset(str(folder), name, in_folds, folds, {}, codec, shard_mb=1)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def bus(place) -> str:
    return place("bus", 12, 1)


@pytest.fixture(scope="module")
def stu(place) -> str:
    return place("stu", 9, 2, "npy")


@pytest.fixture(scope="module")
def another_bus(place) -> str:
    return place("bus", 6, 3)


# As one -------------------------------------------------------------------------------------------------------------


def test_a_single_dataset_is_opened_as_it_is(bus):
    assert open_datasets([bus]).index == open_dataset(bus).index
    assert open_datasets([bus]).index.weights == ()


def test_keys_patients_and_groups_have_their_datasets_name_in_front_and_folds_stay(bus, stu):
    mixed = open_datasets([bus, stu])
    alone = [open_dataset(bus).index, open_dataset(stu).index]
    assert len(mixed.index.samples) == 21
    expected = [(index.name, sample) for index in alone for sample in index.samples]
    for sample, (name, own) in zip(mixed.index.samples, expected, strict=True):
        assert sample.key == f"{name}/{own.key}"
        assert sample.patient == f"{name}/{own.patient}"
        assert sample.group == f"{name}/{own.group}"
        assert (sample.fold, sample.label, sample.crc32) == (own.fold, own.label, own.crc32)
    assert mixed.folds() == {1: 4, 2: 8, 3: 7, 4: 2}
    assert mixed.index.shards == (*alone[0].shards, *alone[1].shards)
    assert mixed.index.name == "bus + stu"
    assert [part.index for part in mixed.parts] == alone


def test_a_name_that_comes_again_is_counted_so_that_no_keys_clash(bus, another_bus, place):
    third = place("bus-2", 4, 4)
    mixed = open_datasets([bus, another_bus, third])
    assert dict.fromkeys(sample.key.split("/")[0] for sample in mixed.index.samples) == dict.fromkeys(
        ["bus", "bus-2", "bus-2-2"]
    )
    assert len({sample.key for sample in mixed.index.samples}) == 22
    patients = {sample.patient for sample in mixed.index.samples}
    assert len(patients) == 6 + 3 + 2


def test_a_slash_in_a_name_does_not_hide_which_dataset_a_key_is_of(place, bus):
    mixed = open_datasets([place("a/b", 4, 5), bus])
    assert {sample.key.split("/")[0] for sample in mixed.index.samples} == {"a-b", "bus"}
    assert all(sample.key.count("/") == 1 for sample in mixed.index.samples)


def assert_equal_scans(found: Scan, written: Scan) -> None:
    assert np.array_equal(found.image, written.image)
    assert np.array_equal(found.mask, written.mask)
    assert (found.label, found.spacing) == (written.label, written.spacing)


@pytest.mark.parametrize("cached", [False, True])
def test_scans_of_all_datasets_are_read_from_their_own_stores(bus, another_bus, stu, cached, tmp_path):
    mixed = open_datasets([bus, stu, another_bus])
    if cached:
        mixed = replace(mixed, cache=NodeCache(tmp_path / "cache", 1 << 30))
    alone = [scan for uri in (bus, stu, another_bus) for scan in stream_scans(*everything(open_dataset(uri)))]
    found = list(stream_scans(*everything(mixed)))
    assert [scan.key.split("/")[1] for scan in found] == [scan.key for scan in alone]
    for one, other in zip(found, alone, strict=True):
        assert_equal_scans(one, other)


def everything(dataset: Dataset):
    return dataset, dataset.positions()


def test_equal_mixtures_have_equal_digests_and_others_do_not(bus, stu, another_bus):
    mixtures = [
        ([bus, stu], ()),
        ([stu, bus], ()),
        ([bus, another_bus], ()),
        ([bus, stu], (2, 1)),
        ([bus, stu], (1, 2)),
    ]
    digests = [open_datasets(uris, weights).index.digest for uris, weights in mixtures]
    assert len(set(digests)) == 5
    assert digests[0] == open_datasets([bus, stu], (1.0, 1)).index.digest


# Wrong calls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(), (1.0,)])
def test_no_dataset_at_all_is_a_wrong_call(weights):
    with pytest.raises(WrongCall, match="no dataset is named"):
        open_datasets([], weights)


def test_weights_that_are_not_as_many_as_datasets_are_a_wrong_call(bus, stu):
    with pytest.raises(WrongCall, match="1 weights are given for 2 datasets"):
        open_datasets([bus, stu], [1.0])


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_weight_that_is_none_is_a_wrong_call(bus, stu, weight):
    with pytest.raises(WrongCall, match="is no weight, which is above 0"):
        open_datasets([bus, stu], [1.0, weight])


def test_a_dataset_that_comes_twice_even_as_a_copy_is_a_wrong_call(bus, stu, tmp_path):
    for path in Path(bus).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for again in (bus, str(tmp_path)):
        with pytest.raises(WrongCall, match=f"{again} holds scans that another dataset in the list holds already"):
            open_datasets([bus, stu, again])


def test_a_place_without_a_dataset_is_named(bus, tmp_path):
    with pytest.raises(WrongCall, match=f"{tmp_path} holds no dataset"):
        open_datasets([bus, str(tmp_path)])


# Weights ------------------------------------------------------------------------------------------------------------

weight_of_set = st.sampled_from([2.0, 0.5, 0.25, 1.0, 3.0, 1.5, 0.1, 1 / 3, 2.75])


@st.composite
def weighted(draw):
    """An index of up to three datasets, each with shards of samples in folds 1 and 2, and with a weight."""
    samples, shards, weights = [], [], []
    for dataset in range(draw(st.integers(1, 3))):
        weight = draw(weight_of_set)
        for count in draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)):
            fold = draw(st.integers(1, 2))
            for place in range(count):
                name = f"{dataset}/scan-{len(samples)}"
                samples.append(Sample(name, name, name, fold, "", 300, 400, None, len(shards), place * 1024, 1024, 0))
                weights.append(weight)
            shards.append(Shard(f"shard-{len(shards)}.tar", count * 1024, f"{len(shards):064x}"))
    return Index("mixed", "png", tuple(shards), tuple(samples), {}, tuple(weights))


seeds = st.integers(0, 2**40)


def in_epoch(index: Index, seed: int, epoch: int, folds=None, global_batch: int = 8) -> Counter:
    """How often each position comes in an epoch."""
    plan = plan_epoch(index, folds, seed, epoch, global_batch)
    counts = Counter((plan.order[plan.counted] % len(index.samples)).tolist())
    assert sum(counts.values()) == plan.samples
    return counts


@pytest.mark.parametrize(("weight", "times", "epochs"), [(2, 2, 1), (1, 1, 1), (0.5, 1, 2), (0.25, 1, 4), (2.25, 9, 4)])
@pytest.mark.parametrize("begin", [0, 1, 7])
def test_over_epochs_each_scan_is_seen_exactly_as_often_as_its_weight_says(bus, stu, weight, times, epochs, begin):
    index = open_datasets([bus, stu], [weight, 1]).index
    seen = sum((in_epoch(index, 3, epoch) for epoch in range(begin, begin + epochs)), Counter())
    assert [seen[position] for position in range(12)] == [times] * 12
    assert [seen[position] for position in range(12, 21)] == [epochs] * 9


@given(weighted(), seeds, st.integers(0, 50))
def test_a_weight_gives_each_scan_its_whole_part_every_epoch_and_the_rest_in_turn(index, seed, begin):
    seen: Counter = Counter()
    epochs = 12
    sizes = set()
    for epoch in range(begin, begin + epochs):
        now = in_epoch(index, seed, epoch)
        sizes.add(sum(now.values()))
        seen += now
        for position, weight in enumerate(index.weights):
            assert int(weight) <= now[position] <= math.ceil(weight)
    assert len(sizes) == 1, "every epoch is as long as the others"
    for weight in set(index.weights):
        counts = [seen[position] for position, own in enumerate(index.weights) if own == weight]
        assert max(counts) - min(counts) <= 1, "in turn"
        part = sum(counts) / epochs
        assert part == pytest.approx(weight * len(counts), abs=0.5) or part == 1


@given(weighted(), seeds, st.integers(0, 50), st.integers(1, 5))
def test_the_plan_of_a_mixture_is_the_same_at_any_world_size_and_resumed_anywhere(index, seed, epoch, eighths):
    global_batch = 8 * eighths
    alone = plan_epoch(index, None, seed, epoch, global_batch)
    distinct = alone.order[alone.counted].tolist()
    assert len(set(distinct)) == alone.samples, "a repetition has a number of its own"
    if alone.batches > 1:
        filling = ~alone.counted[-1]
        assert np.array_equal(alone.order[-1, filling], alone.order[0, filling])
    for world in WORLDS:
        again = plan_epoch(index, None, seed, epoch, global_batch)
        shares = [again.for_rank(world, rank) for rank in range(world)]
        assert np.array_equal(np.concatenate(shares, axis=1), alone.order)
    for done in range(alone.batches):
        assert np.array_equal(plan_epoch(index, None, seed, epoch, global_batch).order[done:], alone.order[done:])


@given(weighted(), seeds, st.integers(0, 50), st.integers(1, 5), st.sampled_from(WORLDS))
def test_a_rank_of_a_mixture_reads_its_share_and_at_most_two_shards_more(index, seed, epoch, eighths, world):
    plan = plan_epoch(index, None, seed, epoch, 8 * eighths)
    if plan.batches == 1:
        return
    repetition, position = np.divmod(plan.order, len(index.samples))
    reading = repetition * len(index.shards) + index.shard_of[position]  # a shard again is another reading
    in_all = Counter(reading[plan.counted].tolist())
    for rank in range(world):
        mine = plan.for_rank(world, rank)
        own = np.unique(mine)
        repetition, position = np.divmod(own, len(index.samples))
        read = Counter((repetition * len(index.shards) + index.shard_of[position]).tolist())
        partly = [shard for shard, count in read.items() if count < in_all[shard]]
        assert len(partly) <= 2
        bytes_of_readings = sum(1024 * in_all[shard] for shard in read)
        assert bytes_of_readings <= 1024 * own.size + 2 * 1024 * max(in_all.values())


@given(weighted(), seeds, st.integers(0, 50), st.integers(1, 2))
def test_only_the_folds_asked_for_come_and_weights_hold_in_them(index, seed, epoch, fold):
    wanted = [position for position, sample in enumerate(index.samples) if sample.fold == fold]
    assume(wanted)
    seen = in_epoch(index, seed, epoch, [fold])
    assert set(seen) <= set(wanted)
    for position in wanted:
        assert int(index.weights[position]) <= seen[position] <= math.ceil(index.weights[position])


def test_another_seed_takes_the_halves_of_a_dataset_in_another_order(bus, stu):
    index = open_datasets([bus, stu], [0.5, 1]).index
    taken = {frozenset(p for p in in_epoch(index, seed, 0) if p < 12) for seed in range(20)}
    assert len(taken) > 10
    assert all(len(some) == 6 for some in taken)


def test_each_epoch_takes_the_rest_of_a_half_and_then_begins_again(bus, stu):
    index = open_datasets([bus, stu], [0.5, 1]).index
    halves = [{p for p in in_epoch(index, 1, epoch) if p < 12} for epoch in range(4)]
    assert halves[0] | halves[1] == set(range(12))
    assert (halves[2], halves[3]) == (halves[0], halves[1])


def test_an_ill_proportioned_weight_still_shows_a_scan(bus, stu):
    index = open_datasets([bus, stu], [1e-6, 1]).index
    firsts = [[p for p in in_epoch(index, 1, epoch) if p < 12] for epoch in range(12)]
    assert sorted(firsts) == [[position] for position in range(12)]


# Repetitions in a stream --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readers", [1, 4])
def test_repetitions_have_keys_of_their_own_and_equal_pixels(bus, stu, readers, tmp_path):
    mixed = open_datasets([bus, stu], [2, 0.5])
    plan = plan_epoch(mixed.index, None, 0, 0, 8)
    with resident_scans(mixed.index, SIZE, 1 << 30, tmp_path) as resident:
        for memory in (None, resident, resident):
            batches = list(stream_batches(mixed, plan.order, SIZE, readers, memory))
            pixels: dict[str, list[torch.Tensor]] = {}
            for batch in batches:
                for number, key in enumerate(batch.keys):
                    pixels.setdefault(key, []).append(torch.cat([batch.image[number], batch.mask[number]]).clone())
            of_bus = [sample.key for sample in mixed.index.samples[:12]]
            seen = {key for key in pixels if key.startswith("bus/")}
            assert seen == {f"{key}{again}" for key in of_bus for again in ("", "#1")}
            assert all(torch.equal(pixels[key][0], pixels[f"{key}#1"][0]) for key in of_bus)
            assert not [key for key in pixels if key.startswith("stu/") and "#" in key]
            by_key = {scan.key: scan for scan in stream_scans(mixed, mixed.positions())}
            assert set(by_key) >= {key.split("#")[0] for key in pixels}


def test_repetitions_are_augmented_in_another_way(bus, stu):
    mixed = open_datasets([bus, stu], [3, 1])
    (batch,) = stream_batches(mixed, plan_epoch(mixed.index, None, 0, 0, 45).order, SIZE)
    unchanged = dict.fromkeys(("scale", "shift", "elastic", "blur", "shadow", "speckle", "gamma", "contrast"), 0.0)
    images, _ = augment(batch.image, batch.mask, batch.keys, 0, 0, flip=0.5, rotation=15, brightness=0.2, **unchanged)
    of_key = dict(zip(batch.keys, images, strict=True))
    for sample in mixed.index.samples[:12]:
        again = [of_key[sample.key + suffix] for suffix in ("", "#1", "#2")]
        assert not any(torch.equal(again[one], again[other]) for one, other in [(0, 1), (0, 2), (1, 2)])
