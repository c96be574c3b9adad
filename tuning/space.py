"""What a search may try: for each key a range or choices, and the way from numbers in [0, 1] to their values and back.

A searcher sees a cube: each key is a number in [0, 1], or the place of a choice. What that number means, whether on a
logarithmic scale or with zero below the smallest value, is known here alone.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline import WrongCall
from trainer.config import Config, config_of, keys, set_key

ZERO_SHARE = 0.1
"""The part of [0, 1] that means zero, where zero is among the values."""

Point = Mapping[str, float | int]
"""By key: a number in [0, 1], or the place of a choice."""

_KEPT = {
    "output": "it is where the study is",
    "seed": "name several under tune.seeds, with each of which every trial is trained",
    "folds": "name them under tune.folds",
    "data": "all trials learn from and are judged by the same scans",
    "training.epochs": "it is what rungs are counted in",
    "training.patience": "trials are ended by the search",
    "validation": "all trials are judged in the same way",
    "checkpoints": "nothing that is learnt depends on it",
    "tracking": "nothing that is learnt depends on it",
}
"""Keys and branches that are the same for all trials, and why."""

_BUT = ("data.size", "data.weights")
"""What may vary nevertheless: how scans are shown to a network, which is judged at their own resolution."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, evenly spread, or evenly in their logarithm; with `zero`, zero as well.

    Whole numbers are spread like the ranges of numbers that round to them. Others have four digits: of themselves, or
    of the range where that is narrower.
    """

    low: float
    high: float
    log: bool = False
    zero: bool = False
    whole: bool = False

    def value(self, place: float) -> float | int:
        """The number at a place in [0, 1]; it grows with the place."""
        if self.zero:
            if place < ZERO_SHARE:
                return 0 if self.whole else 0.0
            place = (place - ZERO_SHARE) / (1 - ZERO_SHARE)
        low, high = self._ends
        number = low * (high / low) ** place if self.log else low + (high - low) * place
        if self.whole:
            return int(min(max(round(number), self.low), self.high))
        return min(max(_shortened(number, self.high - self.low), self.low), self.high)

    def place(self, value: float) -> float:
        """Where a number lies in [0, 1]; one outside the range at its end."""
        if self.zero and value == 0:
            return ZERO_SHARE / 2
        low, high = self._ends
        inside = min(max(value, low), high)
        place = math.log(inside / low) / math.log(high / low) if self.log else (inside - low) / (high - low)
        return ZERO_SHARE + (1 - ZERO_SHARE) * place if self.zero else place

    def holds(self, value: float) -> bool:
        """Whether a number is among them."""
        return self.low <= value <= self.high or (self.zero and value == 0)

    @property
    def _ends(self) -> tuple[float, float]:
        """Between which numbers lie before they are rounded."""
        half = 0.5 if self.whole else 0.0
        return self.low - half, self.high + half


@dataclass(frozen=True)
class Choices:
    """Values of which one is taken."""

    values: tuple[Any, ...]

    def value(self, place: int) -> Any:
        """The value at a place, counted from 0."""
        return self.values[place]

    def place(self, value: Any) -> int:
        """The place of a value; that of the first for one that is not among them."""
        return self.values.index(value) if value in self.values else 0

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return value in self.values


@dataclass(frozen=True)
class Space:
    """Each key that varies."""

    dimensions: Mapping[str, Range | Choices]

    def values(self, point: Point) -> dict[str, Any]:
        """The values at a point, by key."""
        return {key: dimension.value(point[key]) for key, dimension in self.dimensions.items()}  # type: ignore[arg-type]

    def point(self, values: Mapping[str, Any]) -> dict[str, float | int]:
        """Where values lie."""
        return {key: dimension.place(values[key]) for key, dimension in self.dimensions.items()}

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether values are among those that may be tried, as the paper's need not be."""
        return all(dimension.holds(values[key]) for key, dimension in self.dimensions.items())

    def of(self, config: Config) -> dict[str, Any]:
        """The values that a configuration has for these keys."""
        flat = config.flat()
        return {key: _found(flat, key) for key in self.dimensions}


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with these values, of which objective.alpha.2 is that of stage 2."""
    return _with_values(config, values, ", ".join(f"{key}={value}" for key, value in values.items()))


def paper_values(space: Space, config: Config) -> dict[str, Any]:
    """The first trial: the configuration's own values, but those of alpha and beta that the paper has."""
    paper = space.of(Config())
    return {
        key: paper[key] if _is_below(key, "objective.alpha") or _is_below(key, "objective.beta") else value
        for key, value in space.of(config).items()
    }


def space_of(asked: Mapping[str, Any], config: Config) -> Space:
    """The space that a configuration's tune.space asks for, or the usual one.

    Choices are as the configuration has them: 64x64 is [64, 64]. Raises WrongCall, in a line that begins with the key,
    for a key that does not exist or has to be the same for all trials, and for values that it cannot have.
    """
    flat = config.flat()
    dimensions: dict[str, Range | Choices] = {}
    for key, what in _asked_for(asked) if asked else usual_space(config).items():
        where = f"tune.space.{key}"
        value = _found(flat, key)
        if value is None:
            raise WrongCall(f"{where}: there is no key {key}; the nearest is {_nearest(key)}")
        _check_varies(key, where)
        if isinstance(what, list):
            dimensions[key] = Choices(tuple(_distinct(_as_configured(config, key, what, where), where)))
        else:
            span = _range(what, value, where)
            list(_as_configured(config, key, (span.value(0.0), span.low, span.high), where))
            dimensions[key] = span
    return Space(dimensions)


