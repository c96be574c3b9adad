import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline import Dataset, Resident, open_dataset, plan_epoch, resident_scans, resize_mask, stream_batches
from data_pipeline.pixels import resize_gray
from data_pipeline.resident import SHARED_MEMORY
from tests.data_pipeline.counting_store import counted
from tests.data_pipeline.processes import PROCESSES

SIZE = (32, 48)
SCAN = 2 * SIZE[0] * SIZE[1]
AMPLE = 1 << 30


@pytest.fixture(scope="module")
def dataset(packed, scans) -> Dataset:
    """Ninety scans, thirty of each fold."""
    return packed(scans(90, largest=300), "npy")


@pytest.fixture(scope="module")
def expected(dataset):
    """Every scan at SIZE, image and mask."""
    found = [dataset.scan(position) for position in dataset.positions()]
    return [(resize_gray(scan.image, SIZE), resize_mask(scan.mask, SIZE)) for scan in found]


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder of its own in the node's shared memory."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY, prefix="sonotrain-test-") as folder:
        yield Path(folder)


def root_of(memory: Path) -> Path:
    return memory / f"sonotrain-{os.getuid()}"


def folders(memory: Path) -> list[Path]:
    """The folders of scans that lie there."""
    return [path for path in root_of(memory).iterdir() if path.name != "lock"]


def places_of(dataset: Dataset, epoch: int, rank: int = 0, world: int = 1):
    return plan_epoch(dataset.index, None, 3, epoch, 8).for_rank(world, rank)


def taken_from(resident: Resident, position: int, size=SIZE):
    """A scan's pixels, of one that is there."""
    images, masks = np.empty((1, 1, *size), np.uint8), np.empty((1, 1, *size), np.uint8)
    assert resident.holds(np.array([position])).all()
    resident.gather(np.array([position]), images, masks)
    return images[0, 0], masks[0, 0]


def there(resident: Resident, dataset: Dataset) -> list[int]:
    return np.flatnonzero(resident.holds(np.arange(len(dataset.index.samples)))).tolist()


def assert_right(resident: Resident, dataset: Dataset, expected) -> None:
    """What is there is right to the byte."""
    for position in there(resident, dataset):
        for found, wanted in zip(taken_from(resident, position), expected[position], strict=True):
            assert np.array_equal(found, wanted)


def assert_equal_batches(found, wanted) -> None:
    for batch, other in zip(found, wanted, strict=True):
        assert batch.keys == other.keys
        assert torch.equal(batch.image, other.image)
        assert torch.equal(batch.mask, other.mask)


# Epochs -------------------------------------------------------------------------------------------------------------


def test_the_first_epoch_fills_it_and_later_ones_read_no_byte_of_the_store(dataset, memory, tmp_path, expected):
    watched, store = counted(dataset, tmp_path / "log")
    with resident_scans(dataset.index, SIZE, AMPLE, memory) as resident:
        for epoch in range(3):
            plain = stream_batches(dataset, places_of(dataset, epoch), SIZE)
            assert_equal_batches(stream_batches(watched, places_of(dataset, epoch), SIZE, resident=resident), plain)
            if epoch == 0:
                first = len(store.noted("read"))
        assert first == places_of(dataset, 0).size
        assert len(store.noted("read")) == first
        assert there(resident, dataset) == list(range(90))
        assert_right(resident, dataset, expected)


@pytest.mark.parametrize("known", [1, 30, 89])
def test_batches_are_right_whatever_part_of_them_is_there(dataset, memory, tmp_path, expected, known):
    watched, store = counted(dataset, tmp_path / "log")
    with resident_scans(dataset.index, SIZE, AMPLE, memory) as resident:
        for position in np.random.default_rng(known).permutation(90)[:known]:
            resident.put(int(position), *expected[position])
        places = places_of(dataset, 0)
        plain = stream_batches(dataset, places, SIZE)
        absent = int((~resident.holds(places)).sum())
        assert_equal_batches(stream_batches(watched, places, SIZE, resident=resident), plain)
        assert len(store.noted("read")) == absent < places.size


def trained(dataset: Dataset, memory: Path, rank: int, together) -> None:
    """A rank of two that meets the other one after an epoch, and then reads the other's places."""
    with resident_scans(dataset.index, SIZE, AMPLE, memory) as resident:
        for epoch in range(2):
            places = places_of(dataset, 0, rank if epoch == 0 else 1 - rank, 2)
            plain = stream_batches(open_dataset(dataset.uri), places, SIZE)
            assert_equal_batches(stream_batches(dataset, places, SIZE, resident=resident), plain)
            together.wait(120)


