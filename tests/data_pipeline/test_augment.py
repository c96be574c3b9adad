import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from data_pipeline import as_floats, augment

PUBLISHED = {"flip": 0.5, "rotation": 15, "scale": 0.1, "shift": 0.05, "brightness": 0.1, "contrast": 0.2}
NOTHING = dict.fromkeys((*PUBLISHED, "elastic", "blur", "shadow", "speckle", "gamma"), 0)
USUAL = PUBLISHED | {"elastic": 0.05, "blur": 1, "shadow": 0.25, "speckle": 0.06, "gamma": 0.3}
WILD = dict.fromkeys(NOTHING, 1) | {"rotation": 180, "scale": 0.9, "elastic": 0.1, "blur": 5}


def batch_of(count=8, height=40, width=56, seed=0):
    """Noise, a mask of noise, and keys."""
    random = np.random.default_rng(seed)
    image = torch.from_numpy(random.integers(0, 256, (count, 1, height, width), dtype=np.uint8))
    mask = torch.from_numpy(random.integers(0, 2, (count, 1, height, width), dtype=np.uint8))
    return image, mask, [f"scan-{number}" for number in range(count)]


def disc(height, width, y, x, radius):
    """A bright disc as an image and as its mask, both [1, 1, H, W]; (y, x) in pixels from the upper left corner."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    inside = ((rows - y) ** 2 + (columns - x) ** 2 < radius**2).to(torch.uint8)[None, None]
    return inside * 255, inside


def centre_and_area(picture):
    """Centroid (y, x) in pixels from the upper left corner, and area in pixels, of each of [B, 1, H, W]."""
    picture = picture[:, 0].double()
    area = picture.sum(dim=(1, 2))
    rows = (picture.sum(dim=2) * (torch.arange(picture.shape[1]) + 0.5)).sum(dim=1) / area
    columns = (picture.sum(dim=1) * (torch.arange(picture.shape[2]) + 0.5)).sum(dim=1) / area
    return rows, columns, area


def varied(image, mask, count=400, **ranges):
    """One scan under many keys, [count, 1, H, W]."""
    keys = [f"key-{number}" for number in range(count)]
    return augment(image.expand(count, -1, -1, -1), mask.expand(count, -1, -1, -1), keys, 0, 0, **NOTHING | ranges)


# A function of seed, epoch and key --------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1, 2, 3, 5, 8])
def test_a_scan_is_varied_alike_in_any_batch(share):
    image, mask, keys = batch_of()
    picture, truth = augment(image, mask, keys, 3, 2, **USUAL)
    for start in range(0, len(keys), share):
        part = slice(start, start + share)
        alone, its_truth = augment(image[part], mask[part], keys[part], 3, 2, **USUAL)
        assert torch.equal(alone, picture[part])
        assert torch.equal(its_truth, truth[part])


def test_a_scan_is_varied_alike_at_any_place_and_time():
    image, mask, keys = batch_of()
    picture, truth = augment(image, mask, keys, 3, 2, **USUAL)
    torch.manual_seed(99)
    order = [5, 0, 7, 2, 2, 6, 1, 3]
    again, its_truth = augment(image[order], mask[order], [keys[place] for place in order], 3, 2, **USUAL)
    assert torch.equal(again, picture[order])
    assert torch.equal(its_truth, truth[order])


def test_a_scan_is_varied_alike_alone_and_by_any_number_of_threads(threads):
    # So large that torch shares out one scan's pixels, of which no number of threads gets whole vectors.
    image, mask, keys = batch_of(8, 240, 257)
    threads(1)
    picture, truth = augment(image, mask, keys, 3, 2, **USUAL)
    for count in (2, 3):
        threads(count)
        for part in (slice(place, place + share) for share in (1, 8) for place in range(0, 8, share)):
            again, its_truth = augment(image[part], mask[part], keys[part], 3, 2, **USUAL)
            assert torch.equal(again, picture[part])
            assert torch.equal(its_truth, truth[part])


@pytest.fixture
def threads():
    """Sets torch's number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_another_seed_epoch_or_key_varies_it_otherwise():
    image, mask, _ = batch_of(1)
    calls = [("a", 0, 0), ("a", 0, 1), ("a", 1, 0), ("a", 1, 1), ("b", 0, 0), ("a", 11, 1), ("a", 1, 11), ("1 a", 1, 1)]
    for kind in NOTHING.keys() - {"flip", "shadow"}:
        pictures = [
            augment(image, mask, [key], seed, epoch, **NOTHING | {kind: WILD[kind]})[0] for key, seed, epoch in calls
        ]
        assert len({picture.numpy().tobytes() for picture in pictures}) == len(calls), kind


