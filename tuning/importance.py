"""Which keys decide how well a trial does, and whether there are enough trials to tell."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuning.journal import StudyRecord, TrialRecord
from tuning.settings import Tuning
from tuning.space import Choices, Space

TREES = 64
"""Of the forest that is believed."""

DRAWS = 100
"""Bootstrap samples behind an interval, and shuffles behind what chance gives."""

TREES_OF_DRAW = 16
"""Of each of their forests; fewer than TREES, which makes intervals rather wider and chance rather more likely."""

FEWEST = 6
"""Trials below which nothing is computed."""


@dataclass(frozen=True)
class Share:
    """Which part of the variance of the trials' ranks a key explains by itself, from 0 to 1; low and high bound its
    95 % interval.
    """

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Importance:
    """The importance of each key, the highest first, by `trials` of them.

    chance is what the highest share of a key would be in 19 of 20 studies in which no key mattered. Without keys
    where it could not be computed; `says` tells why, or which keys stand out from chance.
    """

    trials: int
    keys: Mapping[str, Share]
    chance: float
    says: str

    @property
    def telling(self) -> list[str]:
        """Keys whose share is more than chance gives."""
        return [key for key, share in self.keys.items() if share.share > self.chance]


def importance_of(tuning: Tuning, study: StudyRecord) -> Importance:
    """The importance of each key of the space: functional ANOVA of a random forest (Hutter, Hoos and
    Leyton-Brown 2014): the part of its predictions' variance over the whole space that a key explains by itself.

    The forest learns from each trial's place in the space, on each key's own scale, to tell its rank among the
    trials. Ranks, because the few trials that learn nothing would else be all of the variance. A trial that was
    stopped is ranked by its last DSC plus the mean gain, from that epoch on, of those that went on: leaving out the
    stopped ones would leave the good alone, among which what they have in common seems not to matter, and comparing
    all of them at the first rung would tell of the first epochs. Failed and unfinished trials are left out.

    The interval is the percentile bootstrap over trials. What chance gives is measured by shuffling the ranks among
    the trials: the 95th percentile of the highest share among all keys (Westfall & Young 1993), so that a key beyond
    it stands out from all of them together. Takes seconds.
    """
    trials = [trial for trial in study.trials.values() if trial.how in ("finished", "stopped") and trial.reports]
    count = len(trials)
    if tuning.tune.scheduler == "population":
        return _none(
            count, "A population's trials change their values on the way, so that no rank is that of one value."
        )
    if count < FEWEST:
        return _none(count, f"{count} trials are too few to tell which key matters; {FEWEST} are the least.")
    ends = np.array(expected_ends(trials))
    ranks = _ranks(ends)
    if ranks.min() == ranks.max():
        return _none(count, f"All {count} trials came to the same DSC: no key mattered.")
    names = list(tuning.space.dimensions)
    points = np.array([_places(tuning.space, trial) for trial in trials])
    choices = {
        column: len(dimension.values)
        for column, dimension in enumerate(tuning.space.dimensions.values())
        if isinstance(dimension, Choices)
    }
    generator = np.random.default_rng(0)
    seen = shares_of(points, ranks, TREES, generator, choices)
    resampled, shuffled = [], []
    for _ in range(DRAWS):
        drawn = generator.integers(count, size=count)
        resampled.append(shares_of(points[drawn], ranks[drawn], TREES_OF_DRAW, generator, choices))
        shuffled.append(shares_of(points, generator.permutation(ranks), TREES_OF_DRAW, generator, choices).max())
    low, high = np.percentile(resampled, (2.5, 97.5), axis=0)
    shares = {
        name: Share(float(seen[place]), float(min(low[place], seen[place])), float(max(high[place], seen[place])))
        for place, name in sorted(enumerate(names), key=lambda item: (-seen[item[0]], item[0]))
    }
    chance = float(np.percentile(shuffled, 95))
    return Importance(count, shares, chance, _verdict(count, shares, chance))


def expected_ends(trials: Sequence[TrialRecord]) -> list[float]:
    """Of each trial, the DSC at the last epoch that any of them reached: as reported, or for those that ended before
    it, their last one plus the mean gain from epoch to epoch of those that went on.
    """
    epochs = sorted({report.epoch for trial in trials for report in trial.reports})
    reported = [{report.epoch: report.dsc for report in trial.reports} for trial in trials]
    gains = {}
    for before, after in pairwise(epochs):
        steps = [of[after] - of[before] for of in reported if before in of and after in of]
        gains[after] = statistics.fmean(steps) if steps else 0.0
    return [of[max(of)] + sum(gain for epoch, gain in gains.items() if epoch > max(of)) for of in reported]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0 to 1, equal for equal values."""
    from scipy.stats import rankdata

    ranks: NDArray[np.float64] = (rankdata(values) - 1) / (len(values) - 1)
    return ranks