def test_two_processes_fill_and_use_it_together(dataset, memory, tmp_path):
    watched, store = counted(dataset, tmp_path / "log")
    together = PROCESSES.Barrier(2)
    other = PROCESSES.Process(target=trained, args=(watched, memory, 1, together))
    other.start()
    trained(watched, memory, 0, together)
    other.join(120)
    assert other.exitcode == 0
    assert len(store.noted("read")) == places_of(dataset, 0).size
    assert folders(memory) == []


def test_repetitions_of_a_scan_are_taken_from_one_place(dataset, memory, expected):
    places = np.array([[0, 90, 5], [95, 180, 7]])
    with resident_scans(dataset.index, SIZE, AMPLE, memory) as resident:
        for _ in range(2):
            batches = list(stream_batches(dataset, places, SIZE, resident=resident))
            keys = ["scan-000", "scan-000#1", "scan-005", "scan-005#1", "scan-000#2", "scan-007"]
            assert [key for batch in batches for key in batch.keys] == keys
            for batch, row in zip(batches, places % 90, strict=True):
                for place, position in enumerate(row):
                    assert np.array_equal(batch.image[place, 0], expected[position][0])
                    assert np.array_equal(batch.mask[place, 0], expected[position][1])
        assert there(resident, dataset) == [0, 5, 7]


# Bounded ------------------------------------------------------------------------------------------------------------


def filled(dataset: Dataset, memory: Path, budget: int, found) -> None:
    """Put in whatever there is room for, and tell which scans that were."""
    with resident_scans(dataset.index, SIZE, budget, memory) as resident:
        for position in dataset.positions():
            resident.put(position, np.full(SIZE, position, np.uint8), np.zeros(SIZE, np.uint8))
        found.put(there(resident, dataset))


def test_a_budget_for_some_holds_the_same_ones_of_each_fold_in_every_process(dataset, memory, expected, tmp_path):
    budget = 45 * SCAN + SCAN - 1
    watched, store = counted(dataset, tmp_path / "log")
    with resident_scans(dataset.index, SIZE, budget, memory) as resident:
        for epoch in range(2):
            plain = stream_batches(dataset, places_of(dataset, epoch), SIZE)
            assert_equal_batches(stream_batches(watched, places_of(dataset, epoch), SIZE, resident=resident), plain)
        chosen = there(resident, dataset)
        assert len(chosen) == 45
        assert_right(resident, dataset, expected)
        of_fold = np.bincount(dataset.index.fold_of[chosen], minlength=4)[1:]
        assert of_fold == pytest.approx([15, 15, 15], abs=7)
        used = sum(path.stat().st_blocks * 512 for path in folders(memory)[0].iterdir())
        assert used <= budget + 3 * 4096
    second = places_of(dataset, 1)
    assert len(store.noted("read")) == places_of(dataset, 0).size + int((~np.isin(second, chosen)).sum())
    found = PROCESSES.Queue()
    process = PROCESSES.Process(target=filled, args=(dataset, memory, budget, found))
    process.start()
    assert found.get(timeout=120) == chosen
    process.join(60)


@pytest.mark.parametrize("budget", [0, SCAN - 1])
def test_a_budget_for_no_scan_makes_nothing(dataset, memory, budget):
    with resident_scans(dataset.index, SIZE, budget, memory) as resident:
        assert resident is None
    assert list(memory.iterdir()) == []


@pytest.fixture
def small_memory(mounted):
    """Shared memory of 240 KiB."""
    return mounted("240k")


def test_memory_that_is_full_is_told_once_and_keeps_what_it_has(dataset, small_memory, expected, caplog, tmp_path):
    watched, store = counted(dataset, tmp_path / "log")
    with resident_scans(dataset.index, SIZE, AMPLE, small_memory) as resident:
        for epoch in range(2):
            plain = stream_batches(dataset, places_of(dataset, epoch), SIZE)
            assert_equal_batches(stream_batches(watched, places_of(dataset, epoch), SIZE, resident=resident), plain)
        kept = there(resident, dataset)
        assert 20 <= len(kept) <= 240 * 1024 // SCAN
        space = os.statvfs(small_memory)
        assert space.f_bavail >= space.f_blocks // 10 - 4, "others find some left"
        assert_right(resident, dataset, expected)
    assert caplog.messages == ["no more scans are kept in memory: No space left on device"]
    assert len(store.noted("read")) < 2 * places_of(dataset, 0).size - 10


def test_memory_in_which_nothing_can_be_made_is_told_and_gone_without(dataset, small_memory, caplog):
    small_memory.joinpath("filler").write_bytes(bytes(240 * 1024))
    with resident_scans(dataset.index, SIZE, AMPLE, small_memory) as resident:
        assert resident is None
    root = root_of(small_memory)
    assert caplog.messages == [f"scans are not kept in memory: {root}: No space left on device"]


