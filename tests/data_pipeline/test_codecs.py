import io
import pickle
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.codecs import CODECS, decode, encode_image, encode_mask
from data_pipeline.pixels import LARGEST_SIDE

sides = st.integers(1, 70)


def random_mask(height, width, seed=0):
    random = np.random.default_rng(seed)
    return random.random((height, width)) < random.random()


def by_opencv(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def by_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


def png(width, height, *chunks, depth=1, colour=0, interlaced=0):
    """A PNG of these chunks, whose checksums are right whatever they say."""
    header = struct.pack(">2I5B", width, height, depth, colour, 0, 0, interlaced)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in [(b"IHDR", header), *chunks, (b"IEND", b"")]:
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data


def one_bit_rows(mask, filters=0):
    packed = np.packbits(mask, axis=1)
    return np.hstack([np.full((len(mask), 1), filters, np.uint8), packed]).tobytes()


# Masks --------------------------------------------------------------------------------------------------------------


@given(sides, sides, st.integers(0, 2**32))
def test_a_mask_of_any_size_is_read_as_opencv_and_pillow_read_it(height, width, seed):
    mask = random_mask(height, width, seed)
    data = encode_mask(mask)
    found = decode({"mask.png": data}, "mask")
    assert found.dtype == np.uint8
    assert np.array_equal(found > 0, mask)
    assert np.array_equal(by_opencv(data), mask * np.uint8(255))
    assert np.array_equal(by_pillow(data), mask * np.uint8(255))


def test_a_mask_is_one_bit_a_pixel_without_row_filters_and_small():
    rows, columns = np.mgrid[:440, :500]
    ellipse = ((rows - 200) / 90) ** 2 + ((columns - 250) / 130) ** 2 < 1
    data = encode_mask(ellipse)
    assert data[24:29] == b"\x01\x00\x00\x00\x00"
    assert len(data) < 1000
    assert set(np.unique(decode({"mask.png": data}, "mask"))) == {0, 1}, "read in place, which OpenCV gives as 255"


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40))
def test_pixels_in_several_chunks_with_others_between_them_are_read_whole(height, width, piece):
    mask = random_mask(height, width, piece)
    packed = zlib.compress(one_bit_rows(mask))
    pieces = [packed[begin : begin + piece] for begin in range(0, len(packed), piece)]
    data = png(width, height, (b"tEXt", b"Comment\0none"), *[(b"IDAT", part) for part in pieces])
    assert np.array_equal(decode({"mask.png": data}, "mask"), mask)
    assert np.array_equal(by_pillow(data), mask * np.uint8(255))


@pytest.mark.parametrize("filters", [1, 2, 3, 4])
def test_rows_with_a_filter_are_read_as_pillow_reads_them(filters):
    mask = random_mask(13, 21)
    data = png(21, 13, (b"IDAT", zlib.compress(one_bit_rows(mask, filters))))
    found = decode({"mask.png": data}, "mask")
    assert np.array_equal(found, by_pillow(data))
    assert not np.array_equal(found > 0, mask)


def test_an_interlaced_mask_goes_the_librarys_way():
    """Seven passes of Adam7; of 1 x 1 pixels only the first one has a row."""
    data = png(1, 1, (b"IDAT", zlib.compress(b"\0\x80")), interlaced=1)
    assert decode({"mask.png": data}, "mask").tolist() == [[255]]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "I;16"])
def test_a_mask_in_any_other_mode_is_inside_where_it_is_above_0(mode):
    mask = random_mask(17, 9)
    picture = Image.fromarray(mask).convert("L")
    picture = picture.convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
    if mode == "I;16":
        picture = Image.fromarray(mask.astype(np.uint16) * 65535)
    file = io.BytesIO()
    picture.save(file, "PNG")
    assert np.array_equal(decode({"mask.png": file.getvalue()}, "mask") > 0, mask)


def test_an_image_of_one_bit_a_pixel_is_black_and_white():
    mask = random_mask(5, 19)
    assert np.array_equal(decode({"image.png": encode_mask(mask)}, "image"), mask * np.uint8(255))


def test_a_mask_cut_anywhere_is_none_or_what_the_library_makes_of_it():
    mask = random_mask(40, 50)
    whole = encode_mask(mask)
    refused = 0
    for end in range(len(whole)):
        found = decode({"mask.png": whole[:end]}, "mask")
        verdict = by_opencv(whole[:end]) if end else None
        refused += found is None
        assert found is verdict is None or np.array_equal(found, verdict)
    assert refused > len(whole) // 2


def test_a_mask_with_a_flipped_bit_anywhere_is_right_or_what_the_library_makes_of_it():
    mask = random_mask(24, 17)
    whole = encode_mask(mask)
    for place in range(2 * len(whole)):
        data = bytearray(whole)
        data[place // 2] ^= (0x01, 0x08)[place % 2]
        found = decode({"mask.png": bytes(data)}, "mask")
        if found is None:
            continue
        in_place = set(np.unique(found)) <= {0, 1}
        assert np.array_equal(found, mask) if in_place and mask.any() else np.array_equal(found, by_opencv(data))


@pytest.fixture(scope="module")
def bomb():
    """A megabyte that inflates to 256."""
    deflate = zlib.compressobj(1)
    data = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(256)) + deflate.flush()
    assert len(data) < 2 << 20
    return data


