import csv
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.faults import WrongCall
from data_pipeline.index import Sample
from data_pipeline.splits import read_splits, require_apart, require_known, require_whole, splits_text


@dataclass(frozen=True)
class Owned:
    """What splits are judged by, without the scan."""

    key: str
    patient: str
    group: str
    label: str = "benign"


def sample(key: str, fold: int, patient: str = "p", label: str = "benign") -> Sample:
    return Sample(key, patient, f"g-{patient}", fold, label, 48, 64, None, 0, 0, 512, 0)


SAMPLES = [sample("b", 2, "2"), sample("c", 1, "1", "malignant"), sample("a", 2, 'twice, as "2"')]


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(text: str, name: str = "splits.csv") -> Path:
        file = tmp_path / name
        file.write_bytes(text.encode("utf-8"))
        return file

    return write


def refusal(file: Path) -> str:
    with pytest.raises(WrongCall) as refused:
        read_splits(file)
    assert str(refused.value).startswith(str(file))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_table_is_sorted_by_fold_and_key_and_says_whose_a_scan_is() -> None:
    assert list(csv.reader(io.StringIO(splits_text(SAMPLES, ".csv")))) == [
        ["key", "fold", "patient", "group", "label"],
        ["c", "1", "1", "g-1", "malignant"],
        ["a", "2", 'twice, as "2"', 'g-twice, as "2"', "benign"],
        ["b", "2", "2", "g-2", "benign"],
    ]


def test_splits_for_nnunet_validate_on_a_fold_and_train_on_the_others() -> None:
    assert json.loads(splits_text(SAMPLES, ".json")) == [
        {"train": ["a", "b"], "val": ["c"]},
        {"train": ["c"], "val": ["a", "b"]},
    ]


@given(st.dictionaries(st.from_regex(r"[A-Za-z0-9_-]+", fullmatch=True), st.integers(1, 4), min_size=1), st.text())
def test_a_table_that_was_written_is_read_as_it_was(tmp_path_factory: Any, folds: dict[str, int], owner: str) -> None:
    samples = [sample(key, fold, owner.encode("utf-8", "replace").decode()) for key, fold in folds.items()]
    file = tmp_path_factory.mktemp("splits") / "splits.csv"
    file.write_text(splits_text(samples, ".csv"), encoding="utf-8")
    assert read_splits(file) == folds


def test_lists_that_were_written_are_read_as_they_were(written: Any) -> None:
    assert read_splits(written(splits_text(SAMPLES, ".json"), "splits_final.JSON")) == {"a": 2, "b": 2, "c": 1}


@pytest.mark.parametrize(
    "text",
    [
        "key,fold\na,2\nb,1\n",
        "fold,note,key\n2,,a\n1,any,b\n",
        "\ufeffkey;fold;note\r\na;2;1,5\r\nb;1;\r\n",
        " Key , Fold \n a , 2 \n\n b , 1 \n,\n",
        '"key","fold"\n"a","2"\n"b","1"',
    ],
)
def test_tables_as_people_and_their_programs_write_them_are_read(written: Any, text: str) -> None:
    assert read_splits(written(text)) == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it has no column key"),
        ("a,1\nb,2\n", "it has no column key; its first line must name key and fold"),
        ("key,folds\na,1\n", "it has no column fold"),
        ("key,fold\n", "it names no scan"),
        ("key,fold\na,1\nb,0\n", "line 3: the fold of b is '0', no number from 1"),
        ("key,fold\na,one\n", "line 2: the fold of a is 'one'"),
        ("key,fold\na\n", "line 2: the fold of a is ''"),
        ("key,fold\na,1\nb,1\na,2\n", "line 4: a is there a second time"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_the_line(written: Any, text: str, reason: str) -> None:
    assert reason in refusal(written(text))


@pytest.mark.parametrize(
    ("splits", "reason"),
    [
        ({}, "it is no list of"),
        ([], "it is no list of"),
        ([{"train": ["a"]}], "it is no list of"),
        ([{"train": ["a"], "val": [1]}], "it is no list of"),
        ([{"train": ["a"], "val": ["b"]}, {"train": [], "val": ["a", "b"]}], "b is in the val of fold 1 and again in"),
        ([{"train": ["a", "b"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}], "b is in both train and val of fold 1"),
        ([{"train": ["a", "c"], "val": ["b"]}, {"train": ["b"], "val": []}], "a and 1 more are in the train of fold 1"),
    ],
)
def test_lists_that_are_no_cross_validation_are_refused(written: Any, splits: Any, reason: str) -> None:
    assert reason in refusal(written(json.dumps(splits), "splits_final.json"))


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path, written: Any) -> None:
    assert "No such file" in refusal(tmp_path / "nowhere.csv")
    assert "Is a directory" in refusal(tmp_path)
    assert "Expecting value" in refusal(written("key,fold\n", "splits.json"))
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n")
    assert "is no text" in refusal(tmp_path / "picture.csv")


def test_keys_unknown_or_missing_are_named_and_counted(tmp_path: Path) -> None:
    scans = [Owned(key, key, key) for key in "abc"]
    with pytest.raises(WrongCall, match=r"x.csv: c and 1 more are not among the source's scans"):
        require_known(Path("x.csv"), {"a": 1, "d": 1, "c": 2}, ["a", "b"])
    with pytest.raises(WrongCall, match=r"x.csv: c is without a fold"):
        require_whole(Path("x.csv"), {"a": 1, "b": 2}, scans)
    require_known(Path("x.csv"), {"a": 1}, ["a", "b"])
    require_whole(Path("x.csv"), {"a": 1, "b": 2, "c": 1, "refused": 2}, scans)


def test_a_fold_without_a_scan_is_named() -> None:
    scans = [Owned(key, key, key) for key in "ab"]
    with pytest.raises(WrongCall, match="no scan that can be used is in fold 2"):
        require_whole(Path("x.csv"), {"a": 1, "b": 3}, scans)
    with pytest.raises(WrongCall, match="no scan that can be used is in fold 2"):
        require_whole(Path("x.csv"), {"a": 1, "b": 1, "refused": 2}, scans)


def test_a_patient_or_group_in_two_folds_is_named_with_both() -> None:
    scans = [Owned("a", "p", "g1"), Owned("b", "p", "g2"), Owned("c", "q", "g2")]
    with pytest.raises(WrongCall, match=r"x.csv: patient p is in folds 1 \(a\) and 2 \(b\);"):
        require_apart(Path("x.csv"), {"a": 1, "b": 2, "c": 2}, scans)
    with pytest.raises(WrongCall, match=r"x.csv: group g2 is in folds 1 \(b\) and 2 \(c\);"):
        require_apart(Path("x.csv"), {"a": 1, "b": 1, "c": 2}, scans)
    with pytest.raises(WrongCall, match=r"patient p is in folds 1 \(a\) and 2 \(b\), and so is 1 more;"):
        require_apart(Path("x.csv"), {"a": 1, "b": 2, "c": 1}, scans)
    require_apart(Path("x.csv"), {"a": 1, "b": 1}, [*scans, replace(scans[0], key="not in the file")])