def usual_space(config: Config) -> dict[str, Any]:
    """What is varied where nothing is named: the loss weights but alpha_1, both rates, the discriminators."""
    stages = config.objective.stages
    weights = {f"objective.alpha.{stage}": {"low": 0.01, "high": 1.0} for stage in range(2, stages + 1)}
    weights |= {f"objective.beta.{stage}": {"low": 0.001, "high": 0.5} for stage in range(1, stages + 1)}
    rates = {
        f"optimizer.{side}_rate": {"low": rate / 10, "high": rate * 10, "log": True}
        for side, rate in (
            ("generator", config.optimizer.generator_rate),
            ("discriminator", config.optimizer.discriminator_rate),
        )
    }
    widths = config.discriminators.widths
    return {
        **{key: {**ends, "log": True, "zero": True} for key, ends in weights.items()},
        **rates,
        "discriminators.widths": [[max(1, width // 2) for width in widths], list(widths), [2 * w for w in widths]],
        "discriminators.norm": ["batch", "instance", "group"],
        "discriminators.input": ["mask", "image_x_mask"],
    }


def nested(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A tune.space with its keys one below the other, as key=value changes them, also those written with dots.

    Raises WrongCall for a key that is named twice, or as a whole and in part.
    """
    tree: dict[str, Any] = {}
    seen: list[str] = []
    for key, what in _asked_for(asked):
        for before in seen:
            if _is_below(key, before) or _is_below(before, key):
                raise WrongCall(f"tune.space.{key}: {before} is in the space as well; leave one out")
        seen.append(key)
        set_key(tree, key, what)
    return tree


def _asked_for(asked: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each key with its range or choices, whether keys are written with dots or one below the other."""
    for name, what in asked.items():
        if isinstance(what, Mapping) and what and not {"low", "high"} & what.keys():
            yield from _asked_for(what, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", what


def _check_varies(key: str, where: str) -> None:
    for kept, why in _KEPT.items():
        if _is_below(key, kept) and not any(_is_below(key, free) for free in _BUT):
            raise WrongCall(f"{where}: {key} cannot vary: {why}")


def _is_below(key: str, branch: str) -> bool:
    return f"{key}.".startswith(f"{branch}.")


def _range(what: Any, value: Any, where: str) -> Range:
    if not isinstance(what, Mapping) or not {"low", "high"} <= what.keys() <= {"low", "high", "log", "zero"}:
        raise WrongCall(
            f"{where}: {what!r} is neither {{low, high}}, with log and zero if wanted, nor a list of choices"
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongCall(
            f"{where}: {value!r}, its value, is no number that a range could be of; write a list of choices"
        )
    low, high, log, zero = what["low"], what["high"], what.get("log", False), what.get("zero", False)
    whole = isinstance(value, int)
    if not all(_is_number(end) for end in (low, high)):
        raise WrongCall(f"{where}: low={low!r}, high={high!r}: both have to be numbers")
    if whole and not all(float(end).is_integer() for end in (low, high)):
        raise WrongCall(f"{where}: low={low!r}, high={high!r}: both have to be whole numbers, as its values are")
    if not isinstance(log, bool) or not isinstance(zero, bool):
        raise WrongCall(f"{where}: log={log!r}, zero={zero!r}: both have to be true or false")
    if low >= high:
        how = "empty" if low == high else "reversed"
        raise WrongCall(f"{where}: the range from {low} to {high} is {how}; low has to be below high")
    if log and low <= 0:
        raise WrongCall(
            f"{where}: a logarithmic range cannot begin at {low}; write low above 0, and zero: true for zero"
        )
    if zero and low <= 0:
        raise WrongCall(f"{where}: zero: true adds zero to a range above it, and this one begins at {low}")
    return Range(float(low), float(high), log, zero, whole)


def _is_number(end: Any) -> bool:
    return isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end)


def _as_configured(config: Config, key: str, values: Iterable[Any], where: str) -> Iterator[Any]:
    """Values as the configuration has them. Raises WrongCall for one that the key cannot have."""
    for value in values:
        yield _found(_with_values(config, {key: value}, where).flat(), key)


def _distinct(values: Iterable[Any], where: str) -> list[Any]:
    choices = list(values)
    if len(choices) < 2 or any(item in choices[:place] for place, item in enumerate(choices)):
        raise WrongCall(f"{where}: {choices!r}: give two choices or more, each once")
    return choices


def _with_values(config: Config, values: Mapping[str, Any], source: str) -> Config:
    tree = config.model_dump()
    lists: dict[str, list[Any]] = {}
    for key, value in values.items():
        whole, _, stage = key.rpartition(".")
        if stage.isdecimal():
            if whole not in lists:
                lists[whole] = list(config.flat()[whole])
            lists[whole][int(stage) - 1] = value
        else:
            set_key(tree, key, value)
    for whole, items in lists.items():
        set_key(tree, whole, items)
    return config_of(tree, source)


def _found(flat: Mapping[str, Any], key: str) -> Any:
    """The value of a key of a configuration, or of one of the places of its list; None for no key."""
    if key in flat:
        return flat[key]
    whole, _, stage = key.rpartition(".")
    items = flat.get(whole)
    if isinstance(items, list) and stage.isdecimal() and 1 <= int(stage) <= len(items):
        return items[int(stage) - 1]
    return None


def _nearest(key: str) -> str:
    return difflib.get_close_matches(key, keys(), n=1, cutoff=0.0)[0]


def _shortened(number: float, width: float) -> float:
    """To four digits of itself, or of the width where that is less."""
    finest = min(abs(number), width) or width
    return round(number, 3 - math.floor(math.log10(finest)))
