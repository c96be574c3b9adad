"""Quantities as Kubernetes writes them: 1500m cores, 16Gi of memory."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

from data_pipeline import WrongCall

GIB = 2**30
MIB = 2**20

_CORES = re.compile(r"([0-9]+(?:\.[0-9]{1,3})?)|([0-9]+)m")
_BYTES = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[mkMGTPE]|[eE][0-9]{1,2})?")
_TIMES = {"": Decimal(1), "m": Decimal("0.001")} | {
    unit: Decimal(base) ** power
    for power, letter in enumerate("kMGTPE", start=1)
    for unit, base in ((letter, 1000), (f"{letter.upper()}i", 1024))
}
_LEAST = 64 * MIB


def cores_of(option: str, text: str) -> Decimal:
    """Cores, such as 8, 1.5 or 1500m. Raises WrongCall for what is none, and for no core at all."""
    found = _CORES.fullmatch(text)
    cores = Decimal(found[1] or Decimal(found[2]) / 1000) if found else Decimal(0)
    if cores <= 0:
        raise WrongCall(f"{option} {text!r} is no number of cores; write for example 8, 1.5 or 1500m")
    return cores


def bytes_of(option: str, text: str) -> int:
    """Bytes, such as 16Gi or 1.5G. Raises WrongCall for what is no quantity, and for less than 64Mi.

    So little is a slip: 16 alone means bytes, and 512m half of one.
    """
    found = _BYTES.fullmatch(text)
    if not found:
        raise WrongCall(f"{option} {text!r} is no quantity of memory; write for example 16Gi")
    unit = found[2] or ""
    times = _TIMES[unit] if unit in _TIMES else Decimal(10) ** int(unit[1:])
    read = int((Decimal(found[1]) * times).to_integral_value(ROUND_CEILING))
    if read < _LEAST:
        raise WrongCall(f"{option} {text!r} is {read} bytes, which is too little; write for example 16Gi")
    return read


def written(count: int) -> str:
    """Bytes as Kubernetes reads them, rounded up to a whole Mi."""
    mebibytes = -(-count // MIB)
    return f"{mebibytes // 1024}Gi" if mebibytes % 1024 == 0 else f"{mebibytes}Mi"
