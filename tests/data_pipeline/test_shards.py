import hashlib
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

import data_pipeline
from data_pipeline import Scan, WrongCall, open_dataset, stream_scans, verify_dataset, write_dataset

CODECS = ("png", "npy")


def assert_equal_scans(found: Scan, written: Scan) -> None:
    """To the byte, and every field."""
    assert found.image.dtype == np.uint8
    assert found.mask.dtype == np.bool_
    assert np.array_equal(found.image, written.image)
    assert np.array_equal(found.mask, written.mask)
    names = ("key", "patient", "group", "label", "spacing")
    assert [getattr(found, name) for name in names] == [getattr(written, name) for name in names]


def read_back(dataset) -> list[Scan]:
    return list(stream_scans(dataset, dataset.positions(), readers=1))


def contents(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def in_one_fold(scans: list[Scan]) -> dict[str, int]:
    return {scan.key: 1 for scan in scans}


# What is written comes back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_scans_come_back_to_the_byte(scans, packed, codec):
    made = scans(40, largest=300)
    dataset = packed(made, codec)
    assert len(dataset.index.shards) > 1
    for found, written in zip(read_back(dataset), made, strict=True):
        assert_equal_scans(found, written)


@pytest.mark.parametrize("codec", CODECS)
def test_odd_sizes_strides_and_names_come_back_to_the_byte(packed, codec):
    random = np.random.default_rng(1)

    def scan(key, image, **about):
        fields = {"patient": "Łucja 7", "group": "g/1", "label": "", "spacing": None} | about
        return Scan(key, image, random.random(image.shape) < 0.5, **fields)

    large = random.integers(0, 256, (60, 50), dtype=np.uint8)
    made = [
        scan("one-pixel", large[:1, :1]),
        scan("row", large[:1]),
        scan("column", large[:, 3:4], spacing=(0.1 + 0.2, 1 / 3)),
        scan("UPPER_lower-9", large[::2, ::3], spacing=(1, 2.5)),
        scan("transposed", large.T),
        scan("upside-down", large[::-1, ::-1]),
        scan("k" * 180, large, label="malignant"),
        scan("0", np.zeros((17, 9), np.uint8)),
    ]
    for found, written in zip(read_back(packed(made, codec)), made, strict=True):
        assert_equal_scans(found, written)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.sampled_from(CODECS))
def test_any_size_comes_back_to_the_byte(tmp_path_factory, height, width, seed, codec):
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width), dtype=np.uint8)
    made = Scan("a", image, random.random((height, width)) < random.random(), "p", "g", "benign", None)
    folder = str(tmp_path_factory.mktemp("any"))
    write_dataset(folder, "any", [made], {"a": 1}, {}, codec)
    (found,) = read_back(open_dataset(folder))
    assert_equal_scans(found, made)


def test_the_index_says_what_was_written(scans, packed):
    made = scans(40, largest=300)
    dataset = packed(made)
    assert [sample.key for sample in dataset.index.samples] == [scan.key for scan in made]
    assert [(sample.height, sample.width) for sample in dataset.index.samples] == [scan.image.shape for scan in made]
    assert (dataset.index.name, dataset.index.codec) == ("noise", "png")
    assert dataset.folds() == {1: 14, 2: 14, 3: 12}
    assert dataset.positions([2]) == list(range(14, 28))
    assert dataset.positions({1, 3}) == [*range(14), *range(28, 40)]
    assert dataset.positions() == list(range(40))
    with pytest.raises(WrongCall, match=r"has no fold 4; its folds are 1, 2, 3"):
        dataset.positions([1, 4])


def test_shards_are_about_as_large_as_asked_for_and_named_by_their_bytes(scans, packed):
    dataset = packed(scans(150, largest=300), "npy")
    for number, shard in enumerate(dataset.index.shards):
        data = Path(dataset.uri, shard.name).read_bytes()
        assert shard.bytes == len(data)
        assert shard.sha256 == hashlib.sha256(data).hexdigest()
        assert shard.name == f"shard-{number:05d}-{shard.sha256[:12]}.tar"
        assert len(data) < (1 << 20) + 300 * 300 + 10 * 1024
    last_of_fold = {sample.fold: sample.shard for sample in dataset.index.samples}.values()
    full = [shard for number, shard in enumerate(dataset.index.shards) if number not in last_of_fold]
    assert len(full) >= 3
    assert all(shard.bytes >= 1 << 20 for shard in full)