@pytest.mark.parametrize("height", [0, 1, 40, LARGEST_SIDE + 1, 2**31 - 1])
def test_a_zlib_bomb_takes_no_more_memory_than_its_header_announces(bomb, height):
    data = png(40, height, (b"IDAT", bomb))
    tracemalloc.start()
    found = decode({"mask.png": data}, "mask")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is None or found.shape == (height, 40)
    assert peak < 32 << 20


# Images -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@given(height=sides, width=sides, seed=st.integers(0, 2**32))
def test_an_image_of_any_size_comes_back_to_the_byte(codec, height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    data = encode_image(image, codec)
    found = decode({f"image.{codec}": data}, "image")
    assert found.dtype == np.uint8
    assert np.array_equal(found, image)
    assert np.array_equal(by_pillow(data) if codec == "png" else np.load(io.BytesIO(data), allow_pickle=False), image)


def test_an_array_is_what_numpy_would_have_saved():
    image = np.random.default_rng(0).integers(0, 256, (37, 53), dtype=np.uint8)
    assert encode_image(image, "npy") == saved(image)


def saved(array, version=(1, 0)):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version, allow_pickle=array.dtype == object)
    return file.getvalue()


def loaded(data):
    """np.load's verdict, None for what it refuses or what no memory holds."""
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception:
        return None


random = np.random.default_rng(1)
ARRAYS = {
    "gray": random.integers(0, 256, (7, 5), dtype=np.uint8),
    "by columns": np.asfortranarray(random.integers(0, 256, (7, 5), dtype=np.uint8)),
    "signed": random.integers(-100, 100, (7, 5), dtype=np.int8),
    "16 bit": random.integers(0, 2**16, (7, 5), dtype=np.uint16),
    "floats": random.random((7, 5)),
    "bools": random.random((7, 5)) < 0.5,
    "a scalar": np.array(7, np.uint8),
    "a row": random.integers(0, 256, 9, dtype=np.uint8),
    "colours": random.integers(0, 256, (7, 5, 3), dtype=np.uint8),
    "no rows": np.zeros((0, 5), np.uint8),
    "fields": np.zeros((3, 2), np.dtype([("gray", np.uint8)])),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_any_array_is_read_as_numpy_reads_it(kind, version):
    data = saved(ARRAYS[kind], version)
    found = decode({"image.npy": data}, "image")
    assert found.dtype == ARRAYS[kind].dtype
    assert found.shape == ARRAYS[kind].shape
    assert np.array_equal(found, ARRAYS[kind])


@pytest.mark.parametrize("kind", ["gray", "by columns", "16 bit", "a scalar"])
def test_an_array_cut_anywhere_is_none_and_one_with_more_behind_it_what_numpy_reads(kind):
    whole = saved(ARRAYS[kind])
    assert all(decode({"image.npy": whole[:end]}, "image") is None for end in range(len(whole)))
    assert np.array_equal(decode({"image.npy": whole + b"more"}, "image"), ARRAYS[kind])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_an_array_with_any_byte_of_its_header_changed_is_what_numpy_reads_or_none():
    whole = saved(ARRAYS["gray"])
    refused = 0
    for place in range(128):
        for value in {0, 10, 32, 39, 40, 45, 48, 57, 91, 123, 255, whole[place] ^ 1, whole[place] ^ 128}:
            data = whole[:place] + bytes([value]) + whole[place + 1 :]
            found, verdict = decode({"image.npy": data}, "image"), loaded(data)
            assert (found is None) == (verdict is None), data
            assert found is None or (found.dtype == verdict.dtype and np.array_equal(found, verdict))
            refused += found is None
    assert refused > 500


@pytest.mark.parametrize(
    "shape",
    ["(10**9,)", "(1000000000000000, 1000)", f"({2**62}, {2**62})", f"({2**70}, 1)", "(-7, -5)", "(-1, 35)", "7",
     "(7, 5.0)", "(True, 35)", "(" * 150 + "7" + ")" * 150, "[" * 3000 + "]" * 3000],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_array_that_announces_what_cannot_be_is_none(shape):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(35)
    found = decode({"image.npy": data}, "image")
    assert found is None or found.shape == (1, 35)


class Executed:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize("data", [saved(np.array([[Executed()]])), pickle.dumps(Executed())])
def test_a_pickle_is_none_and_never_executed(data):
    assert decode({"image.npy": data}, "image") is None


@pytest.mark.parametrize("data", [b"", b"\0", b"\x93NUMPY", b"\x89PNG\r\n\x1a\n", bytes(1000)])
@pytest.mark.parametrize("part", ["image", "mask"])
@pytest.mark.parametrize("codec", CODECS)
def test_what_is_no_picture_is_none(data, part, codec):
    assert decode({f"{part}.{codec}": data}, part) is None


def test_a_part_that_is_missing_is_none():
    assert decode({"mask.png": encode_mask(random_mask(3, 3)), "json": b"{}"}, "image") is None
