"""The division into folds as a file that people read, edit and hand in: a table, or nnU-Net's splits_final.json."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.faults import WrongCall
from data_pipeline.folds import Foldable, straddling
from data_pipeline.index import Sample

COLUMNS = ("key", "fold", "patient", "group", "label")


def splits_text(samples: Iterable[Sample], suffix: str) -> str:
    """A dataset's folds as text: for .json as nnU-Net has them, otherwise as a table of COLUMNS by fold and key."""
    ordered = sorted(samples, key=lambda sample: (sample.fold, sample.key))
    if suffix == ".json":
        members: defaultdict[int, list[str]] = defaultdict(list)
        for sample in ordered:
            members[sample.fold].append(sample.key)
        splits = [
            {"train": sorted(sample.key for sample in ordered if sample.fold != fold), "val": keys}
            for fold, keys in members.items()
        ]
        return json.dumps(splits, indent=1) + "\n"
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(COLUMNS)
    # A label may come from a table of any kind, and a line break in it would end the line of its scan.
    rows.writerows([" ".join(str(getattr(sample, column)).split()) for column in COLUMNS] for sample in ordered)
    return table.getvalue()


def read_splits(file: Path) -> dict[str, int]:
    """The fold of each key in a file, as splits_text writes it.

    Of a table the columns key and fold count, between commas or semicolons, folds from 1. Of a .json, a list of
    {"train": [...], "val": [...]}, fold k are the keys in the k-th val. Raises WrongCall with the reason, naming the
    file and the place.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        return _folds_of_lists(text) if file.suffix.lower() == ".json" else _folds_of_table(text)
    except OSError as failed:
        raise WrongCall(f"{file} cannot be read: {failed.strerror}") from failed
    except UnicodeDecodeError as failed:
        raise WrongCall(f"{file} is no text in UTF-8; export it as such") from failed
    except (ValueError, csv.Error) as wrong:
        raise WrongCall(f"{file}: {wrong}") from wrong


def require_known(file: Path, splits: Mapping[str, int], keys: Collection[str]) -> None:
    """Raise WrongCall where the file names a key that the source does not have."""
    known = set(keys)
    if unknown := sorted(key for key in splits if key not in known):
        raise WrongCall(f"{file}: {_counted(unknown)} not among the source's scans; remove or correct it there")


def require_whole(file: Path, splits: Mapping[str, int], scans: Sequence[Foldable]) -> None:
    """Raise WrongCall where the file leaves a scan without a fold, or a fold up to its last one without a scan."""
    if missing := sorted(scan.key for scan in scans if scan.key not in splits):
        raise WrongCall(f"{file}: {_counted(missing)} without a fold; add it there")
    used = {splits[scan.key] for scan in scans}
    if empty := min(set(range(1, max(splits.values()) + 1)) - used, default=None):
        raise WrongCall(f"{file}: no scan that can be used is in fold {empty}; number the folds from 1 without a gap")


def require_apart(file: Path, splits: Mapping[str, int], scans: Iterable[Foldable]) -> None:
    """Raise WrongCall where the file has a patient or a group of near-duplicates in two folds."""
    if leaks := straddling([scan for scan in scans if scan.key in splits], splits):
        more = f", and so {_are(len(leaks) - 1)} more" if len(leaks) > 1 else ""
        raise WrongCall(f"{file}: {leaks[0]}{more}; scans of a patient, and near-duplicates, must share a fold")


def _folds_of_table(text: str) -> dict[str, int]:
    header = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=";" if ";" in header and "," not in header else ",")
    rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or []]
    for column in ("key", "fold"):
        if column not in rows.fieldnames:
            raise ValueError(f"it has no column {column}; its first line must name key and fold")
    folds: dict[str, int] = {}
    for row in rows:
        key, fold = ((row[column] or "").strip() for column in ("key", "fold"))
        if not key and not fold:
            continue
        if not fold.isdecimal() or int(fold) < 1:
            raise ValueError(f"line {rows.line_num}: the fold of {key or 'no key'} is {fold!r}, no number from 1")
        if key in folds:
            raise ValueError(f"line {rows.line_num}: {key} is there a second time")
        folds[key] = int(fold)
    if not folds:
        raise ValueError("it names no scan")
    return folds


def _folds_of_lists(text: str) -> dict[str, int]:
    splits: Any = json.loads(text)
    if not (isinstance(splits, list) and splits and all(_is_split(split) for split in splits)):
        raise ValueError('it is no list of {"train": [...], "val": [...]} with keys in them')
    folds: dict[str, int] = {}
    for fold, split in enumerate(splits, start=1):
        for key in split["val"]:
            if key in folds:
                raise ValueError(f"{key} is in the val of fold {folds[key]} and again in that of fold {fold}")
            folds[key] = fold
        if both := sorted(set(split["val"]) & set(split["train"])):
            raise ValueError(f"{_counted(both)} in both train and val of fold {fold}")
    for fold, split in enumerate(splits, start=1):
        if lost := sorted(key for key in split["train"] if key not in folds):
            raise ValueError(f"{_counted(lost)} in the train of fold {fold} and in no val")
    return folds


def _is_split(split: Any) -> bool:
    return isinstance(split, dict) and all(
        isinstance(split.get(part), list) and all(isinstance(key, str) for key in split[part])
        for part in ("train", "val")
    )


def _counted(keys: Sequence[str]) -> str:
    """The first key and the number of others, with their verb."""
    return f"{keys[0]} is" if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more are"


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"
