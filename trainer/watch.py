"""Whether the discriminators still tell the generator something."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

log = logging.getLogger("sonotrain")

POINTS = 5
"""Points of the curves in a row that look alike before anything is said."""

SURE = 0.99
"""Fraction right of truths and of maps from which a discriminator has won."""


class DiscriminatorWatch:
    """Looks at how much each discriminator says is right, point by point, and reports a state once it lasts."""

    def __init__(self) -> None:
        self._lasting: dict[int, tuple[str, int]] = {}

    def look(self, right_on_truths: Sequence[float], right_on_maps: Sequence[float], step: int) -> Mapping[int, str]:
        """Take a point in, the fractions right by stage; gives the stages, from 1, whose state is reported now.

        "saturated": nearly all is told apart, so that log(1 - D) has hardly a gradient left for the generator.
        "collapsed": everything gets the same answer, so that there is nothing to learn from it.
        """
        reported = {}
        for stage, (truths, maps) in enumerate(zip(right_on_truths, right_on_maps, strict=True), start=1):
            state = _state(truths, maps)
            before, points = self._lasting.get(stage, ("", 0))
            points = points + 1 if state == before else 1
            self._lasting[stage] = (state, points)
            if state and points == POINTS:
                reported[stage] = state
                log.warning(
                    "discriminator of stage %d %s at step %d: right on %.0f %% of truths and %.0f %% of maps; %s",
                    stage, state, step, 100 * truths, 100 * maps, _ADVICE[state],
                )  # fmt: skip
        return reported


_ADVICE = {
    "saturated": "a lower optimizer.discriminator_rate, objective.smoothing=0.1, objective.noise=0.1 or "
    "objective.adversarial=non_saturating lets the generator learn from it again",
    "collapsed": "a lower optimizer.discriminator_rate or other discriminators.widths may keep it learning",
}


def _state(truths: float, maps: float) -> str:
    if min(truths, maps) >= SURE:
        return "saturated"
    if max(truths, maps) >= SURE and min(truths, maps) <= 1 - SURE:
        return "collapsed"
    return ""
