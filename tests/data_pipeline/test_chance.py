import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.chance import Chance

CPU = torch.device("cpu")
KEYS = ["case-1", "case-2", "Fall 3, links", "ø"]


def test_draws_are_the_upper_bits_of_a_hash_of_seed_epoch_and_key():
    for place, key in enumerate(KEYS):
        digest = hashlib.blake2b(f"5 12 {key}".encode(), digest_size=56).digest()
        whole = [int.from_bytes(digest[8 * number : 8 * number + 8], "little") >> 40 for number in range(7)]
        assert Chance(KEYS, 5, 12, CPU).draws(7)[place].tolist() == [number / 2**24 for number in whole]


def test_each_kind_has_draws_of_its_own():
    chance = Chance([f"key-{number}" for number in range(2000)], 0, 0, CPU)
    drawn = torch.stack([chance.draws(1, kind)[:, 0] for kind in ("", "blur", "shadow", "gamma")])
    assert 0 <= drawn.min() < drawn.max() < 1
    # Of 2000 independent draws, a correlation has a standard deviation of .022.
    assert (torch.corrcoef(drawn) - torch.eye(4)).abs().max() < 0.1


@given(st.lists(st.text(max_size=8), min_size=1, max_size=4), st.integers(0, 2**40), st.integers(0, 10**6))
def test_fields_are_pcg3d_of_the_scans_bits_and_the_place(keys, seed, epoch):
    """Jarzynski and Olano (2020), listing of pcg3d, in numpy's unsigned integers."""
    fields = Chance(keys, seed, epoch, CPU).fields((3, 5), "speckle")
    for key, field in zip(keys, fields, strict=True):
        digest = hashlib.blake2b(f"{seed} {epoch} {key}".encode(), digest_size=8, person=b"speckle").digest()
        words = np.frombuffer(digest, dtype="<u4")
        v = [np.full(15, words[0]), np.full(15, words[1]), np.arange(15, dtype=np.uint32)]
        v = [part * np.uint32(1664525) + np.uint32(1013904223) for part in v]
        for last in (False, True):
            v[0] = v[0] + v[1] * v[2]
            v[1] = v[1] + v[2] * v[0]
            v[2] = v[2] + v[0] * v[1]
            v = v if last else [part ^ (part >> np.uint32(16)) for part in v]
        expected = np.stack(v[:2]).view(np.int32).astype(np.float32) / np.float32(2**31)
        assert np.array_equal(field.numpy().reshape(2, 15), expected)


def test_fields_are_uniform_and_without_a_pattern():
    fields = Chance(["a", "b"], 0, 0, CPU).fields((300, 400), "speckle")
    assert -1 <= fields.min() < -0.9999
    assert 0.9999 < fields.max() <= 1
    # Of 120 000 numbers, a mean has a standard deviation of .0017, a correlation one of .0029.
    assert fields.mean(dim=(2, 3)).abs().max() < 0.008
    assert (fields.square().mean(dim=(2, 3)) - 1 / 3).abs().max() < 0.005
    shifted = [fields.roll(steps, dims=(2, 3)) for steps in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 16), (16, 0))]
    every = torch.cat(shifted).reshape(24, -1)
    assert (torch.corrcoef(every) - torch.eye(24)).abs().max() < 0.015


@pytest.mark.parametrize("order", [[0], [3, 1], [2, 2, 0, 3]])
def test_a_scans_numbers_depend_on_no_other_scan(order):
    every, some = Chance(KEYS, 1, 2, CPU), Chance([KEYS[place] for place in order], 1, 2, CPU)
    assert torch.equal(some.draws(7), every.draws(7)[order])
    assert torch.equal(some.fields((7, 7), "elastic"), every.fields((7, 7), "elastic")[order])


def test_normal_fields_have_the_moments_of_a_normal_distribution_and_belong_to_their_scan():
    keys = ["one", "other"]
    fields = Chance(keys, 3, 1, torch.device("cpu")).normals((200, 300), "noise")
    assert fields.shape == (2, 2, 200, 300)
    assert fields.mean(dim=(2, 3)).abs().max() < 0.02
    assert (fields.std(dim=(2, 3)) - 1).abs().max() < 0.02
    kurtosis = (fields**4).mean(dim=(2, 3))
    assert (kurtosis - 3).abs().max() < 0.15
    flat = fields.flatten(0, 1).flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.02
    alone = Chance(["other"], 3, 1, torch.device("cpu")).normals((200, 300), "noise")
    assert torch.equal(alone[0], fields[1])