def test_no_shard_holds_scans_of_two_folds(scans, packed):
    dataset = packed(scans(40, largest=300))
    folds_of = [{s.fold for s in dataset.index.samples if s.shard == n} for n in range(len(dataset.index.shards))]
    assert folds_of == [{1}, {2}, {3}]


def test_a_sample_lies_where_the_index_says(scans, packed):
    dataset = packed(scans(40, largest=300), "npy")
    for number, shard in enumerate(dataset.index.shards):
        with tarfile.open(Path(dataset.uri, shard.name)) as tar:
            members = tar.getmembers()
        for sample in dataset.index.samples:
            if sample.shard == number:
                inside = [m for m in members if sample.offset <= m.offset < sample.offset + sample.length]
                assert [m.name for m in inside] == [
                    f"{sample.key}.{part}" for part in ("image.npy", "mask.png", "json")
                ]
                last = inside[-1]
                assert last.offset_data + -(-last.size // 512) * 512 == sample.offset + sample.length


@pytest.mark.parametrize("codec", CODECS)
def test_any_webdataset_reader_opens_the_shards_by_itself(scans, packed, codec):
    made = scans(40, largest=300)
    dataset = packed(made, codec)
    shards = [str(Path(dataset.uri, shard.name)) for shard in dataset.index.shards]
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode("l8"))
    assert [sample["__key__"] for sample in found] == [scan.key for scan in made]
    for sample, scan in zip(found, made, strict=True):
        assert np.array_equal(sample[f"image.{codec}"], scan.image)
        assert np.array_equal(sample["mask.png"] == 255, scan.mask)
        assert set(np.unique(sample["mask.png"])) <= {0, 255}
        assert sample["json"]["patient"] == scan.patient
        assert sample["json"]["spacing_mm"] == (scan.spacing and list(scan.spacing))


