"""Where configurations and studies are read from: YAML that comes with sonotrain, by name, and a person's own files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from data_pipeline import WrongCall

_PRESETS = resources.files("trainer") / "presets"
_STUDIES = _PRESETS / "studies"


def presets() -> list[str]:
    """Names of the configurations that come with sonotrain."""
    return _names(_PRESETS)


def studies() -> list[str]:
    """Names of the studies that come with sonotrain (trainer/study.py)."""
    return _names(_STUDIES)


def read_tree(source: str) -> dict[str, Any]:
    """What the YAML of a preset's or a study's name, or of a file, says. Raises WrongCall for what is none of these."""
    if source in presets():
        text = (_PRESETS / f"{source}.yaml").read_text(encoding="utf-8")
    elif source in studies():
        text = (_STUDIES / f"{source}.yaml").read_text(encoding="utf-8")
    elif Path(source).is_file():
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as unreadable:
            raise WrongCall(f"{source}: not readable as text") from unreadable
    else:
        raise WrongCall(
            f"{source}: neither a file nor a preset; the presets are {', '.join(presets())}; "
            f"the studies, for crossval, are {', '.join(studies())}"
        )
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as broken:
        where = getattr(broken, "problem_mark", None)
        raise WrongCall(f"{source}: not readable as YAML{f', line {where.line + 1}' if where else ''}") from broken
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise WrongCall(f"{source}: holds no configuration, which is a map of keys to values")
    return {key: float_of(value) for key, value in tree.items()}


def float_of(value: object) -> object:
    """YAML 1.1 reads 1e-4 as text; a person means the number."""
    if isinstance(value, list):
        return [float_of(item) for item in value]
    if isinstance(value, dict):
        return {key: float_of(item) for key, item in value.items()}
    if isinstance(value, str) and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of a tree with its dotted key."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _names(folder: Traversable) -> list[str]:
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