# Crashes ------------------------------------------------------------------------------------------------------------

LARGE = (96, 128)


def pattern(position: int):
    """Pixels that no other position has, nor any part of them."""
    image = (np.arange(LARGE[0] * LARGE[1]) * 31 + position * 7919).astype(np.uint16).view(np.uint8)[::2]
    return image.reshape(LARGE).copy(), (image.reshape(LARGE) > 127).view(np.uint8)


def writing(dataset: Dataset, memory: Path, seed: int, begun) -> None:
    """Put scans for ever, in an order of its own."""
    pixels = [pattern(position) for position in dataset.positions()]
    order = np.random.default_rng(seed).permutation(len(pixels)).tolist()
    with resident_scans(dataset.index, LARGE, AMPLE, memory) as resident:
        begun.set()
        for position in order:
            resident.put(position, *pixels[position])
            time.sleep(0)
        time.sleep(120)


def killed(process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("writers", [1, 2])
def test_processes_killed_at_any_moment_leave_only_scans_that_are_right(dataset, memory, writers):
    chance = random.Random(writers)
    wanted = [pattern(position) for position in dataset.positions()]
    counts = []
    for attempt in range(12):
        begun = [PROCESSES.Event() for _ in range(writers)]
        processes = [
            PROCESSES.Process(target=writing, args=(dataset, memory, 100 * attempt + number, event))
            for number, event in enumerate(begun)
        ]
        for process in processes:
            process.start()
        assert begun[0].wait(60)
        time.sleep(chance.random() * 0.004)
        for process in processes:
            killed(process)
        with resident_scans(dataset.index, LARGE, AMPLE, memory) as resident:
            counts.append(len(there(resident, dataset)))
            for position in there(resident, dataset):
                for found, right in zip(taken_from(resident, position, LARGE), wanted[position], strict=True):
                    assert np.array_equal(found, right)
    assert len({count for count in counts if 0 < count < 90}) >= 3, "killed at several moments of their work"


def test_a_scan_written_in_part_is_not_there(dataset, memory, expected):
    with resident_scans(dataset.index, SIZE, AMPLE, memory) as resident:
        resident.put(0, *expected[0])
        scans = folders(memory)[0] / "scans"
        with scans.open("r+b") as file:
            file.seek(SCAN // 2)
            file.write(expected[1][0].tobytes()[:700])
        assert there(resident, dataset) == [0]
        resident.put(1, *expected[1])
        assert there(resident, dataset) == [0, 1]
        assert_right(resident, dataset, expected)


@pytest.fixture
def left(dataset, memory, expected) -> Path:
    """What a killed process left that had put the first three scans."""
    process = PROCESSES.Process(target=_keeping, args=(dataset, memory, expected[:3]))
    process.start()
    deadline = time.monotonic() + 60
    while not (root_of(memory).exists() and folders(memory) and (folders(memory)[0] / "done").exists()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed(process)
    (folder,) = folders(memory)
    return folder


def _keeping(dataset: Dataset, memory: Path, pixels) -> None:
    with resident_scans(dataset.index, SIZE, AMPLE, memory) as resident:
        for position, pair in enumerate(pixels):
            resident.put(position, *pair)
        (folders(memory)[0] / "done").touch()
        time.sleep(120)


def test_what_a_killed_user_left_is_used_by_the_next_run_and_then_removed(dataset, memory, left, expected):
    with resident_scans(dataset.index, SIZE, AMPLE, memory) as resident:
        assert there(resident, dataset) == [0, 1, 2]
        assert_right(resident, dataset, expected)
    assert folders(memory) == []


@pytest.mark.parametrize("other", ["size", "dataset", "budget"])
def test_what_a_killed_user_left_is_removed_by_a_run_of_something_else(dataset, memory, left, packed, other):
    index = packed(90).index if other == "dataset" else dataset.index
    size = (48, 32) if other == "size" else SIZE
    budget = 89 * SCAN if other == "budget" else AMPLE
    with resident_scans(index, size, budget, memory) as resident:
        assert not left.exists()
        assert there(resident, dataset) == []
        assert len(folders(memory)) == 1
    assert folders(memory) == []


@pytest.mark.parametrize("lost", ["users", "scans", "there"])
def test_what_a_process_left_that_was_killed_while_removing_is_not_believed(dataset, memory, left, expected, lost):
    (left / lost).unlink()
    with resident_scans(dataset.index, SIZE, AMPLE, memory) as resident:
        assert there(resident, dataset) == ([0, 1, 2] if lost == "users" else [])
        assert_right(resident, dataset, expected)


# Users --------------------------------------------------------------------------------------------------------------


def test_the_last_user_removes_it_and_none_before(dataset, memory, expected):
    with resident_scans(dataset.index, SIZE, AMPLE, memory) as first:
        with resident_scans(dataset.index, SIZE, AMPLE, memory) as second:
            first.put(7, *expected[7])
            assert there(second, dataset) == [7]
        assert len(folders(memory)) == 1
        with resident_scans(dataset.index, SIZE, AMPLE, memory) as third:
            assert there(third, dataset) == [7]
            assert_right(third, dataset, expected)
    assert folders(memory) == []


def test_other_sizes_datasets_and_budgets_lie_apart(dataset, packed, memory, expected):
    other = packed(90)
    with (
        resident_scans(dataset.index, SIZE, AMPLE, memory) as resident,
        resident_scans(dataset.index, (16, 96), AMPLE, memory) as flat,
        resident_scans(other.index, SIZE, AMPLE, memory) as stranger,
        resident_scans(dataset.index, SIZE, 80 * SCAN, memory) as smaller,
    ):
        for position, pair in enumerate(expected):
            resident.put(position, *pair)
        assert len(folders(memory)) == 4
        assert there(resident, dataset) == list(range(90))
        assert [there(another, dataset) for another in (flat, stranger, smaller)] == [[], [], []]
        assert_equal_batches(
            stream_batches(other, places_of(other, 0), SIZE, resident=stranger),
            stream_batches(other, places_of(other, 0), SIZE),
        )
        assert_right(resident, dataset, expected)
    assert folders(memory) == []


def test_what_is_put_after_the_end_goes_nowhere(dataset, memory, expected, tmp_path):
    """A reader may still be at work then, and the numbers of closed files are given to the next ones that open."""
    with resident_scans(dataset.index, SIZE, AMPLE, memory) as resident:
        resident.put(0, *expected[0])
    files = [(tmp_path / f"checkpoint-{number}").open("w+b", buffering=0) for number in range(8)]
    resident.put(1, *expected[1])
    assert [file.seek(0, os.SEEK_END) for file in files] == [0] * 8
    for file in files:
        file.close()


def test_a_training_that_fails_in_the_middle_leaves_no_memory_and_no_thread(dataset, memory):
    before = set(threading.enumerate())

    def train():
        with resident_scans(dataset.index, SIZE, AMPLE, memory) as resident:
            for _ in stream_batches(dataset, places_of(dataset, 0), SIZE, resident=resident):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert folders(memory) == []
    deadline = time.monotonic() + 20
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_folder_that_was_removed_under_its_users_does_no_harm(dataset, memory, expected):
    with resident_scans(dataset.index, SIZE, AMPLE, memory) as resident:
        resident.put(0, *expected[0])
        shutil.rmtree(root_of(memory))
        resident.put(1, *expected[1])
        assert there(resident, dataset) == [0, 1]
        assert_right(resident, dataset, expected)


# Strangers ----------------------------------------------------------------------------------------------------------


def open_to_others(root: Path) -> None:
    root.mkdir()
    root.chmod(0o755)


def a_link(root: Path) -> None:
    (root.parent / "elsewhere").mkdir(mode=0o700)
    root.symlink_to(root.parent / "elsewhere")


def a_file(root: Path) -> None:
    root.write_text("a file")


def of_another_user(root: Path) -> None:
    if os.getuid():
        pytest.skip("only root may give a folder away")
    root.mkdir(mode=0o700)
    os.chown(root, 12345, 12345)


@pytest.mark.parametrize("make", [open_to_others, a_link, a_file, of_another_user])
def test_a_root_that_others_could_have_made_or_can_change_is_not_used(dataset, memory, caplog, make):
    root = root_of(memory)
    make(root)
    with resident_scans(dataset.index, SIZE, AMPLE, memory) as resident:
        assert resident is None
    reason = "File exists" if make is a_file else "belongs to others or is open to them"
    assert caplog.messages == [f"scans are not kept in memory: {root}: {reason}"]
    assert make is a_file or list(root.iterdir()) == []


def test_only_its_owner_can_read_what_is_there(dataset, memory):
    with resident_scans(dataset.index, SIZE, AMPLE, memory):
        for path in [root_of(memory), *folders(memory), *folders(memory)[0].iterdir()]:
            assert path.stat().st_mode & 0o077 == 0


def test_without_shared_memory_it_is_told_and_gone_without(dataset, tmp_path, caplog):
    with resident_scans(dataset.index, SIZE, AMPLE, tmp_path / "none") as resident:
        assert resident is None
    assert len(caplog.messages) == 1
    assert "scans are not kept in memory" in caplog.text
