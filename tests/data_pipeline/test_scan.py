import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.faults import Refused
from data_pipeline.scan import ScanFiles, read_mask, read_scan, safe_key, without_clashes

GRADIENT = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def files(image: Path, *masks: Path, key: str = "scan") -> ScanFiles:
    return ScanFiles(key, image, masks, "patient", "group", "benign", (0.1, 0.2))


def saved(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path)
    return path


def test_a_scan_is_its_image_its_lesions_united_and_whose_it_is(tmp_path: Path) -> None:
    left, right = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    left[1:3, 1:3] = True
    right[2:5, 6] = True
    image = saved(tmp_path / "a.png", GRADIENT)
    scan = read_scan(files(image, saved(tmp_path / "l.png", left), saved(tmp_path / "r.png", right)))
    np.testing.assert_array_equal(scan.image, GRADIENT)
    assert scan.image.dtype == np.uint8
    np.testing.assert_array_equal(scan.mask, left | right)
    assert scan.mask.dtype == np.bool_
    assert (scan.key, scan.patient, scan.group, scan.label) == ("scan", "patient", "group", "benign")
    assert scan.spacing == (0.1, 0.2)


def test_a_scan_without_masks_has_an_empty_one(tmp_path: Path) -> None:
    scan = read_scan(files(saved(tmp_path / "a.png", GRADIENT)))
    assert scan.mask.shape == (6, 8)
    assert not scan.mask.any()


def test_the_alpha_of_an_image_says_nothing(tmp_path: Path) -> None:
    layers = np.dstack([GRADIENT] * 3 + [np.where(GRADIENT > 100, 255, 0).astype(np.uint8)])
    np.testing.assert_array_equal(read_scan(files(saved(tmp_path / "a.png", layers))).image, GRADIENT)


def test_a_colour_image_is_read_by_its_luma(tmp_path: Path) -> None:
    pure = np.zeros((1, 3, 3), np.uint8)
    pure[0, 0, 0] = pure[0, 1, 1] = pure[0, 2, 2] = 200
    # ITU-R BT.601: .299 red, .587 green, .114 blue
    np.testing.assert_allclose(read_scan(files(saved(tmp_path / "a.png", pure))).image, [[60, 117, 23]], atol=1)


def test_a_16_bit_image_is_read_by_its_upper_byte(tmp_path: Path) -> None:
    wide = GRADIENT.astype(np.uint16) * 256 + 255
    np.testing.assert_array_equal(read_scan(files(saved(tmp_path / "a.png", wide))).image, GRADIENT)


def test_a_truncated_png_is_refused_and_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    image = saved(tmp_path / "cut.png", noise)
    image.write_bytes(image.read_bytes()[:2000])
    with pytest.raises(Refused, match=r"^cut\.png "):
        read_scan(files(image))


def test_a_truncated_mask_is_refused_by_its_own_name(tmp_path: Path) -> None:
    image = saved(tmp_path / "a.png", GRADIENT)
    mask = saved(tmp_path / "cut_mask.png", GRADIENT > 100)
    mask.write_bytes(mask.read_bytes()[:40])
    with pytest.raises(Refused, match=r"^cut_mask\.png "):
        read_scan(files(image, mask))


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_refused_and_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.png"
    path.write_bytes(content)
    with pytest.raises(Refused, match=r"^odd\.png "):
        read_scan(files(path))


def test_a_file_that_has_gone_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"^gone\.png is missing"):
        read_scan(files(tmp_path / "gone.png"))


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    image = saved(tmp_path / "a.png", GRADIENT)
    with pytest.raises(Refused, match=r"m\.png is 8x6, its image 6x8"):
        read_scan(files(image, saved(tmp_path / "m.png", GRADIENT.T.copy())))


def test_an_image_too_large_for_any_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"long\.png is 1x20000"):
        read_scan(files(saved(tmp_path / "long.png", np.zeros((1, 20000), np.uint8))))


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_mask_in_any_one_colour_is_found(tmp_path: Path, channel: int) -> None:
    mask = np.zeros((6, 8, 3), np.uint8)
    mask[2:4, 3:5, channel] = 255
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", mask)), mask.any(axis=2))


def test_the_alpha_of_a_mask_says_nothing(tmp_path: Path) -> None:
    mask = np.zeros((6, 8, 4), np.uint8)
    mask[..., 3] = 255
    mask[2:4, 3:5, :3] = 255
    mask[2, 3, 3] = 0
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", mask)), mask[..., :3].any(axis=2))


