import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import Fault, WrongCall
from tests.models import write_model
from trainer import networks
from trainer.ensemble import write_ensemble
from trainer.serving import Segmenter, load_segmenter


@pytest.fixture
def other_folder(tmp_path: Path) -> Path:
    """A model of another depth, norm, number of channels, size and threshold than model_folder's."""
    settings = {"in_channels": 2, "widths": [4, 8], "heads": 1, "norm": "group"}
    folder = write_model(tmp_path / "other", "unet", (32, 40), 0.25, **settings)
    (folder / "state.json").write_text("{}")
    return folder


@pytest.fixture
def members(model_folder: Path, other_folder: Path) -> list[Path]:
    return [model_folder, other_folder]


@pytest.fixture
def ensemble(members: list[Path], tmp_path: Path) -> Path:
    write_ensemble(members, tmp_path / "ensemble")
    return tmp_path / "ensemble"


def opened(folder: Path) -> Segmenter:
    return load_segmenter(folder, networks.build)


def changed(folder: Path, **values: object) -> None:
    told = json.loads((folder / "network.json").read_text())
    (folder / "network.json").write_text(json.dumps(told | values))


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        opened(folder)
    return str(refused.value)


IMAGES = [np.random.default_rng(seed).integers(0, 256, (50 + 7 * seed, 61), dtype=np.uint8) for seed in range(2)]


def test_an_ensemble_of_different_networks_gives_the_mean_of_their_probabilities(
    ensemble: Path, members: list[Path]
) -> None:
    together = opened(ensemble)
    each = [opened(member).probabilities(IMAGES) for member in members]
    for mean, one, other in zip(together.probabilities(IMAGES), *each, strict=True):
        np.testing.assert_allclose(mean, (one + other) / 2, atol=1e-6)
    assert together.threshold == pytest.approx((0.5 + 0.25) / 2)
    assert (together.flips, together.largest_component) == (False, False)


def test_an_ensemble_of_one_is_the_model_itself(model_folder: Path, tmp_path: Path) -> None:
    middle = float(np.median(opened(model_folder).using(flips=True).probabilities(IMAGES)[0]))
    changed(model_folder, flips=True, largest_component=True, threshold=middle)
    write_ensemble([model_folder], tmp_path / "deep" / "alone")
    alone, itself = opened(tmp_path / "deep" / "alone"), opened(model_folder)
    for one, other in zip(alone.probabilities(IMAGES), itself.probabilities(IMAGES), strict=True):
        np.testing.assert_array_equal(one, other)
    (mask, *_), (other_mask, *_) = alone.masks(IMAGES), itself.masks(IMAGES)
    assert 0 < mask.sum() < mask.size / 2
    np.testing.assert_array_equal(mask, other_mask)
    assert (alone.threshold, alone.flips, alone.largest_component) == (middle, True, True)


def test_the_ensemble_decides_how_its_members_are_used(members: list[Path], tmp_path: Path) -> None:
    write_ensemble(members, tmp_path / "into", threshold=0.75, flips=True, largest_component=True)
    together = opened(tmp_path / "into")
    assert (together.threshold, together.flips, together.largest_component) == (0.75, True, True)
    each = [opened(member).using(flips=True).probabilities(IMAGES) for member in members]
    for mean, one, other in zip(together.probabilities(IMAGES), *each, strict=True):
        np.testing.assert_allclose(mean, (one + other) / 2, atol=1e-6)


def test_an_ensemble_s_folder_holds_what_makes_a_model_and_nothing_else(ensemble: Path) -> None:
    assert sorted(path.relative_to(ensemble).as_posix() for path in ensemble.rglob("*.*")) == [
        "member-1/generator.safetensors",
        "member-1/network.json",
        "member-2/generator.safetensors",
        "member-2/network.json",
        "network.json",
    ]
    assert [path.name for path in ensemble.parent.iterdir() if path.name.startswith(".")] == []


def test_members_that_do_not_agree_are_named_unless_it_is_said(members: list[Path], tmp_path: Path) -> None:
    changed(members[1], flips=True)
    with pytest.raises(WrongCall, match=r"model and .*other do not agree on flips; give --flips or --no-flips"):
        write_ensemble(members, tmp_path / "into")
    write_ensemble(members, tmp_path / "into", flips=False)
    assert opened(tmp_path / "into").flips is False


def test_what_cannot_be_a_member_is_named_and_nothing_is_written(
    members: list[Path], ensemble: Path, tmp_path: Path
) -> None:
    def refused(folders: list[Path], **options: float) -> str:
        with pytest.raises(WrongCall, match=r"^[^\n]*$") as wrong:
            write_ensemble(folders, tmp_path / "into", **options)  # type: ignore[arg-type]
        return str(wrong.value)

    before = sorted(tmp_path.iterdir())
    assert f"{tmp_path / 'absent/network.json'}: cannot be read" in refused([members[0], tmp_path / "absent"])
    assert "is an ensemble itself" in refused([members[0], ensemble])
    assert "named twice" in refused([members[0], members[0] / ".." / members[0].name])
    assert "no member is named" in refused([])
    assert "threshold 1.5: expected a probability" in refused(members, threshold=1.5)
    (members[1] / "generator.safetensors").write_bytes(b"no weights")
    assert f"{members[1] / 'generator.safetensors'}: cut off" in refused(members)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_is_there_is_not_overwritten(members: list[Path], tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    with pytest.raises(WrongCall, match="into is there already"):
        write_ensemble(members, tmp_path / "into")


def test_a_place_that_cannot_be_written_to_is_a_fault(members: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fault, match=r"into cannot be written: "):
        write_ensemble(members, tmp_path / "file" / "into")


# Opening


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"members": []}, "members is no list of names"),
        ({"members": "member-1"}, "members is no list of names"),
        ({"members": [1]}, "1 is no member's name"),
        ({"members": ["../model"]}, "'../model' is no member's name"),
        ({"members": ["/etc"]}, "'/etc' is no member's name"),
        ({"members": [".."]}, "'..' is no member's name"),
        ({"members": ["member-1\n"]}, "is no member's name"),
        ({"members": ["member-1", "member-1"]}, "comes twice"),
        ({"threshold": 50}, "threshold 50: expected a probability"),
        ({"flips": "yes"}, "flips yes: expected true or false"),
        ({"members": ["member-9"]}, "member-9/network.json: cannot be read (No such file or directory)"),
    ],
)
def test_a_description_of_an_ensemble_that_is_none_is_named(
    ensemble: Path, told: dict[str, object], reason: str
) -> None:
    changed(ensemble, **told)
    said = refusal(ensemble)
    assert said.startswith(str(ensemble))
    assert "network.json: " in said
    assert reason in said


def test_an_ensemble_without_threshold_is_named(ensemble: Path) -> None:
    (ensemble / "network.json").write_text('{"members": ["member-1"]}')
    assert refusal(ensemble) == f"{ensemble / 'network.json'}: does not tell 'threshold'"


def test_a_member_that_is_missing_or_damaged_is_named(ensemble: Path) -> None:
    weights = ensemble / "member-2" / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert refusal(ensemble) == f"{weights}: cut off, or no safetensors file"
    weights.unlink()
    assert refusal(ensemble) == f"{weights}: cannot be read (No such file or directory)"


def test_an_ensemble_within_an_ensemble_is_refused(ensemble: Path) -> None:
    (ensemble / "member-1" / "network.json").write_text((ensemble / "network.json").read_text())
    assert refusal(ensemble).startswith(f"{ensemble / 'member-1/network.json'}: does not tell ")
