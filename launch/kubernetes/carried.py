"""A person's own configuration, which is a file here and none in a pod: it goes along as a ConfigMap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_pipeline import WrongCall
from trainer.sources import presets, read_tree, studies

FOLDER = "/etc/sonotrain"
"""Where the file lies in a pod."""

_LARGEST = 1_000_000

_WITH_VALUES = ("--json", "--nodes", "--measured")
"""Options of a verb, behind which a value stands."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A file's name and what is in it."""

    name: str
    text: str


def carried(verb: tuple[str, ...]) -> tuple[tuple[str, ...], Carried | None]:
    """A verb as a pod can carry it out, and the configuration's file that it needs there; none for a preset.

    Raises WrongCall for a file that cannot go along: too large, or with a `base` beside it.
    """
    place = _place_of_config(verb)
    if place is None or verb[place] in (*presets(), *studies()):
        return verb, None
    file = Path(verb[place])
    base = read_tree(str(file)).get("base")
    if base is not None and base not in presets():
        raise WrongCall(f"{file}: base: {base} is a file of its own, which does not go along; name a preset")
    text = file.read_text(encoding="utf-8")
    if len(text.encode()) > _LARGEST:
        raise WrongCall(f"{file} is larger than 1 MB, which does not go along; put it on the claim and name it there")
    there = f"{FOLDER}/config.yaml"
    return (*verb[:place], there, *verb[place + 1 :]), Carried("config.yaml", text)


def _place_of_config(verb: tuple[str, ...]) -> int | None:
    """Where CONFIG stands: the first argument that is neither an option, nor an option's value, nor key=value."""
    for place in range(1, len(verb)):
        if not verb[place].startswith("-") and "=" not in verb[place] and verb[place - 1] not in _WITH_VALUES:
            return place
    return None
