import math
from itertools import product

import numpy as np
import pytest

from trainer.resampling import FLIPS, intervals, sign_flip_p


def exact_p(differences, patients):
    """Every way of flipping patients' signs."""
    names = sorted(set(patients))
    totals = [sum(d for d, p in zip(differences, patients, strict=True) if p == name) for name in names]
    sums = [
        abs(sum(s * t for s, t in zip(signs, totals, strict=True))) for signs in product((-1, 1), repeat=len(names))
    ]
    return np.mean([value >= abs(sum(totals)) - 1e-12 for value in sums])


def test_p_is_that_of_flipping_patients_in_every_way():
    generator = np.random.default_rng(1)
    differences = generator.normal(0.3, 1, size=(6, 20))
    patients = [f"p{place % 9}" for place in range(20)]
    seen = sign_flip_p(differences, patients)
    for row, p in zip(differences, seen, strict=True):
        assert p == pytest.approx(exact_p(row, patients), abs=4 * math.sqrt(0.25 / FLIPS))


def test_without_an_effect_p_is_small_no_more_often_than_it_says():
    generator = np.random.default_rng(2)
    # Scans of one patient share most of their difference, and their number differs from patient to patient.
    patients = [f"p{place}" for place in range(25) for _ in range(1 + place % 4)]
    shared = {name: generator.normal(size=2000) for name in patients}
    differences = np.stack([shared[name] + generator.normal(0, 0.3, size=2000) for name in patients], axis=1)
    p = sign_flip_p(differences, patients)
    for level in (0.01, 0.05, 0.2):
        assert np.mean(p <= level) == pytest.approx(level, abs=4 * math.sqrt(level / 2000))


def test_many_scans_of_few_patients_do_not_make_a_difference_certain():
    assert sign_flip_p(np.full((1, 400), 0.1), ["p", "q"] * 200)[0] == pytest.approx(0.5, abs=0.02)
    assert sign_flip_p(np.full((1, 400), 0.1), [f"p{place}" for place in range(400)])[0] == 1 / (1 + FLIPS)


def test_no_difference_has_p_one_and_what_was_not_measured_none():
    p = sign_flip_p(np.array([[0.0] * 5, [math.nan] * 5, [0.1, -0.1, 0.1, -0.1, 0.0]]), list("abcde"))
    assert p[0] == 1.0
    assert math.isnan(p[1])
    assert p[2] == 1.0
    assert np.isnan(sign_flip_p(np.zeros((3, 0)), [])).all()


def test_an_interval_of_patients_with_unlike_numbers_of_scans_draws_patients():
    # One patient of 50 scans at 1 and 49 of one scan each at 0: drawing scans would give about 0.4 to 0.6.
    patients = ["many"] * 50 + [f"p{place}" for place in range(49)]
    (low,), (high,) = intervals(np.array([[1.0] * 50 + [0.0] * 49]), patients)
    assert low == 0.0  # a sample without that patient, of which there are e^-1
    assert high > 0.7
    assert np.isnan(intervals(np.ones((2, 3)), ["p"] * 3)).all()
