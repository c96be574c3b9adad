"""How keys of a configuration and their values are written in tables and figures."""

from __future__ import annotations

from typing import Any

_GREEK = {"objective.alpha": "α", "objective.beta": "β"}
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def label(key: str) -> str:
    """The paper's letter for a loss weight, α₂ for that of stage 2; the key itself for all others."""
    whole, _, stage = key.rpartition(".")
    if stage.isdecimal() and whole in _GREEK:
        return _GREEK[whole] + stage.translate(_SUBSCRIPTS)
    return _GREEK.get(key, key)


def written(value: Any) -> str:
    """A value in few characters: three digits of a number, a list without its brackets."""
    if isinstance(value, list | tuple):
        return ", ".join(map(written, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(dsc: float | None, sign: str = "") -> str:
    """A DSC, or a difference of two, in points of a hundred."""
    return "-" if dsc is None else f"{100 * dsc:{sign}.2f}"
