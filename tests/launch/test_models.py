"""Models as a person judges them, joins them and predicts with them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.launch.command import Command
from trainer import networks
from trainer.serving import load_segmenter


@pytest.fixture
def unseen(sonotrain: Command, dataset: Path) -> Path:
    """Six other phantoms."""
    call = ("data", "phantom", "unseen", "--count", 6, "--size", "56x48", "--folds", 3, "--seed", 5)
    assert sonotrain(*call).status == 0
    return dataset.with_name("unseen")


@pytest.fixture
def second(model_folder: Path, tmp_path: Path) -> Path:
    """The same network at another size and threshold, trained on folds 2 and 3 of the phantoms as far as it tells."""
    folder = tmp_path / "second"
    folder.mkdir()
    (folder / "generator.safetensors").write_bytes((model_folder / "generator.safetensors").read_bytes())
    (folder / "network.json").write_text((model_folder / "network.json").read_text())
    tell(folder, size=[48, 64], threshold=0.25)
    return folder


def tell(folder: Path, **more: object) -> None:
    file = folder / "network.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


def told(file: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(Path(file).read_text())
    return content


def test_several_datasets_have_a_row_and_an_entry_each_that_are_those_of_one_alone(
    sonotrain: Command, dataset: Path, unseen: Path, model_folder: Path
) -> None:
    ended = sonotrain("evaluate", model_folder, dataset, unseen, "--baselines", "--json", "both.json")
    assert ended.status == 0
    assert sonotrain("evaluate", model_folder, unseen, "--baselines", "--json", "one.json").status == 0
    both, one = told("both.json"), told("one.json")
    assert list(both) == ["phantoms", "phantoms-2"]
    assert both["phantoms-2"] == one
    dsc, distance = one["dsc"], one["rms_surface_distance"]
    assert f"{100 * dsc['mean']:.2f}±{50 * (dsc['high'] - dsc['low']):.2f}" in ended.output
    assert f"{distance['mean']:.1f}±{(distance['high'] - distance['low']) / 2:.1f} mm" in ended.output
    assert "mean ± half the width of the 95 % interval over patients" in " ".join(ended.output.split())
    assert ended.output.count("- centred") == 2
    assert "written to both.json" in ended.output.splitlines()[-1]


def test_options_of_evaluate_stand_before_what_the_model_says_and_are_written_down(
    sonotrain: Command, dataset: Path, model_folder: Path
) -> None:
    tell(model_folder, flips=True)
    asked = ("threshold", "flips", "largest_component")
    assert sonotrain("evaluate", model_folder, dataset, "--json", "own.json").status == 0
    own = told("own.json")
    assert [own[key] for key in asked] == [0.5, True, False]
    options = ("--threshold", 1, "--no-flips", "--largest-component", "--json", "other.json")
    assert sonotrain("evaluate", model_folder, dataset, *options).status == 0
    other = told("other.json")
    assert [other[key] for key in asked] == [1.0, False, True]
    assert other["missed"] == other["cases"] > 0
    assert own["missed"] < own["cases"]


def test_scans_that_a_model_was_trained_on_are_counted_aloud(
    sonotrain: Command, dataset: Path, unseen: Path, model_folder: Path, second: Path
) -> None:
    digest = json.loads((dataset / "index.json").read_text())["digest"]
    tell(model_folder, learnt_from={digest: [2, 3]})
    tell(second, learnt_from={digest: [1, 3], "0" * 64: [1]})

    def warning(*call: object) -> list[str]:
        ended = sonotrain("evaluate", *call, "--json", "e.json")
        assert ended.status == 0
        return [line for line in ended.output.splitlines() if line.startswith("Warning: ")]

    assert warning(model_folder, dataset) == ["Warning: 8 of these 12 scans were trained on; that flatters it"]
    assert told("e.json")["seen_in_training"] == 8
    assert warning(model_folder, dataset, "--folds", 1) == []
    assert told("e.json")["seen_in_training"] == 0
    assert warning(model_folder, unseen) == []
    assert sonotrain("models", "ensemble", "both", model_folder, second).status == 0
    assert warning("both", dataset) == ["Warning: 12 of these 12 scans were trained on; that flatters it"]
    assert warning("both", dataset, "--folds", 1) == ["Warning: 4 of these 4 scans were trained on; that flatters it"]


def test_an_ensemble_is_made_judged_and_predicts_what_it_says(
    sonotrain: Command, dataset: Path, scans: Path, model_folder: Path, second: Path
) -> None:
    made = sonotrain("models", "ensemble", "both", model_folder, second, "--flips", "--largest-component")
    assert made.status == 0
    assert "The ensemble of 2 is both" in made.output.splitlines()[-1]
    assert sonotrain("evaluate", "both", dataset, "--baselines", "--json", "e.json").status == 0
    judged = told("e.json")
    assert [judged[key] for key in ("threshold", "flips", "largest_component")] == [0.375, True, True]

    file = scans / "bus_0001-l.png"
    assert sonotrain("predict", "both", file, "--out", "predictions").status == 0
    (expected,) = load_segmenter(Path("both"), networks.build).masks([np.array(Image.open(file))])
    np.testing.assert_array_equal(np.array(Image.open("predictions/bus_0001-l.mask.png")), expected * np.uint8(255))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (["evaluate", "model", "phantoms", "./phantoms"], "is named twice"),
        (["evaluate", "model", "phantoms", "unseen", "--csv", "e.csv"], "--csv takes the scans of one dataset"),
        (["evaluate", "model", "phantoms", "--threshold", "nan"], "threshold nan: expected a probability"),
        (["evaluate", "model", "phantoms", "unseen", "--folds", "9"], "has no fold 9"),
        (["models", "ensemble", "phantoms", "model"], "phantoms is there already"),
        (["models", "ensemble", "both", "model", "nowhere"], "nowhere: no model"),
        (["models", "ensemble", "both", "model", "model"], "named twice"),
        (["models", "ensemble", "both", "second"], "second/generator.safetensors: cut off"),
    ],
)
@pytest.mark.usefixtures("unseen", "model_folder")
def test_what_cannot_be_judged_or_joined_is_a_wrong_call(
    sonotrain: Command, second: Path, call: list[str], reason: str
) -> None:
    (second / "generator.safetensors").write_bytes(b"no weights")
    ended = sonotrain(*call)
    assert ended.status == 2
    assert reason in ended.error
    assert not Path("both").exists()
