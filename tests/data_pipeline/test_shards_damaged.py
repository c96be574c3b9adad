import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from data_pipeline import Fault, open_dataset, stream_scans, verify_dataset, write_dataset

# An index that was changed ---------------------------------------------------------------------------------------


def signed(content: dict) -> dict:
    """The content with the digest that it should have, so that the other checks have to find what is wrong."""
    said = [content["format"], content["codec"], content["shards"], content["samples"]]
    digest = hashlib.sha256(json.dumps(said, separators=(",", ":")).encode()).hexdigest()
    return content | {"digest": digest}


def with_sample(**changes):
    return lambda content: signed(content | {"samples": [content["samples"][0] | changes, *content["samples"][1:]]})


def with_shard(**changes):
    return lambda content: signed(content | {"shards": [content["shards"][0] | changes]})


def without(name):
    return lambda content: {key: value for key, value in content.items() if key != name}


TAMPERED = {
    "another digest": lambda content: content | {"digest": "0" * 64},
    "a fold changed": lambda content: content | {"samples": [{**content["samples"][0], "fold": 9}]},
    "a sample left out": lambda content: content | {"samples": content["samples"][1:]},
    "an offset beyond the shard": with_sample(offset=1 << 40),
    "a negative offset": with_sample(offset=-512),
    "a length beyond the shard": with_sample(length=1 << 40),
    "a negative length": with_sample(offset=1024, length=-512),
    "no length": with_sample(length=0),
    "a shard that is not there": with_sample(shard=7),
    "a shard counted from the end": with_sample(shard=-1),
    "an offset that is text": with_sample(offset="0"),
    "a key twice": with_sample(key="scan-001"),
    "an unknown field": with_sample(colour="red"),
    "a path in a shard's name": with_shard(name="../../etc/passwd.tar"),
    "an absolute path as a shard's name": with_shard(name="/etc/passwd.tar"),
    "a shard's name with a line end": with_shard(name="shard.tar\n"),
    "a shard's name that is a number": with_shard(name=5),
    "a shorter shard": with_shard(bytes=1024),
    "no samples": lambda content: signed(content | {"samples": []}),
    "samples that are a number": lambda content: content | {"samples": 5},
    "a sample that is a list": lambda content: content | {"samples": [[]]},
    "an unknown format": lambda content: content | {"format": 99},
    "no format": without("format"),
    "no digest": without("digest"),
    "no shards": without("shards"),
    "a list": lambda content: [content],
    "nothing": lambda content: None,
}


@pytest.fixture(scope="module")
def sound(packed):
    """A dataset that no test changes."""
    return packed(6)


@pytest.fixture
def copied(sound, tmp_path):
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(sound.uri, tmp_path, dirs_exist_ok=True))


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_changed_index_is_refused_in_one_line(copied, kind):
    index = copied / "index.json"
    index.write_text(json.dumps(TAMPERED[kind](json.loads(index.read_text()))))
    with pytest.raises(Fault) as refused:
        open_dataset(str(copied))
    assert refused.value.exit_status == 1
    assert str(refused.value).startswith(f"{copied}: index.json ")
    assert "\n" not in str(refused.value)


def test_an_index_that_is_signed_anew_is_accepted(copied):
    index = copied / "index.json"
    index.write_text(json.dumps(signed(json.loads(index.read_text()))))
    open_dataset(str(copied))
    index.write_text(json.dumps(with_sample(fold=3)(json.loads(index.read_text()))))
    assert open_dataset(str(copied)).index.samples[0].fold == 3


def test_an_index_of_another_format_names_both(copied):
    index = copied / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 1}))
    with pytest.raises(Fault, match="has format 1, this sonotrain reads 2"):
        open_dataset(str(copied))


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.9, 0.999])
def test_a_cut_index_is_refused_in_one_line(copied, share):
    index = copied / "index.json"
    whole = index.read_bytes()
    index.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(Fault, match=rf"^{copied}: index.json is damaged [^\n]*$"):
        open_dataset(str(copied))


@pytest.mark.parametrize("text", [b"\xff\xfe", b"index", b"\x00" * 100, b"[" * 100_000])
def test_an_index_that_is_no_json_is_refused_in_one_line(copied, text):
    (copied / "index.json").write_bytes(text)
    with pytest.raises(Fault, match=rf"^{copied}: index.json is damaged [^\n]*$"):
        open_dataset(str(copied))


# Shards that were changed -------------------------------------------------------------------------------------------


