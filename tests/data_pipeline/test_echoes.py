import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.stats import loggamma

from data_pipeline.chance import Chance
from data_pipeline.echoes import blurred, shadowed, speckled


def chance_of(count, seed=0):
    return Chance([f"scan-{number}" for number in range(count)], seed, 0, torch.device("cpu"))


def noise(count, height, width):
    return torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(count))


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_pictures_keep_their_shape_and_range(count, height, width, seed):
    picture, chance = noise(count, height, width), chance_of(count, seed)
    before = picture.clone()
    for changed in (blurred(picture, chance, 2), shadowed(picture, chance, 1), speckled(picture, chance, 0.3)):
        assert changed.shape == picture.shape
        assert changed.dtype == torch.float32
        assert changed.min() >= 0
        assert changed.max() <= 1 + 1e-6
    assert torch.equal(picture, before)


# Blur ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("largest", "size"), [(0.7, (40, 56)), (1.5, (33, 20)), (5, (24, 48))])
def test_blur_is_a_gaussian_of_a_drawn_deviation(largest, size):
    picture, chance = noise(6, *size), chance_of(6)
    sigmas = largest * chance.draws(1, "blur")[:, 0].numpy()
    assert 0 <= sigmas.min() < sigmas.max() <= largest
    smooth = blurred(picture, chance, largest)
    for place, sigma in enumerate(sigmas):
        scan = picture[place, 0].double().numpy()
        expected = gaussian_filter(scan, sigma, mode="nearest", radius=math.ceil(3 * largest))
        assert np.allclose(smooth[place, 0], expected, atol=2e-6)


def test_blur_leaves_what_is_even_as_it_is():
    assert torch.allclose(blurred(torch.full((4, 1, 20, 20), 0.6), chance_of(4), 2), torch.tensor(0.6), atol=1e-6)


# Shadow -------------------------------------------------------------------------------------------------------------


def test_a_shadow_darkens_a_band_below_some_depth():
    picture = torch.full((500, 1, 100, 120), 0.8)
    loss = (picture - shadowed(picture, chance_of(500), 1))[:, 0]
    assert loss.min() >= 0
    assert (loss[:, 1:] - loss[:, :-1]).min() >= -1e-6, "never lighter below"
    depth = loss.amax(dim=(1, 2))
    assert 0.1 - 1e-6 <= depth.min() < 0.11
    assert 0.39 < depth.max() <= 0.4 + 1e-6
    tops = (loss.amax(dim=2) > 0).float().argmax(dim=1)
    assert tops.min() < 3
    assert 45 < tops.max() < 55
    across = (loss[:, -1] > 0).float().mean(dim=1)
    assert across.max() <= 0.51
    middle = (loss[:, -1] * torch.arange(120)).sum(dim=1) / loss[:, -1].sum(dim=1)
    assert middle.min() < 10
    assert middle.max() > 110


def test_a_shadow_has_soft_edges():
    picture = torch.full((200, 1, 200, 240), 0.8)
    loss = (picture - shadowed(picture, chance_of(200), 1))[:, 0]
    share = loss / loss.amax(dim=(1, 2), keepdim=True)
    assert share.diff(dim=1).abs().max() < 0.03
    assert share.diff(dim=2).abs().max() < 0.15


def test_a_shadow_leaves_black_black_and_takes_from_the_dark_no_more_than_there_is():
    picture = torch.full((50, 1, 60, 60), 0.05)
    picture[..., :30] = 0
    shaded = shadowed(picture, chance_of(50), 1)
    assert (shaded[..., :30] == 0).all()
    assert shaded.min() == 0


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_shadows_fall_as_often_as_asked_for(probability):
    picture = torch.full((2000, 1, 12, 16), 0.8)
    shaded = (shadowed(picture, chance_of(2000), probability) != picture).any(dim=3).any(dim=2)
    # The standard deviation of a share of 2000 is at most .011.
    assert shaded.float().mean() == pytest.approx(probability, abs=0.045)


# Speckle ------------------------------------------------------------------------------------------------------------


def grains(count=40, height=160, width=200, largest=0.05):
    """Speckle [B, H, W] in units of each scan's drawn deviation, on even gray."""
    chance = chance_of(count)
    grain = speckled(torch.full((count, 1, height, width), 0.5), chance, largest) - 0.5
    return grain[:, 0] / (largest * chance.draws(1, "speckle")[:, :, None])


def test_speckle_has_the_deviation_that_is_drawn_and_a_mean_near_none():
    grain = grains()
    assert grain.mean().abs() < 0.03
    assert grain.mean(dim=(1, 2)).abs().max() < 0.1
    assert grain.std() == pytest.approx(1, abs=0.05)
    # As at its middle, so at its borders.
    for border in (grain[:, :2], grain[:, -2:], grain[..., :2], grain[..., -2:]):
        assert border.std() == pytest.approx(1, abs=0.06)


def test_speckle_is_distributed_as_the_logarithm_of_two_looks_power():
    deviation = math.sqrt(math.pi**2 / 6 - 1)
    wanted = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
    expected = (loggamma.ppf(wanted, 2) - loggamma.mean(2)) / deviation
    assert np.allclose(np.quantile(grains()[:10].numpy(), wanted), expected, atol=0.08)


def test_specks_are_a_few_pixels_large_and_wider_than_deep():
    grain = grains()

    def correlation(down, across):
        return float((grain[:, down:, across:] * grain[:, : 160 - down, : 200 - across]).mean())

    assert 0.5 > correlation(1, 0) > 0.3
    assert correlation(0, 1) > 0.7
    assert correlation(0, 2) > correlation(1, 0)
    assert abs(correlation(4, 0)) < 0.02
    assert abs(correlation(0, 10)) < 0.02
    assert abs(float((grain[:-1] * grain[1:]).mean())) < 0.02, "each scan has its own"


def test_speckle_leaves_black_black():
    picture = noise(8, 40, 40)
    picture[..., :20, :] = 0
    assert (speckled(picture, chance_of(8), 0.3)[..., :20, :] == 0).all()