def test_equal_scans_give_equal_bytes_and_the_digest_tells_other_ones(scans, packed):
    made = scans(12)
    first, second = packed(made), packed(scans(12))
    assert first.index.digest == second.index.digest
    assert contents(first.uri) == contents(second.uri)

    brighter = [*made[:-1], replace(made[-1], image=made[-1].image ^ 1)]
    fold_of = {scan.key: 1 + (number // 2 + 1) % 3 for number, scan in enumerate(made)}
    others = [packed(brighter), packed(made, "npy"), packed(made[::-1]), packed(made[:-1])]
    write_dataset(f"{first.uri}/folds", "noise", made, fold_of, {})
    others.append(open_dataset(f"{first.uri}/folds"))
    assert len({first.index.digest, *(other.index.digest for other in others)}) == 6


def test_reasons_for_refusal_may_come_in_while_the_scans_do(scans, tmp_path):
    made = scans(3)
    refused = {}

    def reading():
        for scan in made:
            refused[f"before-{scan.key}.png"] = "cannot be read"
            yield scan

    write_dataset(str(tmp_path), "noise", reading(), in_one_fold(made), refused)
    assert open_dataset(str(tmp_path)).index.refused == {f"before-{scan.key}.png": "cannot be read" for scan in made}


# What is not written does not exist -----------------------------------------------------------------------------


def test_shards_without_an_index_are_no_dataset(packed):
    dataset = packed(4)
    Path(dataset.uri, "index.json").unlink()
    for use in (open_dataset, verify_dataset):
        with pytest.raises(WrongCall, match="holds no dataset"):
            use(dataset.uri)


@pytest.mark.parametrize("place", ["nowhere", "file"])
def test_a_place_without_a_dataset_is_a_wrong_call(tmp_path, place):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(WrongCall, match="holds no dataset"):
        open_dataset(str(tmp_path / place))


def test_a_second_writing_is_refused_and_the_first_dataset_stays(scans, packed):
    dataset = packed(6)
    before = contents(dataset.uri)
    others = scans(6, seed=1)
    with pytest.raises(WrongCall, match="holds a dataset already"):
        write_dataset(dataset.uri, "other", others, in_one_fold(others), {})
    assert contents(dataset.uri) == before


def test_of_two_writers_at_once_one_wins_whole(scans, tmp_path):
    meeting = threading.Barrier(2, timeout=30)
    results = {}

    def write(seed):
        made = scans(5, seed)

        def reading():
            yield from made
            meeting.wait()  # both have seen that the place is free

        try:
            results[seed] = write_dataset(str(tmp_path), f"noise {seed}", reading(), in_one_fold(made), {}).digest
        except WrongCall as refused:
            results[seed] = str(refused)

    threads = [threading.Thread(target=write, args=[seed]) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    dataset = open_dataset(str(tmp_path))
    winner = int(dataset.index.name.split()[1])
    assert results[winner] == dataset.index.digest
    assert "exists already" in results[3 - winner]
    assert verify_dataset(str(tmp_path)) == []
    for found, written in zip(read_back(dataset), scans(5, winner), strict=True):
        assert_equal_scans(found, written)


def test_a_writer_killed_in_the_middle_leaves_no_dataset_and_the_next_one_works(scans, tmp_path):
    program = """
import sys, time
import numpy as np
from data_pipeline import Scan, write_dataset

def endless():
    for number in range(10**9):
        image = np.full((600, 600), number, np.uint8)
        yield Scan(f"scan-{number}", image, image > 0, "p", "g", "", None)
        if number == 50:
            print("in the middle", flush=True)
            time.sleep(600)

folds = {f"scan-{number}": 1 for number in range(60)}
write_dataset(sys.argv[1], "endless", endless(), folds, {}, "npy", shard_mb=1)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(data_pipeline.__file__).parents[1]), "TMPDIR": str(tmp_path)}
    destination = tmp_path / "dataset"
    writer = subprocess.Popen([sys.executable, "-c", program, destination], env=environment, stdout=subprocess.PIPE)
    try:
        assert writer.stdout.readline() == b"in the middle\n"
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    assert len(list(destination.glob("shard-*.tar"))) >= 2
    with pytest.raises(WrongCall, match="holds no dataset"):
        open_dataset(str(destination))

    made = scans(5)
    write_dataset(str(destination), "noise", made, in_one_fold(made), {})
    assert verify_dataset(str(destination)) == []
    assert len(read_back(open_dataset(str(destination)))) == 5


def test_no_usable_scan_publishes_nothing(tmp_path):
    with pytest.raises(WrongCall, match="no usable scan came, so nothing is published"):
        write_dataset(str(tmp_path / "empty"), "empty", iter([]), {}, {"a.png": "cannot be read"})
    assert contents(tmp_path / "empty") == {}


def test_an_error_while_scans_are_read_publishes_nothing_and_reaches_the_caller(scans, tmp_path):
    made = scans(3)

    def failing():
        yield from made
        raise OSError(5, "Input/output error", "scan-003.png")

    with pytest.raises(OSError, match="Input/output error"):
        write_dataset(str(tmp_path), "noise", failing(), in_one_fold(made), {})
    with pytest.raises(WrongCall, match="holds no dataset"):
        open_dataset(str(tmp_path))


def test_a_key_that_comes_twice_publishes_nothing(scans, tmp_path):
    made = scans(3)
    with pytest.raises(WrongCall, match="the key scan-001 came twice"):
        write_dataset(str(tmp_path), "noise", [*made, made[1]], in_one_fold(made), {})
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a", "a b", "ä", "a\n"])
def test_a_key_that_cannot_name_files_in_a_tar_publishes_nothing(scans, tmp_path, key):
    odd = replace(scans(1)[0], key=key)
    with pytest.raises(WrongCall, match=f"{re.escape(repr(key))} is no key"):
        write_dataset(str(tmp_path), "noise", [odd], {key: 1}, {})
    assert not (tmp_path / "index.json").exists()


def test_an_unknown_codec_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(WrongCall, match="there is no codec webp; choose one of png, npy"):
        write_dataset(str(tmp_path / "new"), "noise", [], {}, {}, "webp")
    assert not (tmp_path / "new").exists()
