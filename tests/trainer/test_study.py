from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_pipeline import WrongCall
from trainer import networks
from trainer.networks.settings import network_settings
from trainer.sources import studies
from trainer.study import folder_name, is_study, load_study

SMALL = """
table: Two networks
base: quick
changes: {training.epochs: 3, output: here}
compare_to: ours
variants:
  ours:
  UNet 3+: {network.name: unet3p, objective: {beta: [0, 0, 0, 0]}}
"""

File = Callable[[str], str]


@pytest.fixture
def file(tmp_path: Path) -> File:
    """Writes a study's file and gives its path."""

    def write(content: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(content)
        return str(path)

    return write


def problem(source: str, *changes: str) -> str:
    """The one line that a wrong study is answered with."""
    with pytest.raises(WrongCall) as told:
        load_study(source, changes)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_each_variant_has_what_all_share_and_its_own(file: File):
    study = load_study(file(SMALL), ["training.batch=6", "objective.alpha=[1,1,1,1]"])
    ours, other = study.variants["ours"], study.variants["UNet 3+"]
    assert ours.training.epochs == other.training.epochs == 3
    assert ours.training.batch == other.training.batch == 6
    assert (ours.network.name, other.network.name) == ("unet", "unet3p")
    assert (ours.objective.beta, other.objective.beta) == ((0.05, 0.05, 0.05, 0.05), (0, 0, 0, 0))
    assert other.objective.alpha == (1, 1, 1, 1)
    assert (study.table, study.compare_to, study.shared.output) == ("Two networks", "ours", "here")


def test_a_base_is_found_beside_the_study_and_a_variant_has_the_last_word(file: File, tmp_path: Path):
    (tmp_path / "base.yaml").write_text("training: {epochs: 7}")
    source = file(SMALL.replace("base: quick", "base: base.yaml").replace("training.epochs: 3", "seed: 4"))
    assert {config.training.epochs for config in load_study(source).variants.values()} == {7}
    study = load_study(source, ["network.name=segnet", "seed=5"])
    assert [config.network.name for config in study.variants.values()] == ["segnet", "unet3p"]
    assert study.shared.seed == 5


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("compare_to: ours", "compare_to: theirs", "compare_to: theirs is no variant; there are ours, UNet 3+"),
        ("compare_to: ours", "", "compare_to: field required"),
        ("table: Two networks", "tables: Two networks", "table: field required"),
        ("  ours:\n", "", "variants: dictionary should have at least 2 items"),
        ("network.name: unet3p", "network.name: unet4p", "mine.yaml, UNet 3+: network.name='unet4p': "),
        ("network.name: unet3p", "network.nam: unet3p", "mine.yaml, UNet 3+: there is no key network.nam; "),
        ("network.name: unet3p", "data.size: [64, 64]", "variants.UNet 3+ changes data.size, which all variants share"),
        ("network.name: unet3p", "seed: 1", "variants.UNet 3+ changes seed, which all variants share"),
        ("  ours:\n", "  ours: {}\n  o!: {}\n  o/: {}\n", "variants.o/: shares the folder o- with o!"),
        ("UNet 3+:", "'..':", "variants...: give it a name with letters or digits"),
        ("base: quick", "base: quickly", "quickly: neither a file nor a preset"),
        ("base: quick", "base: mine.yaml", "base: mine.yaml is a study itself"),
        ("table: T", "published: {source: s, rows: {x: [1, 2, 3, 4, 5]}}\ntable: T", "published.rows.x: is no variant"),
        (
            "table: T",
            "published: {source: s, rows: {ours: [1]}}\ntable: T",
            "published.rows.ours: tuple should have at",
        ),
    ],
)
def test_what_is_wrong_with_a_study_is_told_in_one_line(file: File, before: str, after: str, reason: str):
    assert before in SMALL
    assert reason in problem(file(SMALL.replace(before, after)))


def test_a_configuration_is_no_study():
    assert not is_study("quick")
    assert "no study, which has variants" in problem("quick")
    assert "neither a file nor a preset" in problem("paper-comparisn")
    assert "there is no key training.epoch" in problem("paper-ablation", "training.epoch=1")


def test_a_variant_s_folder_has_no_spaces():
    assert [folder_name(name) for name in ("UNet 3+", "AttU-Net", "smoothing 0.1")] == [
        "UNet-3+",
        "AttU-Net",
        "smoothing-0.1",
    ]


@pytest.mark.parametrize("name", studies())
def test_every_study_loads_and_its_networks_can_be_built(name: str):
    study = load_study(name)
    assert is_study(name)
    assert study.shared.output == f"runs/{name}"
    for config in study.variants.values():
        with torch.device("meta"):
            networks.build(config.network.name, **network_settings(config.network, config.objective.stages))
    # All learn from, and are judged on, the same scans, as often.
    shared = [
        (config.data, config.seed, config.folds, config.training, config.optimizer)
        for config in study.variants.values()
    ]
    assert len(set(shared)) == 1


def test_each_study_of_the_paper_has_a_quick_one_with_the_same_variants():
    for name in ("paper-comparison", "paper-ablation", "paper-readings"):
        study, quick = load_study(name), load_study(f"{name}-quick")
        assert list(study.variants) == list(quick.variants)
        assert (study.compare_to, study.published) == (quick.compare_to, quick.published)
        assert study.shared.data.size == (512, 480)


def test_the_comparison_has_the_networks_of_table_1_without_an_adversary_and_the_papers_own_with_four():
    study = load_study("paper-comparison")
    assert {config.network.name for config in study.variants.values()} == set(networks.NETWORKS)
    for name, config in study.variants.items():
        assert any(config.objective.beta) == (name == "Ours")


def test_the_ablation_and_the_readings_change_one_thing_each():
    stages = [config.objective.stages for config in load_study("paper-ablation").variants.values()]
    assert stages == [1, 2, 3, 4]
    readings = load_study("paper-readings").variants
    literal = readings["literal"].flat()
    for name, config in readings.items():
        assert len([key for key, value in config.flat().items() if literal[key] != value]) == (name != "literal")


def test_published_rows_are_those_that_the_paper_prints():
    """Its Tables 1 and 2."""
    published = load_study("paper-comparison").published
    assert published is not None
    assert published.rows["U2-Net"] == ("78.78 ± 0.91", "75.90 ± 1.52", "84.58 ± 1.43", "65.91 ± 1.39", "0.72 ± 0.08")
    ablation = load_study("paper-ablation").published
    assert ablation is not None
    assert ablation.rows["Stage IV"] == published.rows["Ours"]
