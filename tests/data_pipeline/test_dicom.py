from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom import Dataset
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from data_pipeline.dicom import is_dicom, read_dicom_gray, read_dicom_mask, read_header, references, spacing
from data_pipeline.faults import Refused
from data_pipeline.pixels import UnreadableImage, read_gray
from data_pipeline.scan import ScanFiles, read_scan
from tests.data_pipeline.dicom_files import region, save_dicom, write_dicom, write_segmentation

GRAY = np.add.outer(np.arange(12) * 15, np.arange(18) * 4).astype(np.uint8)
LOOP = np.stack([GRAY, GRAY // 2, 255 - GRAY])
COLOURS = np.dstack([GRAY, GRAY[::-1], GRAY[:, ::-1]])
# ITU-R BT.601: .299 red, .587 green, .114 blue
LUMA = COLOURS @ np.array([0.299, 0.587, 0.114])
LESION = np.zeros((12, 18), bool)
LESION[3:7, 5:12] = True


# -- gray ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, ImplicitVRLittleEndian, ExplicitVRBigEndian, None])
def test_8_bit_gray_stays_as_it_is_however_it_is_stored(tmp_path: Path, syntax: str | None) -> None:
    write_dicom(tmp_path / "a.dcm", GRAY, **({"syntax": syntax} if syntax else {}))
    gray = read_dicom_gray(tmp_path / "a.dcm")
    assert gray.dtype == np.uint8
    np.testing.assert_array_equal(gray, GRAY)


def test_jpeg_is_decoded(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", GRAY, syntax=JPEGBaseline8Bit)
    np.testing.assert_allclose(read_dicom_gray(tmp_path / "a.dcm").astype(int), GRAY, atol=6)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, None])
def test_each_frame_of_a_loop_is_read_by_its_number(tmp_path: Path, syntax: str | None) -> None:
    write_dicom(tmp_path / "loop.dcm", LOOP, **({"syntax": syntax} if syntax else {}))
    for number, frame in enumerate(LOOP):
        np.testing.assert_array_equal(read_dicom_gray(tmp_path / "loop.dcm", number), frame)
    np.testing.assert_array_equal(read_dicom_gray(tmp_path / "loop.dcm"), LOOP[0])
    with pytest.raises(UnreadableImage, match="has no frame 4, it holds 3"):
        read_dicom_gray(tmp_path / "loop.dcm", 3)


def test_a_frame_is_read_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dicom(tmp_path / "loop.dcm", np.zeros((50, 200, 200), np.uint8))
    read = []
    taken = DecodeRunner.get_data

    def seen(runner: DecodeRunner, file: BinaryIO, offset: int, length: int) -> bytes:
        read.append(length)
        return taken(runner, file, offset, length)

    monkeypatch.setattr(DecodeRunner, "get_data", seen)
    read_dicom_gray(tmp_path / "loop.dcm", 30)
    assert read == [200 * 200]


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", GRAY, "MONOCHROME1")
    np.testing.assert_array_equal(read_dicom_gray(tmp_path / "a.dcm"), 255 - GRAY)


def test_wide_gray_is_shown_over_the_range_of_its_stored_bits(tmp_path: Path) -> None:
    stored = np.array([[0, 2048, 4095]], np.uint16)
    write_dicom(tmp_path / "a.dcm", stored, BitsStored=12, HighBit=11)
    assert read_dicom_gray(tmp_path / "a.dcm").tolist() == [[0, 128, 255]]
    signed = np.array([[-32768, 0, 32767]], np.int16)
    write_dicom(tmp_path / "b.dcm", signed)
    assert read_dicom_gray(tmp_path / "b.dcm").tolist() == [[0, 128, 255]]


def test_gray_is_shown_through_the_first_window_after_rescaling(tmp_path: Path) -> None:
    """Of PS3.3, C.11.2.1.2.1: (x - (centre - 0.5)) / (width - 1) + 0.5, here with x = 2 stored - 100."""
    stored = np.array([[0, 50, 75, 100, 125, 1000]], np.uint16)
    shown = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": [50.5, 1.0], "WindowWidth": [101.0, 2.0]}
    write_dicom(tmp_path / "a.dcm", stored, **shown)
    assert read_dicom_gray(tmp_path / "a.dcm").tolist() == [[0, 0, 128, 255, 255, 255]]


def test_a_rescale_that_falls_inverts_with_and_without_a_window(tmp_path: Path) -> None:
    stored = np.array([[0, 100, 255]], np.uint8)
    write_dicom(tmp_path / "a.dcm", stored, RescaleSlope=-1, RescaleIntercept=255)
    assert read_dicom_gray(tmp_path / "a.dcm").tolist() == [[255, 155, 0]]
    window = {"WindowCenter": 128, "WindowWidth": 256}
    write_dicom(tmp_path / "b.dcm", stored, RescaleSlope=-1, RescaleIntercept=255, **window)
    assert read_dicom_gray(tmp_path / "b.dcm").tolist() == [[255, 155, 0]]


@pytest.mark.parametrize("window", [(128, 0), (128, -5), (None, 256), ("nan", 256)])
def test_a_window_that_cannot_be_is_left_out(tmp_path: Path, window: tuple[Any, Any]) -> None:
    write_dicom(tmp_path / "a.dcm", GRAY, WindowCenter=window[0], WindowWidth=window[1])
    np.testing.assert_array_equal(read_dicom_gray(tmp_path / "a.dcm"), GRAY)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("frames", [1, 2])
def test_colour_becomes_gray_by_its_luma_as_a_png_does(tmp_path: Path, planar: int, frames: int) -> None:
    stored = np.stack([COLOURS] * frames)
    if planar:
        stored = np.ascontiguousarray(np.moveaxis(stored, 3, 1)).reshape(stored.shape)
    write_dicom(tmp_path / "a.dcm", stored if frames > 1 else stored[0], "RGB", PlanarConfiguration=planar)
    gray = read_dicom_gray(tmp_path / "a.dcm", frames - 1)
    np.testing.assert_allclose(gray, LUMA, atol=1)
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    np.testing.assert_array_equal(gray, read_gray(tmp_path / "a.png"))


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
def test_luma_and_chroma_become_gray(tmp_path: Path, photometric: str) -> None:
    ycbcr = np.array(Image.fromarray(COLOURS).convert("YCbCr"))
    if photometric == "YBR_FULL_422":  # Y1 Y2 Cb Cr for two pixels
        pairs = ycbcr.reshape(12, 9, 2, 3)
        ycbcr = np.concatenate([pairs[..., 0], pairs[:, :, :1, 1], pairs[:, :, :1, 2]], axis=2).reshape(12, 36, 1)
        ds = write_dicom(tmp_path / "a.dcm", np.zeros((12, 18, 3), np.uint8), photometric)
        ds.PixelData = ycbcr.tobytes()
        save_dicom(ds, tmp_path / "a.dcm")
    else:
        write_dicom(tmp_path / "a.dcm", ycbcr, photometric)
    np.testing.assert_allclose(read_dicom_gray(tmp_path / "a.dcm").astype(int), LUMA, atol=3)


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_FULL"])
def test_colour_in_jpeg_becomes_gray(tmp_path: Path, photometric: str) -> None:
    smooth = np.dstack([GRAY, 255 - GRAY, GRAY // 2])
    write_dicom(tmp_path / "a.dcm", smooth, photometric, JPEGBaseline8Bit)
    luma = smooth @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read_dicom_gray(tmp_path / "a.dcm").astype(int), luma, atol=8)


def test_colour_in_jpeg_2000_becomes_gray(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", COLOURS, "YBR_RCT", JPEG2000Lossless)
    np.testing.assert_allclose(read_dicom_gray(tmp_path / "a.dcm"), LUMA, atol=1)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_is_looked_up(tmp_path: Path, bits: int) -> None:
    numbers = np.array([[0, 1, 2, 1]], np.uint8)
    dtype, top = (np.uint8, 200) if bits == 8 else (np.uint16, 200 << 8)
    tables = {
        "Red": np.array([top, 0, 0, 0], dtype),
        "Green": np.array([0, top, 0, 0], dtype),
        "Blue": np.array([0, 0, top, 0], dtype),
    }
    palette: dict[str, Any] = {}
    for colour, table in tables.items():
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, bits]
        palette[f"{colour}PaletteColorLookupTableData"] = table.tobytes()
    write_dicom(tmp_path / "a.dcm", numbers, "PALETTE COLOR", **palette)
    np.testing.assert_allclose(read_dicom_gray(tmp_path / "a.dcm"), [[60, 117, 23, 117]], atol=1)


# -- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [1, 2, 255])
def test_a_mask_file_is_read_whatever_number_means_inside(tmp_path: Path, inside: int) -> None:
    write_dicom(tmp_path / "a.dcm", GRAY)
    write_dicom(tmp_path / "m.dcm", LESION.astype(np.uint8) * np.uint8(inside))
    np.testing.assert_array_equal(read_dicom_mask(tmp_path / "m.dcm", tmp_path / "a.dcm"), LESION)


@pytest.mark.parametrize("inside", [1, 255, 65535])
def test_a_wide_mask_is_read_too(tmp_path: Path, inside: int) -> None:
    write_dicom(tmp_path / "m.dcm", LESION.astype(np.uint16) * np.uint16(inside))
    np.testing.assert_array_equal(read_dicom_mask(tmp_path / "m.dcm", tmp_path / "a.dcm"), LESION)


def test_a_mask_in_one_colour_is_found_and_one_in_monochrome1_is_inverted(tmp_path: Path) -> None:
    red = np.zeros((12, 18, 3), np.uint8)
    red[LESION, 0] = 255
    write_dicom(tmp_path / "red.dcm", red, "RGB")
    np.testing.assert_array_equal(read_dicom_mask(tmp_path / "red.dcm", tmp_path / "a.dcm"), LESION)
    write_dicom(tmp_path / "dark.dcm", np.where(LESION, 0, 255).astype(np.uint8), "MONOCHROME1")
    np.testing.assert_array_equal(read_dicom_mask(tmp_path / "dark.dcm", tmp_path / "a.dcm"), LESION)


def test_a_mask_of_several_frames_gives_that_of_the_image(tmp_path: Path) -> None:
    masks = np.stack([LESION, np.roll(LESION, 3, axis=1), np.roll(LESION, 2, axis=0)]).astype(np.uint8)
    write_dicom(tmp_path / "m.dcm", masks)
    for frame in range(3):
        np.testing.assert_array_equal(read_dicom_mask(tmp_path / "m.dcm", tmp_path / "a.dcm", frame), masks[frame] > 0)


@pytest.mark.parametrize("size", [(12, 18), (5, 17)])
def test_a_segmentation_gives_the_union_of_its_segments_on_a_frame(tmp_path: Path, size: tuple[int, int]) -> None:
    """Also where frames begin within a byte, as those of 5x17 do."""
    random = np.random.default_rng(0)
    masks = random.random((5, *size)) < 0.3
    image = write_dicom(tmp_path / "loop.dcm", np.zeros((4, *size), np.uint8))
    other = write_dicom(tmp_path / "other.dcm", np.zeros(size, np.uint8))
    sources = [(image, 2), (image, 4), (image, 2), (other, None), (image, 4)]
    write_segmentation(tmp_path / "seg.dcm", list(masks), sources)

    def mask(name: str, frame: int) -> np.ndarray:
        return read_dicom_mask(tmp_path / "seg.dcm", tmp_path / name, frame)

    np.testing.assert_array_equal(mask("loop.dcm", 1), masks[0] | masks[2])
    np.testing.assert_array_equal(mask("loop.dcm", 3), masks[1] | masks[4])
    np.testing.assert_array_equal(mask("other.dcm", 0), masks[3])
    assert not mask("loop.dcm", 0).any()


@pytest.mark.parametrize(("fraction", "counts"), [(127, False), (128, True), (255, True)])
def test_fractions_count_from_half_of_their_maximum(tmp_path: Path, fraction: int, counts: bool) -> None:
    image = write_dicom(tmp_path / "a.dcm", GRAY)
    write_segmentation(tmp_path / "seg.dcm", [LESION], [(image, None)], fraction)
    np.testing.assert_array_equal(read_dicom_mask(tmp_path / "seg.dcm", tmp_path / "a.dcm"), LESION & counts)


def test_a_frame_may_be_segmented_for_several_frames_of_an_image(tmp_path: Path) -> None:
    image = write_dicom(tmp_path / "loop.dcm", LOOP)
    write_segmentation(tmp_path / "seg.dcm", [LESION], [(image, [1, 3])])  # type: ignore[list-item]
    assert references(read_header(tmp_path / "seg.dcm")) == [(image.SOPInstanceUID, (0, 2))]
    for frame in range(3):
        assert read_dicom_mask(tmp_path / "seg.dcm", tmp_path / "loop.dcm", frame).any() == (frame != 1)


def test_a_segmentation_that_does_not_say_of_what_is_unreadable(tmp_path: Path) -> None:
    image = write_dicom(tmp_path / "a.dcm", GRAY)
    segmentation = write_segmentation(tmp_path / "seg.dcm", [LESION, LESION], [(image, None)] * 2)
    del segmentation.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence
    save_dicom(segmentation, tmp_path / "seg.dcm")
    with pytest.raises(UnreadableImage, match="which image it segments"):
        read_dicom_mask(tmp_path / "seg.dcm", tmp_path / "a.dcm")


# -- spacing ---------------------------------------------------------------------------------------------------------


def told(tmp_path: Path, **attributes: Any) -> tuple[float, float] | None:
    write_dicom(tmp_path / "a.dcm", GRAY, **attributes)
    found = spacing(read_header(tmp_path / "a.dcm"))
    return found and (round(found[0], 9), round(found[1], 9))


def test_spacing_is_that_of_the_largest_2d_region_in_millimetres(tmp_path: Path) -> None:
    regions = [
        region((0, 0, 3, 3), (0.03, 0.04)),
        region((0, 4, 11, 17), (0.01, 0.02)),
        region((0, 0, 12, 18), (0.5, 0.6), form=3),
    ]
    assert told(tmp_path, SequenceOfUltrasoundRegions=Items(regions), PixelSpacing=[7, 8]) == (0.1, 0.2)


def test_without_regions_pixel_spacing_tells(tmp_path: Path) -> None:
    assert told(tmp_path, PixelSpacing=[0.25, 0.5]) == (0.25, 0.5)
    assert told(tmp_path) is None


@pytest.mark.parametrize(
    ("delta", "units"),
    [
        ((0.01, 0.02), 4),
        ((0.0, 0.02), 3),
        ((0.01, -0.02), 3),
        ((float("nan"), 0.02), 3),
        ((float("inf"), 0.02), 3),
    ],
)
def test_a_region_that_gives_no_length_gives_no_spacing(tmp_path: Path, delta: tuple[float, float], units: int) -> None:
    regions = Items([region((0, 0, 12, 18), delta, units)])
    assert told(tmp_path, SequenceOfUltrasoundRegions=regions) is None
    assert told(tmp_path, SequenceOfUltrasoundRegions=regions, PixelSpacing=[0.25, 0.5]) == (0.25, 0.5)


def test_a_region_without_its_box_or_units_gives_no_spacing(tmp_path: Path) -> None:
    bare = Dataset()
    bare.RegionSpatialFormat = 1
    assert told(tmp_path, SequenceOfUltrasoundRegions=Items([bare])) is None


# -- what cannot be read ---------------------------------------------------------------------------------------------


def test_a_dicom_file_is_known_by_its_content(tmp_path: Path) -> None:
    write_dicom(tmp_path / "IM0001", GRAY)
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    (tmp_path / "empty.dcm").touch()
    assert is_dicom(tmp_path / "IM0001")
    assert [is_dicom(tmp_path / name) for name in ("a.png", "empty.dcm", "gone.dcm", ".")] == [False] * 4


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, JPEGLosslessSV1])
def test_a_transfer_syntax_without_decoder_is_named(tmp_path: Path, syntax: str) -> None:
    ds = write_dicom(tmp_path / "a.dcm", GRAY, syntax=RLELossless)
    ds.file_meta.TransferSyntaxUID = syntax
    save_dicom(ds, tmp_path / "a.dcm")
    with pytest.raises(UnreadableImage, match=rf"transfer syntax .* \({syntax}\)"):
        read_dicom_gray(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Rows": 20000}, "20000x18, more than 16384 pixels a side"),
        ({"BitsAllocated": 32}, "32 bit pixels"),
        ({"PhotometricInterpretation": "CMYK"}, "CMYK"),
        ({"NumberOfFrames": 2000000000}, "more than its bytes"),
        ({"RescaleSlope": 0, "RescaleIntercept": 3}, "all of its values to one"),
        ({"Rows": 500}, "cannot be read"),
    ],
)
def test_what_no_image_of_a_scanner_is_is_refused_with_the_reason(
    tmp_path: Path, attributes: dict[str, Any], reason: str
) -> None:
    ds = write_dicom(tmp_path / "a.dcm", GRAY)
    for name, value in attributes.items():
        setattr(ds, name, value)
    save_dicom(ds, tmp_path / "a.dcm")
    with pytest.raises(UnreadableImage, match=reason):
        read_dicom_gray(tmp_path / "a.dcm")


