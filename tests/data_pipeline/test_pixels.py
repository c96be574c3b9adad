import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.pixels import UnreadableImage, read_gray, resize_gray

FORMATS = ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "AVIF"]


def noise(height=23, width=31):
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_gray_pixels_come_through_unchanged_whatever_the_colour_mode(kind, mode):
    image = noise()
    found = read_gray(io.BytesIO(encoded(Image.fromarray(image).convert(mode), kind)))
    assert found.dtype == np.uint8
    assert found.flags.writeable
    assert np.array_equal(found, image)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "1"])
def test_other_modes_are_read_as_gray_without_their_alpha(mode):
    dark = np.where(noise() > 127, 255, 0).astype(np.uint8)
    picture = Image.fromarray(dark).convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(3)
    assert np.array_equal(read_gray(io.BytesIO(encoded(picture, "PNG"))), dark)


def test_an_image_of_32_bit_pixels_is_unreadable_with_the_reason():
    picture = Image.fromarray(np.ones((4, 4), np.float32))
    with pytest.raises(UnreadableImage, match="holds 32 bit pixels"):
        read_gray(io.BytesIO(encoded(picture, "TIFF")))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_bytes_of_any_format_are_pixels_or_unreadable_and_nothing_else(kind):
    whole = encoded(Image.fromarray(noise()).convert("L" if kind == "PNG" else "RGB"), kind)
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        data = bytearray(whole[: random.integers(1, len(whole))] if random.random() < 0.5 else whole)
        for place in random.integers(0, len(data), 3):
            data[place] = random.integers(0, 256)
        refused += 1
        with suppress(UnreadableImage):
            assert read_gray(io.BytesIO(bytes(data))).ndim == 2
            refused -= 1
    assert refused > 30


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_a_file_cut_in_half_is_unreadable(kind):
    whole = encoded(Image.fromarray(noise()), kind)
    with pytest.raises(UnreadableImage):
        read_gray(io.BytesIO(whole[: len(whole) // 2]))


def test_a_folder_and_a_file_that_has_gone_are_told_apart(tmp_path):
    with pytest.raises(UnreadableImage, match="is a folder"):
        read_gray(tmp_path)
    with pytest.raises(UnreadableImage, match="is missing"):
        read_gray(tmp_path / "none.png")


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(0, 255))
def test_a_plain_image_stays_plain_at_any_size(height, width, new_height, new_width, value):
    found = resize_gray(np.full((height, width), value, np.uint8), (new_height, new_width))
    assert found.shape == (new_height, new_width)
    assert found.dtype == np.uint8
    assert (found == value).all()


def test_shrinking_averages_over_what_a_pixel_covers():
    image = noise(64, 64)
    # Bilinear weights over twice the step: (1, 3, 3, 1) / 8 along each side, away from the border.
    weights = np.array([1, 3, 3, 1]) / 8
    window = image[7:11, 21:25].astype(float)
    assert resize_gray(image, (32, 32))[4, 11] == pytest.approx(weights @ window @ weights, abs=1)


def test_enlarging_interpolates_between_the_pixels_centres():
    image = np.array([[0, 100]], np.uint8)
    assert resize_gray(image, (1, 4)).tolist() == [[0, 25, 75, 100]]
