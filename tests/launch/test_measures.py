"""How measures are shown."""

import pytest

from launch.measures import show_measures
from trainer.metrics import SURFACE_MEASURES, ScanScore, summarise


def lesion(key: str, unit: str) -> ScanScore:
    surface = {f"{name}_px": 40.0 for name in SURFACE_MEASURES} | {"surface_dice_px": 0.25}
    if unit == "mm":
        surface |= {f"{name}_mm": 4.0 for name in SURFACE_MEASURES} | {"surface_dice_mm": 0.75}
    return ScanScore(key, key, "benign", True, True, 0.1, 0.5, 0.5, 0.5, 0.5, 0.2, **surface)


@pytest.mark.parametrize(
    ("unit", "rows"),
    [
        ("mm", {"RMS surface distance, mm": "4.00", "HD95, mm": "4.00", "surface Dice, 1 mm": "0.7500"}),
        ("px", {"RMS surface distance, px": "40.0", "HD95, px": "40.0", "surface Dice, 5 px": "0.2500"}),
    ],
)
def test_surface_measures_are_shown_with_their_unit_and_tolerance(
    capsys: pytest.CaptureFixture[str], unit: str, rows: dict[str, str]
) -> None:
    missed = ScanScore("c", "c", "benign", True, False, 0.0, 0, 0, 0, 0, 1, *[9.0, 9.0] * 3, 0.0, 0.0)
    normal = ScanScore("n", "n", "normal", False, True, 0.125)
    show_measures("title", {"model": summarise([lesion("a", unit), lesion("b", unit), normal]).as_json()})
    shown = capsys.readouterr().out
    for label, mean in rows.items():
        (line,) = (line for line in shown.splitlines() if label in line)
        assert mean in line
    (line,) = (line for line in shown.splitlines() if "their area marked" in line)
    assert "12.50%" in line
    show_measures("title", {"model": summarise([lesion("a", unit), missed]).as_json()})
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "of these missed" in line)
    assert line.split("│")[2].strip() == "1"


def test_what_was_left_out_has_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    plain = ScanScore("a", "a", "benign", True, True, 0.1, 0.5, 0.5, 0.5, 0.5, 0.2)
    show_measures("title", {"model": summarise([plain]).as_json()})
    shown = capsys.readouterr().out
    assert "0.5000" in shown
    assert "HD95" not in shown