def test_the_input_stays_as_it_is():
    image, mask, keys = batch_of()
    before = image.clone(), mask.clone()
    augment(image, mask, keys, 0, 0, **WILD)
    augment(image, mask, keys, 0, 0, **NOTHING)
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


def test_no_change_looks_at_pixels_on_the_host():
    image, mask, keys = batch_of()
    # Tensors without data: what asks for a value, and would make the host wait for the device, fails on them.
    picture, truth = augment(image.to("meta"), mask.to("meta"), keys, 0, 0, **WILD)
    assert picture.shape == truth.shape == image.shape
    assert picture.device.type == truth.device.type == "meta"


# What comes out ---------------------------------------------------------------------------------------------------


def test_zero_ranges_leave_a_scan_untouched():
    image, mask, keys = batch_of()
    picture, truth = augment(image, mask, keys, 0, 0, **NOTHING)
    assert picture.dtype == truth.dtype == torch.float32
    assert torch.equal(picture, image / 255)
    assert torch.equal(truth, mask.float())
    assert all(torch.equal(one, other) for one, other in zip((picture, truth), as_floats(image, mask), strict=True))


@given(
    st.fixed_dictionaries({kind: st.just(0) | st.floats(0, largest) for kind, largest in WILD.items()}),
    st.tuples(st.integers(1, 4), st.integers(2, 40), st.integers(2, 40)),
    st.integers(0, 2**32),
)
def test_images_stay_in_0_to_1_and_masks_in_0_and_1(ranges, shape, seed):
    image, mask, keys = batch_of(*shape, seed)
    picture, truth = augment(image, mask, keys, seed, 0, **ranges)
    assert picture.shape == truth.shape == image.shape
    assert picture.dtype == truth.dtype == torch.float32
    assert picture.isfinite().all()
    assert 0 <= picture.min() <= picture.max() <= 1
    assert set(truth.unique().tolist()) <= {0, 1}
    alone, its_truth = augment(image[-1:], mask[-1:], keys[-1:], seed, 0, **ranges)
    assert torch.equal(alone, picture[-1:])
    assert torch.equal(its_truth, truth[-1:])


def test_image_and_mask_move_together():
    # Large patches, so that most pixels lie inside or outside with all their neighbours.
    coarse = (torch.rand(32, 1, 6, 9, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    mask = F.interpolate(coarse, size=(60, 90), mode="nearest").to(torch.uint8)
    keys = [f"scan-{number}" for number in range(32)]
    moves = NOTHING | {"flip": 0.5, "rotation": 180, "scale": 0.1, "shift": 0.05, "elastic": 0.1}
    picture, truth = augment(mask * 255, mask, keys, 0, 0, **moves)
    inside, outside = picture > 0.9999, picture < 0.0001
    assert (inside | outside).float().mean() > 0.7
    assert truth[inside].all()
    assert not truth[outside].any()
    assert not torch.equal(truth, mask.float())


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (160, 96)])
def test_the_mask_still_outlines_the_lesion(size):
    image, mask = disc(*size, size[0] / 2, size[1] / 2, 25)
    moves = {"flip": 0.5, "rotation": 15, "scale": 0.1, "shift": 0.05, "elastic": 0.1}
    picture, truth = varied(image, mask, 60, **moves)
    outlined, marked = picture > 0.5, truth > 0.5
    dice = 2 * (outlined & marked).sum(dim=(1, 2, 3)) / (outlined.sum(dim=(1, 2, 3)) + marked.sum(dim=(1, 2, 3)))
    assert dice.min() > 0.98
    assert (marked != mask.bool()).any(dim=3).any(dim=2).all()


def test_what_changes_the_image_alone_leaves_the_mask():
    image, mask, keys = batch_of()
    tones = {kind: WILD[kind] for kind in ("blur", "shadow", "speckle", "gamma", "brightness", "contrast")}
    for kind, largest in tones.items():
        picture, truth = augment(image, mask, keys, 0, 0, **NOTHING | {kind: largest})
        assert torch.equal(truth, mask.float())
        assert not torch.equal(picture, image / 255), kind


def test_outside_the_scan_is_black_and_no_lesion():
    image, mask = torch.full((1, 1, 32, 32), 200, dtype=torch.uint8), torch.ones(1, 1, 32, 32, dtype=torch.uint8)
    picture, truth = varied(image, mask, shift=0.5)
    moved_in = picture[:, 0, 16, 16] == 0
    assert (picture.amin(dim=(1, 2, 3)) == 0).float().mean() > 0.95
    assert not truth[picture == 0].any()
    assert not moved_in.all()