@pytest.fixture
def several(packed, scans):
    """A dataset of three shards, to be damaged, and their paths."""
    dataset = packed(scans(90, largest=300), "npy")
    shards = [Path(dataset.uri, shard.name) for shard in dataset.index.shards]
    assert len(shards) == 3
    return dataset, shards


def test_a_sound_dataset_is_verified_shard_after_shard(several):
    dataset, _ = several
    seen = []
    assert verify_dataset(dataset.uri, seen.append) == []
    assert seen == list(dataset.index.shards)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("where", [0, 0.37, 1])
def test_a_flipped_bit_anywhere_in_a_shard_is_found_and_the_shard_named(several, number, where):
    dataset, shards = several
    data = bytearray(shards[number].read_bytes())
    data[int(where * (len(data) - 1))] ^= 0x10
    shards[number].write_bytes(data)
    wrong = verify_dataset(dataset.uri)
    assert wrong[0] == f"{shards[number].name}: its bytes are not those that were written (sha256 differs)"
    assert all(line.startswith(shards[number].name) for line in wrong)


def test_a_truncated_shard_is_found_with_the_samples_that_it_lost(several):
    dataset, shards = several
    lost = [sample for sample in dataset.index.samples if sample.shard == 1][-3:]
    shards[1].write_bytes(shards[1].read_bytes()[: lost[0].offset + 700])
    wrong = verify_dataset(dataset.uri)
    assert wrong[0] == f"{shards[1].name}: {lost[0].offset + 700} bytes, the index says {dataset.index.shards[1].bytes}"
    assert [line.split(": ")[:2] for line in wrong[1:]] == [[shards[1].name, sample.key] for sample in lost]


def test_a_missing_shard_is_found_and_the_others_are_still_read(several):
    dataset, shards = several
    shards[0].unlink()
    shards[2].write_bytes(b"")
    wrong = verify_dataset(dataset.uri)
    assert wrong[:2] == [
        f"{shards[0]} is missing",
        f"{shards[2].name}: 0 bytes, the index says {dataset.index.shards[2].bytes}",
    ]
    assert all(line.startswith(shards[2].name) for line in wrong[2:])


def test_an_index_that_swaps_two_scans_is_found_although_every_byte_is_right(copied):
    index = copied / "index.json"
    content = json.loads(index.read_text())
    first, second = content["samples"][:2]
    for name in ("offset", "length", "height", "width"):
        first[name], second[name] = second[name], first[name]
    index.write_text(json.dumps(signed(content)))
    wrong = verify_dataset(str(copied))
    assert len(wrong) == 2
    assert "scan-000: the index places it where scan-001 lies" in wrong[0]
    assert "scan-001: the index places it where scan-000 lies" in wrong[1]


def test_a_patient_or_group_in_two_folds_is_found(scans, tmp_path):
    made = [replace(scan, group=f"group-{scan.key}") for scan in scans(4)]
    made[3] = replace(made[3], group=made[0].group)
    folds = {"scan-000": 1, "scan-001": 2, "scan-002": 2, "scan-003": 2}
    write_dataset(str(tmp_path), "noise", made, folds, {})
    assert verify_dataset(str(tmp_path)) == [
        "patient patient-0 is in folds 1 (scan-000) and 2 (scan-001)",
        "group group-scan-000 is in folds 1 (scan-000) and 2 (scan-003)",
    ]


@pytest.mark.parametrize("codec", ["png", "npy"])
def test_no_flipped_byte_makes_the_decoder_raise_anything_but_a_fault(scans, packed, codec):
    """A byte of every sort: tar headers, PNG chunks, numpy's header (which is read as Python), padding."""
    made = scans(1)[0]
    dataset = packed([made], codec)
    (sample,) = dataset.index.samples
    shard = Path(dataset.uri, dataset.index.shards[0].name)
    whole = shard.read_bytes()
    told = []
    for place in range(0, sample.length, 7):
        damaged = bytearray(whole)
        damaged[sample.offset + place] ^= 0x20
        shard.write_bytes(damaged)
        try:
            list(stream_scans(dataset, [0], readers=1))
        except Fault as fault:
            told.append(str(fault))
    assert len(told) > 100
    assert all(line.startswith(f"{shard}: {sample.key}: ") and "\n" not in line for line in told)


def test_the_digest_covers_every_field_of_every_sample(sound):
    index = sound.index
    for name in asdict(index.samples[0]):
        changed = replace(index.samples[0], **{name: "other"})
        assert replace(index, samples=(changed, *index.samples[1:])).digest != index.digest