def _places(space: Space, trial: TrialRecord) -> list[float]:
    """Where a trial lies in the cube, in which scales and zero are what the space says; of choices their place."""
    return [float(place) for place in space.point(trial.values).values()]


def shares_of(
    points: NDArray[np.float64],
    targets: NDArray[np.float64],
    trees: int,
    generator: np.random.Generator,
    choices: Mapping[int, int] | None = None,
) -> NDArray[np.float64]:
    """The share of each key [keys], from 0 to 1, by points in the unit cube [trials, keys] and their targets [trials].

    choices gives by column how many there are, of which the points have the place from 0. The shares are the mean
    over the trees of a random forest, each of which learns a bootstrap sample, with the choices in an order of its
    own, since a tree cuts between neighbours; a tree whose sample is all the same explains nothing and is left out.
    """
    from sklearn.tree import DecisionTreeRegressor  # here, since it takes a second to import

    shares = []
    for _ in range(trees):
        drawn = generator.integers(len(points), size=len(points))
        learnt = points[drawn]
        for column, count in (choices or {}).items():
            learnt[:, column] = (generator.permutation(count)[learnt[:, column].astype(int)] + 0.5) / count
        tree = DecisionTreeRegressor(random_state=int(generator.integers(2**31))).fit(learnt, targets[drawn]).tree_
        low, high, values = _leaves(tree, points.shape[1])
        volumes = np.prod(high - low, axis=1)
        values = values - volumes @ values
        variance = volumes @ values**2
        if variance > 0:
            along = [_variance_along(low[:, key], high[:, key], volumes, values) for key in range(points.shape[1])]
            shares.append(np.array(along) / variance)
    return np.mean(shares, axis=0) if shares else np.zeros(points.shape[1])


def _leaves(tree: Any, keys: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The boxes into which a tree of scikit-learn cuts the unit cube, low and high [leaves, keys], and its values there
    [leaves].
    """
    low, high, values = [], [], []
    waiting = [(0, np.zeros(keys), np.ones(keys))]
    while waiting:
        node, bottom, top = waiting.pop()
        key = tree.feature[node]
        if key < 0:
            low.append(bottom)
            high.append(top)
            values.append(tree.value[node, 0, 0])
            continue
        middle = tree.threshold[node]
        below, above = top.copy(), bottom.copy()
        below[key] = above[key] = middle
        waiting += [(tree.children_left[node], bottom, below), (tree.children_right[node], above, top)]
    return np.array(low), np.array(high), np.array(values)


def _variance_along(
    low: NDArray[np.float64], high: NDArray[np.float64], volumes: NDArray[np.float64], values: NDArray[np.float64]
) -> float:
    """The variance along one key of a tree's mean over all others: low and high [leaves] are its leaves' bounds there,
    values what it says in them less the mean of all.
    """
    cuts = np.unique(np.concatenate([low, high]))
    middles = (cuts[:-1] + cuts[1:]) / 2
    inside = (low < middles[:, None]) & (middles[:, None] < high)
    means = inside @ (values * volumes / (high - low))
    return float(np.diff(cuts) @ means**2)


def _none(trials: int, says: str) -> Importance:
    return Importance(trials, {}, 0.0, says)


def _verdict(trials: int, shares: Mapping[str, Share], chance: float) -> str:
    telling = [f"{key} ({100 * share.share:.0f} %)" for key, share in shares.items() if share.share > chance]
    level = f"the {100 * chance:.0f} % that chance alone gives the highest of {len(shares)} keys"
    if not telling:
        return (
            f"By {trials} trials no key stands out: either none matters, or they are too few to tell; none explains "
            f"more than {level}."
        )
    explains = "explains" if len(telling) == 1 else "explain"
    return f"By {trials} trials, {' and '.join(telling)} {explains} more of the trials' ranks than {level}."