# What published results were trained with ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 128, 128), (4, 112, 112), (5, 37, 53)])
def test_without_the_later_kinds_scans_are_varied_as_for_the_published_results(shape):
    image, mask, keys = batch_of(*shape)
    picture, truth = augment(image, mask, keys, 7, 3, **NOTHING | PUBLISHED)
    grid = torch.stack([published_grid(key, 7, 3, shape[1:]) for key in keys])
    expected = F.grid_sample(image.float() / 255, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    drawn = torch.tensor([published_draws(key, 7, 3) for key in keys])[..., None, None, None]
    mean = expected.mean(dim=(1, 2, 3), keepdim=True)
    gain, offset = 1 + 0.2 * (2 * drawn[:, 5] - 1), 0.1 * (2 * drawn[:, 6] - 1)
    assert torch.equal(picture, ((expected - mean) * gain + mean + offset).clamp(0, 1))
    assert torch.equal(truth, F.grid_sample(mask.float(), grid, mode="nearest", align_corners=False))


def published_draws(key, seed, epoch):
    """Seven numbers in [0, 1): flip, rotation, scale, shift across and down, contrast, brightness."""
    digest = hashlib.blake2b(f"{seed} {epoch} {key}".encode(), digest_size=56).digest()
    return [int.from_bytes(digest[start : start + 8], "little") // 2**40 / 2**24 for start in range(0, 56, 8)]


def published_grid(key, seed, epoch, size):
    """Where each pixel looks, float32 [H, W, 2], in steps that each round to float32 as torch's do."""
    drawn = torch.tensor(published_draws(key, seed, epoch))
    either_way = 2 * drawn - 1
    angle, zoom = either_way[1] * (math.pi * 15 / 180), 1 / (1 + either_way[2] * 0.1)
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    mirror, aspect = 1 - 2 * (drawn[0] < 0.5).float(), size[0] / size[1]
    across = torch.stack([cosine * mirror, -sine * aspect * mirror, either_way[3] * 2 * 0.05])
    down = torch.stack([sine / aspect, cosine, either_way[4] * 2 * 0.05])
    y, x = (torch.linspace(-1, 1, count) * (count - 1) / count for count in size)
    grid = torch.stack([row[0] * x + row[1] * y[:, None] + row[2] for row in (across, down)], dim=2)
    known = F.affine_grid(torch.stack((across, down))[None], [1, 1, *size], align_corners=False)[0]
    assert torch.allclose(grid, known, atol=1e-6)
    return grid


# Flip -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 56), (33, 21)])
def test_a_certain_flip_is_the_mirror_image(size):
    image, mask, keys = batch_of(8, *size)
    picture, truth = augment(image, mask, keys, 0, 0, **NOTHING | {"flip": 1})
    assert torch.allclose(picture, torch.flip(image, dims=[3]) / 255, atol=1e-4)
    assert torch.equal(truth, torch.flip(mask, dims=[3]).float())


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_scans_are_flipped_as_often_as_asked_for(probability):
    image, mask, _ = batch_of(1, 8, 8)
    _, truth = varied(image, mask, 2000, flip=probability)
    flipped = (truth == torch.flip(mask, dims=[3])).all(dim=(1, 2, 3))
    kept = (truth == mask).all(dim=(1, 2, 3))
    assert (flipped ^ kept).all()
    # The standard deviation of a share of 2000 is at most .011.
    assert flipped.float().mean() == pytest.approx(probability, abs=0.045)


# Rotation ---------------------------------------------------------------------------------------------------------


def angles_of(picture, middle):
    """Direction from the middle to the centroid, degrees."""
    rows, columns, _ = centre_and_area(picture)
    return torch.rad2deg(torch.atan2(rows - middle[0], columns - middle[1]))


def test_a_quarter_turn_of_a_square_is_the_turned_image():
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 6, 6, generator=random)
    image = (F.interpolate(coarse, size=(64, 64), mode="bicubic", align_corners=False).clamp(0, 1) * 255).to(
        torch.uint8
    )
    mask = (image > 128).to(torch.uint8)
    picture, truth = varied(image, mask, 1500, rotation=180)
    for turns in (1, 2, 3):
        turned = torch.rot90(image, turns, dims=[2, 3]) / 255
        difference = (picture - turned).abs().mean(dim=(1, 2, 3))
        nearest = int(difference.argmin())
        # 1500 angles lie .24 degrees apart on average: the nearest moves the corner by about a tenth of a pixel.
        assert difference[nearest] < 0.004
        assert (truth[nearest] != torch.rot90(mask, turns, dims=[2, 3])[0]).float().mean() < 0.01


@pytest.mark.parametrize("size", [(64, 128), (128, 64)])
def test_rotation_keeps_angles_and_circles_on_a_scan_that_is_no_square(size):
    height, width = size
    middle = (height / 2, width / 2)
    image, mask = disc(height, width, middle[0], middle[1] + 14, 8)
    picture, truth = varied(image, mask, 300, rotation=180)
    rows, columns, area = centre_and_area(truth)
    distance = ((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2).sqrt()
    assert torch.allclose(distance, torch.full_like(distance, 14), atol=0.35)
    assert torch.allclose(area, mask.sum().double().expand(300), rtol=0.05)
    marked = truth[:, 0] > 0
    tall = marked.any(dim=2).sum(dim=1)
    wide = marked.any(dim=1).sum(dim=1)
    assert (tall - 16).abs().max() <= 2
    assert (wide - 16).abs().max() <= 2
    angles = angles_of(truth, middle)
    assert angles.min() < -170
    assert angles.max() > 170
    assert torch.allclose(picture.sum(dim=(1, 2, 3)), mask.sum().float().expand(300), rtol=0.02)


def test_rotation_stays_within_its_range_and_fills_it():
    image, mask = disc(96, 160, 48, 120, 10)
    angles = angles_of(varied(image, mask, rotation=20)[0], (48, 80))
    assert -20.2 < angles.min() < -19
    assert 19 < angles.max() < 20.2
    assert angles.mean().abs() < 2
    assert (angles.abs() < 10).float().mean() == pytest.approx(0.5, abs=0.1)


# Elastic ------------------------------------------------------------------------------------------------------------


def places_seen(height, width, count, **ranges):
    """Where each pixel looks, in pixels [count, 2, H, W], y before x: read from pictures whose gray is the place."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    seen = [
        varied(place[None, None].to(torch.uint8), torch.zeros(1, 1, height, width), count, **ranges)[0] * 255
        for place in (rows, columns)
    ]
    return torch.cat(seen, dim=1), torch.stack((rows, columns)).float()


@pytest.mark.parametrize("size", [(96, 96), (96, 160), (160, 64)])
@pytest.mark.parametrize("largest", [0.05, 0.1])
def test_elastic_displacement_is_bounded_and_never_folds(size, largest):
    seen, places = places_seen(*size, 200, elastic=largest)
    height, width = size
    top, left = round(height * largest) + 2, round(width * largest) + 2
    inner = (slice(None), slice(None), slice(top, -top), slice(left, -left))
    moved = ((seen - places) / torch.tensor([height, width])[:, None, None])[inner]
    assert moved.abs().max() <= largest
    assert moved.abs().max() > 0.5 * largest
    assert moved.mean().abs() < 0.1 * largest
    assert torch.corrcoef(moved.transpose(0, 1).reshape(2, -1))[0, 1].abs() < 0.1, "each direction by itself"
    down, across = seen[inner].diff(dim=2)[..., :-1], seen[inner].diff(dim=3)[:, :, :-1]
    area = down[:, 0] * across[:, 1] - down[:, 1] * across[:, 0]
    assert area.min() > 0
    assert area.max() > 1.1


def test_elastic_displacement_is_smooth_and_differs_between_scans():
    seen, places = places_seen(128, 128, 50, elastic=0.05)
    moved = (seen - places)[:, :, 12:-12, 12:-12]
    assert moved.diff(n=2, dim=2).abs().max() < 0.05
    assert moved.diff(n=2, dim=3).abs().max() < 0.05
    assert torch.corrcoef(moved.reshape(50, -1)).fill_diagonal_(0).abs().max() < 0.9


def test_elastic_deformation_precedes_the_turn_and_the_flip():
    """The shape that a turned scan shows is that of the scan, deformed and then turned: no fold comes of both."""
    seen, _ = places_seen(96, 160, 100, elastic=0.1, rotation=20, scale=0.1)
    inner = seen[:, :, 40:-40, 50:-50]
    down, across = inner.diff(dim=2)[..., :-1], inner.diff(dim=3)[:, :, :-1]
    assert (down[:, 0] * across[:, 1] - down[:, 1] * across[:, 0]).min() > 0


# Scale, shift, gamma, brightness, contrast ------------------------------------------------------------------------


def test_scale_stays_within_its_range_and_fills_it():
    image, mask = disc(96, 160, 48, 80, 24)
    rows, columns, area = centre_and_area(varied(image, mask, scale=0.25)[0])
    factor = (area / mask.sum()).sqrt()
    assert 0.745 < factor.min() < 0.76
    assert 1.24 < factor.max() < 1.255
    assert factor.mean() == pytest.approx(1, abs=0.03)
    assert torch.allclose(rows, torch.full_like(rows, 48), atol=0.05), "about the middle"
    assert torch.allclose(columns, torch.full_like(columns, 80), atol=0.05)


def test_shift_is_a_fraction_of_each_side_and_stays_within_its_range():
    image, mask = disc(100, 200, 50, 100, 10)
    rows, columns, area = centre_and_area(varied(image, mask, shift=0.2)[0])
    down, across = (rows - 50) / 100, (columns - 100) / 200
    for share in (down, across):
        assert -0.201 < share.min() < -0.19
        assert 0.19 < share.max() < 0.201
        assert share.mean().abs() < 0.02
    assert torch.corrcoef(torch.stack((down, across)))[0, 1].abs() < 0.15, "each side by itself"
    assert torch.allclose(area, mask.sum().double().expand_as(area), rtol=0.01)


@pytest.mark.parametrize("largest", [0.3, 1])
def test_gamma_is_an_exponent_within_its_range(largest):
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    picture, _ = varied(image, image > 100, 400, gamma=largest)
    levels = np.arange(256) / 255
    exponents = np.log(picture[:, 0, 8, 0].double().numpy()) / np.log(levels[128])
    assert np.allclose(picture.numpy().reshape(400, 256), levels ** exponents[:, None], atol=1e-5)
    assert 1 / (1 + largest) <= exponents.min() + 1e-6 < 1.01 / (1 + largest)
    assert 0.99 * (1 + largest) < exponents.max() <= 1 + largest + 1e-5
    assert np.log(exponents).mean() == pytest.approx(0, abs=0.1 * largest), "as often darker as lighter"


def test_brightness_is_a_fraction_of_the_range_and_stays_within_it():
    image, mask = torch.full((1, 1, 8, 8), 128, dtype=torch.uint8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    picture, truth = varied(image, mask, brightness=0.3)
    change = picture[:, 0, 0, 0] - 128 / 255
    assert torch.allclose(picture - 128 / 255, change.view(-1, 1, 1, 1).expand_as(picture), atol=1e-6)
    assert -0.3001 < change.min() < -0.29
    assert 0.29 < change.max() < 0.3001
    assert change.mean().abs() < 0.03
    assert not truth.any()


def test_contrast_stretches_about_the_mean_and_stays_within_its_range():
    image = torch.tensor([100, 140], dtype=torch.uint8).repeat(1, 1, 8, 4)
    picture, _ = varied(image, torch.zeros_like(image), contrast=0.4)
    gain = (picture[:, 0, 0, 1] - picture[:, 0, 0, 0]) * 255 / 40
    assert torch.allclose(picture.mean(dim=(1, 2, 3)), torch.tensor(120 / 255), atol=1e-5)
    assert 0.599 < gain.min() < 0.62
    assert 1.38 < gain.max() < 1.401
    assert gain.mean() == pytest.approx(1, abs=0.04)


def test_each_kind_of_change_is_drawn_by_itself():
    image, mask = disc(48, 48, 24, 32, 8)
    steps = torch.tensor([100, 140], dtype=torch.uint8).repeat(1, 1, 4, 2)
    nowhere = torch.zeros_like(steps)

    def moved(**ranges):
        return centre_and_area(varied(image, mask, 1000, **ranges)[0])

    brighter = varied(steps, nowhere, 1000, brightness=0.2)[0]
    stretched = varied(steps, nowhere, 1000, contrast=0.2)[0]
    down, across, _ = moved(shift=0.2)
    changes = {
        "flip": moved(flip=0.5)[1],
        "rotation": moved(rotation=20)[0],
        "scale": moved(scale=0.2)[2],
        "shift down": down,
        "shift across": across,
        "elastic": moved(elastic=0.1)[0],
        "gamma": varied(steps, nowhere, 1000, gamma=0.3)[0][:, 0, 0, 0],
        "blur": varied(steps, nowhere, 1000, blur=1)[0][:, 0, 1, 1],
        "brightness": brighter[:, 0, 0, 0],
        "contrast": stretched[:, 0, 0, 1] - stretched[:, 0, 0, 0],
    }
    correlations = torch.corrcoef(torch.stack([change.double() for change in changes.values()]))
    # Of 1000 independent draws, a correlation has a standard deviation of .03.
    assert (correlations - torch.eye(len(changes))).abs().max() < 0.15
