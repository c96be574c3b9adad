import logging
import os
import pickle
import resource
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from data_pipeline import Dataset, Fault, NodeCache, Scan, nodecache, open_dataset, plan_epoch, stream_batches
from data_pipeline.stream import BATCHES_AHEAD, SHARDS_AHEAD, stream_scans
from tests.data_pipeline.counting_store import CountingStore, counted
from tests.data_pipeline.processes import PROCESSES
from tests.waiting import wait_until

AMPLE = 1 << 30


@pytest.fixture(scope="module")
def made() -> list[Scan]:
    """Twenty-four scans that fill twelve shards of two."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (740 + number, 730), dtype=np.uint8) for number in range(24)]
    return [
        Scan(f"scan-{number:03d}", image, image > 200, f"patient-{number // 2}", f"patient-{number // 2}", "", None)
        for number, image in enumerate(images)
    ]


@pytest.fixture(scope="module")
def packed_once(packed, made) -> Dataset:
    dataset = packed(made, "npy")
    assert [sum(s.shard == n for s in dataset.index.samples) for n in range(12)] == [2] * 12
    return dataset


@pytest.fixture
def dataset(packed_once, tmp_path) -> Dataset:
    """It through a store that counts."""
    return counted(packed_once, tmp_path / "log")[0]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache" / "of" / "shards"


def store_of(dataset: Dataset) -> CountingStore:
    return dataset.stores[0]


def cached(dataset: Dataset, folder: Path, limit: int = AMPLE) -> Dataset:
    return replace(dataset, cache=NodeCache(folder, limit))


def largest(dataset: Dataset, count: int = 1) -> int:
    """Room for so many shards and no more."""
    return count * max(shard.bytes for shard in dataset.index.shards)


def names(dataset: Dataset) -> list[str]:
    return [shard.name for shard in dataset.index.shards]


def file_of(dataset: Dataset, folder: Path, number: int = 0) -> Path:
    return folder / f"{dataset.index.shards[number].sha256}.tar"


def shards_in(dataset: Dataset, folder: Path) -> set[int]:
    """The numbers of the shards that lie there whole; nothing else lies there but locks."""
    by_name = {f"{shard.sha256}.tar": number for number, shard in enumerate(dataset.index.shards)}
    found = {path.name: path.stat().st_size for path in folder.iterdir() if path.suffix != ".lock"}
    assert all(size == dataset.index.shards[by_name[name]].bytes for name, size in found.items())
    return {by_name[name] for name in found}


def assert_right(dataset: Dataset, made: list[Scan], positions=range(24)) -> None:
    for position in positions:
        scan = dataset.scan(position)
        assert np.array_equal(scan.image, made[position].image)
        assert np.array_equal(scan.mask, made[position].mask)


# Fetched once -------------------------------------------------------------------------------------------------------


def test_a_shard_is_fetched_once_and_later_runs_read_nothing_of_the_store(dataset, folder, made):
    for _ in range(2):
        assert_right(cached(dataset, folder), made)
    assert sorted(store_of(dataset).noted("download")) == names(dataset)
    assert store_of(dataset).noted("read") == []
    assert shards_in(dataset, folder) == set(range(12))
    assert folder.stat().st_mode & 0o077 == 0


def test_counters_tell_what_was_fetched_and_what_was_found(dataset, folder, made):
    first, second = cached(dataset, folder), cached(dataset, folder)
    assert_right(first, made, range(6))
    assert_right(second, made, range(8))
    size = [shard.bytes for shard in dataset.index.shards]
    zeros = {"damaged": 0, "evicted": 0}
    assert first.cache.snapshot() == {"found": 0, "fetched": 3, "bytes_fetched": sum(size[:3]), **zeros}
    assert second.cache.snapshot() == {"found": 3, "fetched": 1, "bytes_fetched": size[3], **zeros}


def test_several_threads_fetch_a_shard_once(packed_once, folder, made, tmp_path):
    dataset, store = counted(packed_once, tmp_path / "log", pause=0.05)
    dataset = cached(dataset, folder)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: assert_right(dataset, made, [0, 1, 2]), range(8)))
    assert sorted(store.noted("download")) == names(dataset)[:2]
    assert store.noted("read") == []


def scanned(dataset: Dataset, made: list[Scan], together) -> None:
    together.wait(120)
    assert_right(dataset, made, [0, 1, 4, 5])


def test_several_processes_fetch_a_shard_once(packed_once, folder, made, tmp_path):
    dataset, store = counted(packed_once, tmp_path / "log", pause=0.2)
    together = PROCESSES.Barrier(3)
    processes = [PROCESSES.Process(target=scanned, args=(cached(dataset, folder), made, together)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(store.noted("download")) == [names(dataset)[0], names(dataset)[2]]
    assert store.noted("read") == []


def test_equal_shards_of_two_datasets_are_kept_once_and_others_apart(packed, scans, tmp_path, folder):
    first, second, other = packed(scans(4)), packed(scans(4)), packed(scans(4, seed=1))
    for number, dataset in enumerate((first, second, other)):
        dataset, store = counted(dataset, tmp_path / f"log-{number}")
        assert_right(cached(dataset, folder), scans(4, seed=number // 2), range(4))
        assert len(store.noted("download")) == (len(dataset.index.shards) if number != 1 else 0)


def test_a_cache_is_pickled_as_what_it_was_made_of(dataset, folder, made):
    dataset = cached(dataset, folder)
    assert_right(dataset, made, [0])
    assert_right(pickle.loads(pickle.dumps(dataset)), made, [0, 1])
    assert len(store_of(dataset).noted("download")) == 1


# Bounded ------------------------------------------------------------------------------------------------------------


def test_beyond_the_bound_what_was_used_longest_ago_is_given_up(dataset, folder, made, monkeypatch):
    monkeypatch.setattr(nodecache, "TOUCH_EVERY", 0.0)
    dataset = cached(dataset, folder, largest(dataset, 3))
    for number in (0, 1, 2, 0, 3):
        assert_right(dataset, made, [2 * number])
        time.sleep(0.01)  # file times are of milliseconds
    assert shards_in(dataset, folder) == {0, 2, 3}
    assert_right(cached(dataset, folder, largest(dataset, 3)), made, [5])
    time.sleep(0.01)
    assert_right(dataset, made, [2 * 4])
    assert shards_in(dataset, folder) == {2, 3, 4}
    assert dataset.cache.counters.evicted == 2


def test_a_smaller_bound_than_the_run_before_had_is_kept_to(dataset, folder, made):
    assert_right(cached(dataset, folder), made)
    assert_right(cached(dataset, folder, largest(dataset, 2)), made, [0])
    assert len(shards_in(dataset, folder)) == 12, "what is there is not fetched, so it makes no room"
    file_of(dataset, folder).unlink()
    assert_right(cached(dataset, folder, largest(dataset, 2)), made, [0])
    assert len(shards_in(dataset, folder)) == 2


def test_a_cache_far_too_small_for_its_users_keeps_its_bound_and_gives_right_scans(dataset, folder, made, caplog):
    limit = largest(dataset, 2)
    most = 0
    over = threading.Event()

    def watch():
        nonlocal most
        while not over.is_set():
            sizes = []
            for path in folder.iterdir() if folder.exists() else ():
                try:
                    sizes.append(path.stat().st_size)
                except FileNotFoundError:
                    continue
            most = max(most, sum(sizes))
            time.sleep(0.001)

    def use(seed):
        own = cached(dataset, folder, limit)
        assert_right(own, made, np.random.default_rng(seed).integers(0, 24, 60).tolist())
        return own.cache.counters

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            counters = list(pool.map(use, range(4)))
    finally:
        over.set()
        watcher.join()
    # The watcher sees files one after the other, so it may take one for there that has just made room for another.
    assert 0 < most <= limit + largest(dataset)
    assert sum(one.evicted for one in counters) > 20
    assert "cannot be used" not in caplog.text


def test_a_shard_larger_than_the_bound_is_streamed(dataset, folder, made):
    dataset = cached(dataset, folder, min(shard.bytes for shard in dataset.index.shards) - 1)
    assert_right(dataset, made, [0, 1])
    assert store_of(dataset).noted("download") == []
    assert store_of(dataset).noted("read") == [names(dataset)[0]] * 2
    assert not folder.exists()


def test_what_another_fetches_counts_towards_the_bound(packed_once, folder, made, tmp_path):
    slow, slow_store = counted(packed_once, tmp_path / "slow", pause=0.5)
    quick, quick_store = counted(packed_once, tmp_path / "quick")
    limit = largest(quick, 2)
    assert_right(cached(quick, folder, limit), made, [0])
    users = [(cached(slow, folder, limit), made, [position]) for position in (2, 4)]
    threads = [threading.Thread(target=assert_right, args=user) for user in users]
    threads[0].start()
    wait_until(lambda: slow_store.noted("download"))
    assert_right(cached(quick, folder, limit), made, [0])
    assert quick_store.noted("read") == [], "there was room for both"
    threads[1].start()
    wait_until(lambda: len(slow_store.noted("download")) == 2)
    assert_right(cached(quick, folder, limit), made, [6])
    assert quick_store.noted("read") == [names(quick)[3]], "no room beside the two that are on their way"
    for thread in threads:
        thread.join(60)
    assert shards_in(quick, folder) == {1, 2}


# Damaged ------------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, 100_000)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def bit_flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[200_000] ^= 1
    path.write_bytes(data)


def of_zeros(path: Path) -> None:
    """What a power cut leaves of a file that was renamed but not yet written."""
    size = path.stat().st_size
    path.write_bytes(b"")
    os.truncate(path, size)


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [cut, emptied, longer, bit_flipped, of_zeros, gone])
@pytest.mark.parametrize("user", ["another run", "the same run"])
def test_a_damaged_file_is_noticed_and_fetched_again(dataset, folder, made, damage, user):
    first = cached(dataset, folder)
    assert_right(first, made, range(4))
    damage(file_of(dataset, folder))
    assert_right(first if user == "the same run" else cached(dataset, folder), made, range(4))
    used_as_it_is = damage is longer and user == "the same run"
    assert store_of(dataset).noted("download").count(names(dataset)[0]) == 2 - used_as_it_is
    assert store_of(dataset).noted("read") == []
    assert used_as_it_is or shards_in(dataset, folder) == {0, 1}


@pytest.mark.parametrize("damage", [bit_flipped, of_zeros])
def test_a_damaged_file_is_told_and_counted(dataset, folder, made, damage, caplog):
    first = cached(dataset, folder)
    assert_right(first, made, [0])
    damage(file_of(dataset, folder))
    assert_right(first, made, [0, 1])
    assert first.cache.counters.damaged == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"{file_of(dataset, folder)}: damaged on this node's disk; it is fetched again"
    ]


@pytest.mark.parametrize("damage", [bit_flipped, cut, longer])
def test_a_store_that_holds_other_bytes_than_were_written_is_named_and_nothing_of_it_kept(
    packed_once, folder, made, tmp_path, damage
):
    broken = open_dataset(str(shutil.copytree(packed_once.uri, tmp_path / "broken")))
    name = names(broken)[0]
    damage(Path(broken.uri, name))
    broken = cached(broken, folder)
    for position in (0, 1, 0):
        with pytest.raises(Fault) as told:
            broken.scan(position)
        assert str(told.value).startswith(f"{broken.uri}/{name}: its bytes are not those that were written")
        assert "\n" not in str(told.value)
    assert shards_in(broken, folder) == set()
    assert_right(broken, made, range(2, 24))


def test_a_store_that_has_lost_a_shard_is_named(packed_once, folder, made, tmp_path):
    broken = open_dataset(str(shutil.copytree(packed_once.uri, tmp_path / "broken")))
    Path(broken.uri, names(broken)[3]).unlink()
    broken = cached(broken, folder)
    with pytest.raises(Fault, match=f"{broken.uri}/{names(broken)[3]} is missing"):
        broken.scan(6)
    assert_right(broken, made, [0, 5])
    assert shards_in(broken, folder) == {0, 2}


# No room, no folder -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(mounted):
    """A file system of three megabytes."""
    return mounted("3m")


def assert_streams_with_one_warning(dataset: Dataset, folder: Path, made: list[Scan], reason: str, caplog) -> None:
    dataset = cached(dataset, folder)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda position: assert_right(dataset, made, [position]), range(24)))
    assert [record.getMessage() for record in caplog.records] == [
        f"the node's cache {folder} cannot be used ({reason}); shards are read from their store"
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_a_full_disk_is_told_once_and_shards_are_streamed(dataset, small_disk, made, caplog):
    folder = small_disk / "cache"
    assert_streams_with_one_warning(dataset, folder, made, "No space left on device", caplog)
    assert len(shards_in(dataset, folder)) <= 2
    assert len(store_of(dataset).noted("read")) >= 20


def test_a_file_that_may_not_be_so_large_is_told_once_and_shards_are_streamed(dataset, folder, made, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        assert_streams_with_one_warning(dataset, folder, made, "File too large", caplog)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert shards_in(dataset, folder) == set()
    assert sorted(store_of(dataset).noted("read")) == sorted(names(dataset) * 2)


def test_a_folder_that_cannot_be_made_is_told_once_and_shards_are_streamed(dataset, tmp_path, made, caplog):
    (tmp_path / "file").write_text("a file")
    assert_streams_with_one_warning(dataset, tmp_path / "file" / "cache", made, "Not a directory", caplog)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_told_once_and_shards_are_streamed(dataset, folder, made, caplog):
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    assert_streams_with_one_warning(dataset, folder, made, "Permission denied", caplog)


# Others -------------------------------------------------------------------------------------------------------------


def landing_of(folder: Path) -> list[Path]:
    return list(folder.glob("landing-*")) if folder.exists() else []


@pytest.fixture
def killed_while_landing(packed_once, folder, tmp_path) -> Path:
    """What a process leaves that was killed when it had some of shard 0."""
    dataset, _ = counted(packed_once, tmp_path / "slow", pause=60)
    process = PROCESSES.Process(target=cached(dataset, folder).scan, args=[0])
    process.start()
    wait_until(lambda: any(path.stat().st_size for path in landing_of(folder)))
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (left,) = landing_of(folder)
    return left


def test_what_a_killed_process_was_fetching_is_never_believed(killed_while_landing, dataset, folder, made):
    began = time.monotonic()
    assert_right(cached(dataset, folder), made)
    assert time.monotonic() - began < 30, "its lock went with it"
    assert sorted(store_of(dataset).noted("download")) == names(dataset)
    assert killed_while_landing.exists()


def test_a_killed_process_has_its_room_until_it_counts_as_dead(killed_while_landing, dataset, folder, made):
    assert_right(cached(dataset, folder, largest(dataset)), made, [0, 1])
    assert store_of(dataset).noted("read") == [names(dataset)[0]] * 2
    long_ago = time.time() - nodecache.LANDING_TIMEOUT - 1
    os.utime(killed_while_landing, (long_ago, long_ago))
    assert_right(cached(dataset, folder, largest(dataset)), made, [0, 1])
    assert store_of(dataset).noted("download") == [names(dataset)[0]]
    assert shards_in(dataset, folder) == {0}


def test_another_process_is_waited_for_within_bounds(dataset, folder, made, monkeypatch, caplog):
    monkeypatch.setattr(nodecache, "LANDING_TIMEOUT", 0.2)
    dataset = cached(dataset, folder)
    folder.mkdir(parents=True)
    began = time.monotonic()
    with FileLock(folder / f"{dataset.index.shards[0].sha256}.lock"):
        assert_right(dataset, made, [0, 2])
    assert 0.2 <= time.monotonic() - began < 20
    assert caplog.messages == [f"{names(dataset)[0]}: another process has been fetching it for 0.2 s"]
    assert store_of(dataset).noted("read") == [names(dataset)[0]]
    assert_right(dataset, made, [0])
    assert shards_in(dataset, folder) == {0, 1}


# In a stream --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_with_a_cache_are_those_without_and_the_second_time_nothing_is_read(dataset, folder, rank):
    places = plan_epoch(dataset.index, None, 5, 0, 6).for_rank(2, rank)
    plain = list(stream_batches(dataset, places, (32, 48)))
    read = len(store_of(dataset).noted("read"))
    for _ in range(2):
        for batch, other in zip(stream_batches(cached(dataset, folder), places, (32, 48)), plain, strict=True):
            assert batch.keys == other.keys
            assert torch.equal(batch.image, other.image)
            assert torch.equal(batch.mask, other.mask)
    assert len(store_of(dataset).noted("read")) == read
    needed = {dataset.index.samples[position].shard for position in places.ravel()}
    assert sorted(store_of(dataset).noted("download")) == sorted(names(dataset)[number] for number in needed)


def test_shards_land_ahead_in_the_order_of_need_and_not_all_at_once(packed_once, folder, tmp_path):
    dataset, store = counted(packed_once, tmp_path / "log", pause=0.02)
    order = np.random.default_rng(3).permutation(12)
    places = (2 * order[:, None] + np.arange(2)).reshape(-1, 1)
    batches = stream_batches(cached(dataset, folder), places, (32, 48), readers=1)
    next(batches)
    # Rows up to BATCHES_AHEAD are begun, which lie in half as many shards.
    begun = BATCHES_AHEAD // 2 + 1 + SHARDS_AHEAD
    wait_until(lambda: len(store.noted("download")) == begun)
    time.sleep(0.2)
    landed = [names(dataset).index(name) for name in store.noted("download")]
    assert sorted(landed) == sorted(order[:begun])
    # Two are fetched at a time, so neighbours may change places.
    assert all(abs(landed.index(shard) - number) <= 1 for number, shard in enumerate(order[:begun]))
    assert len(list(batches)) == 23
    assert len(store.noted("download")) == 12


def test_scans_land_ahead_too_and_a_stream_left_early_leaves_no_landing(packed_once, folder, tmp_path, made):
    dataset, store = counted(packed_once, tmp_path / "log", pause=0.02)
    found = stream_scans(cached(dataset, folder), range(24), readers=2)
    assert np.array_equal(next(found).image, made[0].image)
    found.close()
    fetched = len(store.noted("download"))
    assert fetched < 12
    time.sleep(0.2)
    assert len(store.noted("download")) == fetched
    assert len(shards_in(dataset, folder)) == fetched


def test_a_cache_too_small_for_what_is_read_at_a_time_is_left_alone_with_a_warning(dataset, folder, caplog):
    places = plan_epoch(dataset.index, None, 5, 0, 4).order
    assert len(list(stream_batches(cached(dataset, folder, largest(dataset, 3)), places, (32, 48)))) == 6
    assert not folder.exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the node's cache is too small for the" in caplog.text


def test_a_damaged_store_ends_a_stream_with_a_cache_with_the_shards_name(packed_once, folder, tmp_path):
    broken = open_dataset(str(shutil.copytree(packed_once.uri, tmp_path / "broken")))
    bit_flipped(Path(broken.uri, names(broken)[7]))
    with pytest.raises(Fault, match=f"{names(broken)[7]}: its bytes are not those that were written"):
        list(stream_batches(cached(broken, folder), plan_epoch(broken.index, None, 0, 0, 4).order, (32, 48)))
