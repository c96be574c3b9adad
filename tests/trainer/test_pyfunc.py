import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.models import write_mixed_ensemble
from trainer import networks
from trainer.registry import register
from trainer.serving import load_segmenter
from trainer.tracking import import_mlflow


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    """Noise of any mode, height and width."""
    noise = np.random.default_rng(1)
    if mode == "I;16":
        return Image.fromarray(noise.integers(0, 65536, size, dtype=np.uint16))
    if mode == "1":
        return Image.fromarray(noise.random(size) > 0.5)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(noise.integers(0, 256, (*size, *channels), dtype=np.uint8))


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, form)
    return file.getvalue()


def decoded(mask: bytes) -> NDArray[np.uint8]:
    with Image.open(BytesIO(mask)) as image:
        assert image.format == "PNG"
        assert image.mode == "L"
        return np.array(image)


@pytest.fixture
def model(tracker: Path, model_folder: Path) -> Any:
    """A registered model as MLflow loads it."""
    made = register(model_folder, "loaded", "candidate", None, {}, {})
    return import_mlflow().pyfunc.load_model(made.uri)


def test_masks_are_those_of_the_segmenter_at_any_size_and_mode(model: Any, model_folder: Path) -> None:
    pictures = [("L", (64, 48), "PNG"), ("RGB", (91, 33), "PNG"), ("RGBA", (17, 120), "PNG"), ("1", (50, 50), "PNG")]
    files = [encoded(picture(mode, size), form) for mode, size, form in pictures]
    files += [encoded(picture("RGB", (80, 60)), "JPEG"), encoded(picture("I;16", (40, 70)), "TIFF")]
    grays = [np.array(picture(mode, size).convert("RGB").convert("L")) for mode, size, _ in pictures]
    grays += [np.array(Image.open(BytesIO(files[4])).convert("L"))]
    grays += [(np.array(picture("I;16", (40, 70))) // 256).astype(np.uint8)]
    outlined = model.predict(pd.DataFrame({"image": files}))
    segmenter = load_segmenter(model_folder, networks.build)
    assert list(outlined.columns) == ["mask", "lesion", "area_fraction", "probability"]
    for row, gray in zip(outlined.itertuples(), grays, strict=True):
        probability = segmenter.probabilities([gray])[0]
        mask = probability >= 0.5
        assert 0 < mask.sum() < mask.size
        np.testing.assert_array_equal(decoded(row.mask), mask * 255)
        assert row.lesion == mask.any()
        assert row.area_fraction == pytest.approx(mask.sum() / mask.size)
        assert row.probability == pytest.approx(probability[mask].sum(dtype=np.float64) / mask.sum())


def test_the_threshold_can_be_given_with_the_call(model: Any) -> None:
    image = pd.DataFrame({"image": [encoded(picture("L", (64, 48)))]})
    everything = model.predict(image, params={"threshold": 0.0}).iloc[0]
    nothing = model.predict(image, params={"threshold": 1.0}).iloc[0]
    assert (decoded(everything["mask"]) == 255).all()
    assert (everything["lesion"], everything["area_fraction"]) == (True, 1.0)
    assert 0 < everything["probability"] < 1
    assert (decoded(nothing["mask"]) == 0).all()
    assert (nothing["lesion"], nothing["area_fraction"], nothing["probability"]) == (False, 0.0, 0.0)


def test_flips_and_largest_component_can_be_given_with_the_call(model: Any, model_folder: Path) -> None:
    image = np.array(picture("L", (64, 48)))
    segmenter = load_segmenter(model_folder, networks.build)
    seen = set()
    for flips in (False, True):
        for largest_component in (False, True):
            asked = {"flips": flips, "largest_component": largest_component}
            row = model.predict(pd.DataFrame({"image": [encoded(Image.fromarray(image))]}), params=asked).iloc[0]
            (expected,) = segmenter.using(**asked).masks([image])
            np.testing.assert_array_equal(decoded(row["mask"]), expected * 255)
            seen.add(expected.tobytes())
    assert len(seen) == 4


def test_an_ensemble_of_several_kinds_of_networks_predicts_its_own_masks(
    tracker: Path, model_folder: Path, tmp_path: Path
) -> None:
    folder = write_mixed_ensemble(model_folder, tmp_path / "mixed")
    made = register(folder, "mixed", "candidate", None, {}, {})
    model = import_mlflow().pyfunc.load_model(made.uri)
    images = [np.array(picture("L", size)) for size in ((64, 48), (91, 33))]
    outlined = model.predict(pd.DataFrame({"image": [encoded(Image.fromarray(image)) for image in images]}))
    segmenter = load_segmenter(folder, networks.build)
    for image, mask in zip(images, outlined["mask"], strict=True):
        (expected,) = segmenter.masks([image])
        np.testing.assert_array_equal(decoded(mask), expected * 255)
        assert 0 < expected.sum() < expected.size
    everything = model.predict(pd.DataFrame({"image": [encoded(picture("L", (64, 48)))]}), params={"threshold": 0.0})
    assert (decoded(everything["mask"][0]) == 255).all()


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(model: Any, threshold: float) -> None:
    with pytest.raises(ValueError, match="expected a probability"):
        model.predict(pd.DataFrame({"image": [encoded(picture("L", (64, 48)))]}), params={"threshold": threshold})


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"no image", "row 1: the file is no image that can be read"),
        (b"", "row 1: the file is no image that can be read"),
        (encoded(picture("L", (64, 48)))[:1000], "row 1: the file cannot be read: "),
    ],
)
def test_an_unreadable_image_is_named_by_its_row(model: Any, file: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        model.predict(pd.DataFrame({"image": [encoded(picture("L", (64, 48))), file]}))


def test_no_rows_give_no_rows(model: Any) -> None:
    assert len(model.predict(pd.DataFrame({"image": pd.Series([], dtype=object)}))) == 0


def test_rest_callers_send_and_get_base64(model: Any) -> None:
    from mlflow.pyfunc.scoring_server import invocations

    file = encoded(picture("RGB", (30, 40)))
    request = {
        "dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(file).decode()]]},
        "params": {"threshold": 0.4},
    }
    answer = invocations(json.dumps(request), "application/json", model, model.metadata.get_input_schema())
    (row,) = json.loads(answer.response)["predictions"]
    expected = model.predict(pd.DataFrame({"image": [file]}), params={"threshold": 0.4}).iloc[0]
    assert base64.b64decode(row["mask"]) == expected["mask"]
    assert row["lesion"] is True
    assert row["area_fraction"] == pytest.approx(expected["area_fraction"])
    assert row["probability"] == pytest.approx(expected["probability"])


def test_the_example_that_comes_with_the_model_works(model: Any) -> None:
    example = model.metadata.load_input_example()
    assert decoded(model.predict(example)["mask"][0]).shape == (64, 64)
