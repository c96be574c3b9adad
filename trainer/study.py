"""A study: variants of one training, to be compared on the same scans. A name or a YAML file gives it.

table: Table 2, deep supervision      what the table is called
base: paper                           a preset, or a configuration's file (beside the study's own)
changes: {training.epochs: 20}        what of it is different for all variants
compare_to: Stage I                   the variant that each other is compared with
variants:                             what is different in each, by dotted key
  Stage I: {objective.stages: 1}
  Stage IV: {objective.stages: 4}
published:                            what others have reported, to be shown beside
  source: Li et al. (2023), Table 2
  rows: {Stage I: [70.52 ± 1.25, ...]}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline import WrongCall
from trainer.config import Config, changed, config_of, set_key
from trainer.sources import leaves, presets, read_tree

SHARED = ("output", "seed", "folds", "data", "tracking")
"""Keys, and branches, that decide on which scans a network learns and is judged: all variants have the same."""


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class Published(_Block):
    """Figures that others have reported, as they printed them: DSC, precision, recall and Jaccard in %, and RMSE."""

    source: str
    rows: dict[str, Annotated[tuple[str, ...], Field(min_length=5, max_length=5)]]


@dataclass(frozen=True)
class Study:
    """What is compared: a whole configuration for each variant, by its name, in the order of the table."""

    table: str
    compare_to: str
    variants: Mapping[str, Config]
    published: Published | None

    @property
    def shared(self) -> Config:
        """The configuration of one of them, for what all share."""
        return next(iter(self.variants.values()))


def is_study(source: str) -> bool:
    """Whether a name or a file is that of a study, not of a configuration. Raises WrongCall where it is neither's."""
    return "variants" in read_tree(source)


def load_study(source: str, changes: Sequence[str] = ()) -> Study:
    """The study of a name or a YAML file, with `key=value` changes applied, in order, to what its variants share.

    A variant's own changes come last. Raises WrongCall, in one line, for a study that is none: a key that is
    missing or unknown, a variant that changes what all share, and a variant whose configuration is wrong.
    """
    written = _read(source)
    base = _base_of(written.base, source)
    if "variants" in base:
        raise WrongCall(f"{source}: base: {written.base} is a study itself; name a configuration")
    for key, value in leaves(written.changes):
        set_key(base, key, value)
    changed(base, changes)
    variants = {}
    for name, own in written.variants.items():
        tree = deepcopy(base)
        for key, value in leaves(own):
            if key.partition(".")[0] in SHARED:
                raise WrongCall(
                    f"{source}: variants.{name} changes {key}, which all variants share; set it under changes"
                )
            set_key(tree, key, value)
        variants[name] = config_of(tree, f"{source}, {name}")
    _check_names(written, source)
    return Study(written.table, written.compare_to, variants, written.published)


def folder_name(variant: str) -> str:
    """A variant's name as that of a folder, without spaces: UNet-3+ for UNet 3+."""
    return re.sub(r"[^\w.+-]+", "-", variant)


class _Written(_Block):
    """A study as its file has it."""

    table: str
    base: str
    changes: dict[str, Any] = {}
    compare_to: str
    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=2)]
    published: Published | None = None


def _read(source: str) -> _Written:
    tree = read_tree(source)
    if not isinstance(tree.get("variants"), dict):
        raise WrongCall(f"{source}: no study, which has variants, a map of names to what is different in each")
    tree["variants"] = {str(name): own or {} for name, own in tree["variants"].items()}
    try:
        return _Written.model_validate(tree)
    except ValidationError as invalid:
        problem = invalid.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise WrongCall(f"{source}: {where}: {problem['msg'][:1].lower()}{problem['msg'][1:]}") from invalid


def _base_of(base: str, source: str) -> dict[str, Any]:
    """What a preset says, or a file that is named from where the study's own lies."""
    return read_tree(base if base in presets() else str(Path(source).parent / base))


def _check_names(written: _Written, source: str) -> None:
    names = list(written.variants)
    if written.compare_to not in names:
        raise WrongCall(f"{source}: compare_to: {written.compare_to} is no variant; there are {', '.join(names)}")
    for name in written.published.rows if written.published else ():
        if name not in names:
            raise WrongCall(f"{source}: published.rows.{name}: is no variant; there are {', '.join(names)}")
    taken: dict[str, str] = {}
    for name in names:
        folder = folder_name(name)
        if not re.search(r"\w", folder):
            raise WrongCall(f"{source}: variants.{name}: give it a name with letters or digits")
        if folder in taken:
            raise WrongCall(f"{source}: variants.{name}: shares the folder {folder} with {taken[folder]}; rename one")
        taken[folder] = name
