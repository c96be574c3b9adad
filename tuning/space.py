"""What a search may try: for each key a range or choices, and the way from numbers in [0, 1] to their values and back.

A searcher sees a cube: each key is a number in [0, 1], or the place of a choice. What that number means, whether on a
logarithmic scale or with zero below the smallest value, is known here alone.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline import WrongCall
from trainer.config import Config, config_of, keys, set_key

ZERO_SHARE = 0.1
"""The part of [0, 1] that means zero, where zero is among the values."""

Point = Mapping[str, float | int]
"""By key: a number in [0, 1], or the place of a choice."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, evenly spread, or evenly in their logarithm; with `zero`, zero as well."""

    low: float
    high: float
    log: bool = False
    zero: bool = False
    whole: bool = False

    def value(self, place: float) -> float | int:
        """The number at a place in [0, 1]; it grows with the place."""
        if self.zero:
            if place < ZERO_SHARE:
                return 0
            place = (place - ZERO_SHARE) / (1 - ZERO_SHARE)
        number = self.low * (self.high / self.low) ** place if self.log else self.low + (self.high - self.low) * place
        number = min(max(number, self.low), self.high)
        return round(number) if self.whole else float(f"{number:.4g}")

    def place(self, value: float) -> float:
        """Where a number lies in [0, 1]; one outside the range at its end."""
        if self.zero and value == 0:
            return ZERO_SHARE / 2
        inside = min(max(value, self.low), self.high)
        if self.log:
            place = math.log(inside / self.low) / math.log(self.high / self.low)
        else:
            place = (inside - self.low) / (self.high - self.low)
        return ZERO_SHARE + (1 - ZERO_SHARE) * place if self.zero else place

    def holds(self, value: float) -> bool:
        """Whether a number is among them."""
        return self.low <= value <= self.high or (self.zero and value == 0)


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
    return config_of(tree, ", ".join(f"{key}={value}" for key, value in values.items()))


def paper_values(space: Space, config: Config) -> dict[str, Any]:
    """The first trial: the configuration's own values, but those of alpha and beta that the paper has."""
    paper = space.of(Config())
    return {
        key: paper[key] if key.startswith(("objective.alpha", "objective.beta.")) or key == "objective.beta" else value
        for key, value in space.of(config).items()
    }


def space_of(asked: Mapping[str, Any], config: Config) -> Space:
    """The space that a configuration's tune.space asks for, or the usual one. Raises WrongCall for one that is none."""
    named = dict(_asked_for(asked)) or usual_space(config)
    flat = config.flat()
    dimensions: dict[str, Range | Choices] = {}
    for key, what in named.items():
        where = f"tune.space.{key}"
        value = _found(flat, key)
        if value is None:
            raise WrongCall(f"{where}: there is no key {key}; the nearest is {_nearest(key)}")
        dimensions[key] = _choices(what, where) if isinstance(what, list) else _range(what, value, where)
    space = Space(dimensions)
    for place in (0.0, 1.0):  # the ends of each range, and each choice, have to be values that the key can have
        for key, dimension in dimensions.items():
            ends = dimension.values if isinstance(dimension, Choices) else (dimension.value(place),)
            for value in ends:
                try:
                    with_values(config, {key: value})
                except WrongCall as refused:
                    raise WrongCall(f"tune.space.{key}: {refused}") from refused
    return space


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


def _asked_for(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each key with its range or choices, whether keys are written with dots or one below the other."""
    for name, what in tree.items():
        if isinstance(what, Mapping) and not {"low", "high"} & what.keys():
            yield from _asked_for(what, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", what


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
    if any(isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end) for end in (low, high)):
        raise WrongCall(f"{where}: {what!r}: low and high have to be numbers")
    if low >= high:
        how = "empty" if low == high else "reversed"
        raise WrongCall(f"{where}: the range from {low} to {high} is {how}; low has to be below high")
    if log and low <= 0:
        raise WrongCall(
            f"{where}: a logarithmic range cannot begin at {low}; write low above 0, and zero: true for zero"
        )
    if zero and low <= 0:
        raise WrongCall(f"{where}: zero: true adds zero to a range above it, and this one begins at {low}")
    return Range(float(low), float(high), bool(log), bool(zero), isinstance(value, int))


def _choices(what: list[Any], where: str) -> Choices:
    if len(what) < 2 or any(item in what[:place] for place, item in enumerate(what)):
        raise WrongCall(f"{where}: {what!r}: give two choices or more, each once")
    return Choices(tuple(what))


def _found(flat: Mapping[str, Any], key: str) -> Any:
    """The value of a key of a configuration, or of a stage of four; None for no key."""
    if key in flat:
        return flat[key]
    whole, _, stage = key.rpartition(".")
    items = flat.get(whole)
    if isinstance(items, list) and stage.isdecimal() and 1 <= int(stage) <= len(items):
        return items[int(stage) - 1]
    return None


def _nearest(key: str) -> str:
    return difflib.get_close_matches(key, keys(), n=1, cutoff=0.0)[0]