def test_gray_edges_count_from_half_of_the_range(tmp_path: Path) -> None:
    edges = np.array([[0, 1, 127, 128, 255]], np.uint8)
    assert read_mask(saved(tmp_path / "m.png", edges)).tolist() == [[False, False, False, True, True]]


def test_a_mask_of_zeros_and_ones_is_not_lost(tmp_path: Path) -> None:
    assert read_mask(saved(tmp_path / "m.png", np.array([[0, 1, 1]], np.uint8))).tolist() == [[False, True, True]]


def test_a_palette_mask_is_read_by_its_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 0, 255, 0, 255, 0, 0])
    picture.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[False, True, True]]


def test_a_palette_mask_with_dim_colours_is_not_lost(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 64, 0, 0, 0, 64, 64])
    picture.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[False, True, True]]


def test_a_mask_of_class_numbers_counts_every_class(tmp_path: Path) -> None:
    assert read_mask(saved(tmp_path / "m.png", np.array([[0, 1, 2, 3]], np.uint8))).tolist() == [[False, *[True] * 3]]


@pytest.mark.parametrize("inside", [1, 2, 255, 65535])
def test_a_16_bit_mask_is_read_whatever_its_range(tmp_path: Path, inside: int) -> None:
    for name in ("m.png", "m.tif"):
        wide = np.array([[0, inside, inside]], np.uint16)
        assert read_mask(saved(tmp_path / name, wide)).tolist() == [[False, True, True]]


def test_the_ringing_of_a_jpeg_mask_is_cut_off(tmp_path: Path) -> None:
    truth = np.zeros((48, 64), bool)
    truth[10:30, 13:41] = True
    Image.fromarray(truth).convert("L").save(tmp_path / "m.jpg", quality=75)
    decoded = np.asarray(Image.open(tmp_path / "m.jpg"))
    assert ((decoded > 0) & (decoded < 255)).any()
    np.testing.assert_array_equal(read_mask(tmp_path / "m.jpg"), truth)


@pytest.mark.parametrize("size", [(12, 16), (3, 4), (6, 7), (100, 41)])
def test_where_masks_are_fitted_each_pixel_is_that_nearest_to_its_centre(tmp_path: Path, size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(size) < 0.5
    image = saved(tmp_path / "a.png", GRADIENT)
    fitted = replace(files(image, saved(tmp_path / "m.png", mask)), fit_masks=True)
    rows = ((np.arange(6) + 0.5) * size[0] / 6).astype(int)
    columns = ((np.arange(8) + 0.5) * size[1] / 8).astype(int)
    np.testing.assert_array_equal(read_scan(fitted).mask, mask[rows][:, columns])


def test_fitted_masks_are_united_with_those_of_the_images_size(tmp_path: Path) -> None:
    left, right = np.zeros((6, 8), bool), np.zeros((12, 16), bool)
    left[1, 1] = right[6:8, 12:14] = True
    masks = saved(tmp_path / "l.png", left), saved(tmp_path / "r.png", right)
    scan = read_scan(replace(files(saved(tmp_path / "a.png", GRADIENT), *masks), fit_masks=True))
    assert np.argwhere(scan.mask).tolist() == [[1, 1], [3, 6]]


def test_a_key_keeps_what_tells_files_apart() -> None:
    assert safe_key("benign (1)") == "benign-1"
    assert safe_key("bus_0001-l") == "bus_0001-l"


def test_names_that_differ_by_accent_script_or_bytes_have_keys_that_differ() -> None:
    names = ["Muller 1", "Müller 1", "Möller 1", "病人1", "患者1", "检查", "（）", "M\udcfcller 1"]
    keys = [safe_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert keys[1].startswith("Muller-1-")


def test_an_umlaut_gives_one_key_in_either_spelling() -> None:
    assert safe_key(unicodedata.normalize("NFD", "Müller")) == safe_key(unicodedata.normalize("NFC", "Müller"))


@given(st.text())
def test_a_key_is_made_of_what_no_tar_or_store_misreads(stem: str) -> None:
    key = safe_key(stem)
    assert key
    assert all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in key)
    assert safe_key(key) == key


def test_of_two_scans_with_one_key_the_first_is_kept_and_the_other_refused_by_name() -> None:
    first, second = files(Path("x/a.png"), key="a"), files(Path("y/a.png"), key="a")
    other = files(Path("x/b.png"), key="b")
    findings = without_clashes([first, other, second])
    assert findings.scans == [first, other]
    assert findings.refused == {"y/a.png": "has the key a, which x/a.png has already"}
