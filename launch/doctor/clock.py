"""How far another machine's clock is from this one's, told by round trips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launch.doctor.finding import Finding

WARNED = 1.0
"""Seconds apart from which logs and runs of several nodes are hard to read together."""

REFUSED = 300.0
"""Seconds apart from which Slurm's munge refuses what another node says; S3 refuses signatures 900 s apart."""


@dataclass(frozen=True, slots=True)
class Offset:
    """How many seconds the other clock is ahead, give or take `uncertainty`."""

    seconds: float
    uncertainty: float


def offset(round_trips: Sequence[tuple[float, float, float]]) -> Offset:
    """Out of questions: when each was sent, what the other's clock then showed, and when the answer came, in seconds.

    The other's time is that of the middle of a round trip; the shortest says it best (Cristian, 1989).
    """
    sent, shown, came = min(round_trips, key=lambda trip: trip[2] - trip[0])
    return Offset(shown - (sent + came) / 2, (came - sent) / 2)


def judge_clock(found: Offset) -> Finding:
    """Whether nodes whose clocks are so far apart can work together."""
    apart = abs(found.seconds)
    told = f"{apart:.3f} s {'ahead of' if found.seconds > 0 else 'behind'} this machine's (± {found.uncertainty:.3f} s)"
    values = {"seconds_ahead": found.seconds, "uncertainty": found.uncertainty}
    if apart > REFUSED:
        advice = "set the clock, with chrony or ntpd: munge refuses clocks 5 minutes apart, S3 those 15 minutes apart"
        return Finding("clock", "failed", told, advice, values)
    if apart > WARNED:
        return Finding("clock", "warning", told, "keep the clocks together, with chrony or ntpd", values)
    return Finding("clock", "ok", told, values=values)
