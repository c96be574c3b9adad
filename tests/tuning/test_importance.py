import numpy as np
import optuna
import pytest

from tests.tuning.studies import searched, study_of, tuning_of
from tuning.importance import Importance, expected_ends, importance_of, shares_of


@pytest.fixture(scope="module")
def important() -> Importance:
    tuning = tuning_of()
    return importance_of(tuning, searched(tuning, 40))


def test_the_key_that_decides_is_found_and_no_other(important: Importance):
    assert important.telling == ["optimizer.generator_rate"]
    assert next(iter(important.keys)) == "optimizer.generator_rate"
    assert "optimizer.generator_rate" in important.says
    assert important.trials == 40


def test_shares_are_parts_of_one_variance_inside_their_intervals(important: Importance):
    assert set(important.keys) == set(tuning_of().space.dimensions)
    assert sum(share.share for share in important.keys.values()) <= 1
    assert all(0 <= share.low <= share.share <= share.high <= 1 for share in important.keys.values())
    assert important.keys["optimizer.generator_rate"].low > important.keys["discriminators.norm"].high


def test_where_chance_alone_decided_no_key_stands_out():
    tuning = tuning_of()
    found = importance_of(tuning, searched(tuning, 12, matters=False))
    assert found.telling == []
    assert "too few to tell" in found.says


@pytest.mark.parametrize(
    ("changes", "trials", "says"),
    [([], 5, "5 trials are too few"), (["tune.scheduler=population"], 9, "change their values on the way")],
)
def test_what_cannot_be_told_is_said(changes: list[str], trials: int, says: str):
    tuning = tuning_of(*changes)
    found = importance_of(tuning, searched(tuning, trials))
    assert (found.keys, found.telling) == ({}, [])
    assert says in found.says


def test_trials_that_are_all_alike_tell_nothing():
    tuning = tuning_of()
    found = importance_of(tuning, study_of(tuning, [{"dsc": [{"fold-1": 0.5}]}] * 8))
    assert (found.keys, found.says) == ({}, "All 8 trials came to the same DSC: no key mattered.")


def test_shares_are_those_of_an_independent_implementation():
    random = np.random.default_rng(3)
    points = random.random((50, 4))
    targets = points[:, 0] + 0.5 * np.sin(6 * points[:, 1]) + points[:, 2] * points[:, 0]
    study = optuna.create_study()
    for point, target in zip(points, targets, strict=True):
        params = {str(key): float(place) for key, place in enumerate(point)}
        uniform = optuna.distributions.FloatDistribution(0.0, 1.0)
        study.add_trial(optuna.create_trial(params=params, distributions=dict.fromkeys(params, uniform), value=target))
    theirs = optuna.importance.FanovaImportanceEvaluator(n_trees=100, seed=0).evaluate(study)
    ours = shares_of(points, targets, 100, random)
    assert ours == pytest.approx([theirs[str(key)] for key in range(4)], abs=0.03)
    assert ours[0] > 0.35


def test_a_tree_of_two_keys_is_taken_apart_as_by_hand():
    # The target is 1 in one quarter of the square and 0 elsewhere: variance 3/16, along each key 1/16.
    corners = np.repeat([[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]], 50, axis=0)
    shares = shares_of(corners, np.repeat([0.0, 0.0, 0.0, 1.0], 50), 3, np.random.default_rng(0))
    assert shares == pytest.approx([1 / 3, 1 / 3])


def test_the_order_of_choices_does_not_matter():
    random = np.random.default_rng(1)
    points = np.stack([random.random(60), random.integers(0, 5, 60)], axis=1)
    for chosen in (0, 2):  # the first, or one in the middle, is the good one
        shares = shares_of(points, 1.0 * (points[:, 1] == chosen), 20, np.random.default_rng(0), {1: 5})
        assert shares[0] < 0.05
        assert shares[1] > 0.85


def test_a_stopped_trial_is_expected_to_gain_what_those_that_went_on_gained():
    curves = [[0.5, 0.7, 0.8], [0.4, 0.5], [0.3]]
    study = study_of(tuning_of(), [{"dsc": [{"fold-1": dsc} for dsc in of]} for of in curves])
    # From epoch 1 to 2 the first two gained 0.2 and 0.1, from 2 to 3 the first gained 0.1.
    assert np.allclose(expected_ends(list(study.trials.values())), [0.8, 0.5 + 0.1, 0.3 + 0.15 + 0.1])