def test_an_image_without_pixels_is_refused_by_name(tmp_path: Path) -> None:
    ds = write_dicom(tmp_path / "a.dcm", GRAY)
    del ds.PixelData
    save_dicom(ds, tmp_path / "a.dcm")
    with pytest.raises(Refused, match=r"^a\.dcm cannot be read: .*no pixel data"):
        read_scan(ScanFiles("key", tmp_path / "a.dcm", (), "patient", "group", "benign"))


def test_a_mask_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", GRAY)
    write_dicom(tmp_path / "m.dcm", LESION.T.astype(np.uint8).copy())
    with pytest.raises(Refused, match=r"m\.dcm is 18x12, its image 12x18"):
        read_scan(ScanFiles("key", tmp_path / "a.dcm", (tmp_path / "m.dcm",), "patient", "group", "benign"))


@pytest.fixture(params=["RLE", "JPEG", "JPEG 2000", "as it is", "segmentation"], scope="module")
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of three frames, to be damaged."""
    path = tmp_path_factory.mktemp("sound") / "a.dcm"
    if request.param == "segmentation":
        image = write_dicom(path, LOOP)
        write_segmentation(path, [LESION] * 3, [(image, 1), (image, 2), (image, 3)])
    else:
        syntaxes = {"RLE": RLELossless, "JPEG": JPEGBaseline8Bit, "JPEG 2000": JPEG2000Lossless}
        write_dicom(path, LOOP, syntax=syntaxes.get(request.param, ExplicitVRLittleEndian))
    return path.read_bytes()


@given(st.floats(0, 2), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4))
def test_a_file_that_is_cut_or_changed_is_read_or_refused_with_a_reason(
    tmp_path_factory: pytest.TempPathFactory, sound: bytes, kept: float, changes: list[tuple[float, int]]
) -> None:
    content = bytearray(sound[: int(kept * len(sound))])
    for place, value in changes if content else ():
        content[int(place * len(content))] = value
    path = tmp_path_factory.mktemp("damaged") / "a.dcm"
    path.write_bytes(content)
    for read in (lambda: read_dicom_gray(path, 1), lambda: read_dicom_mask(path, path, 1)):
        against = ""
        try:
            assert read().ndim == 2
        except UnreadableImage as reason:
            against = str(reason) or "nothing"
        assert against != "nothing"
        assert "\n" not in against


def test_no_message_or_warning_tells_who_it_is(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    ds = write_dicom(tmp_path / "a.dcm", GRAY, patient="Meier, Erika " * 20)
    ds.PatientBirthDate = "14.2.1961, Meier"
    ds.StudyInstanceUID = "Meier"
    save_dicom(ds, tmp_path / "a.dcm")
    content = (tmp_path / "a.dcm").read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "a.dcm").write_bytes(content[:length])
        with pytest.raises(UnreadableImage) as refused:
            read_dicom_gray(tmp_path / "a.dcm")
        assert "Meier" not in str(refused.value)
    assert not any("Meier" in str(warning.message) for warning in recwarn)
    assert "Meier" not in caplog.text
