"""`sonotrain compare`."""

import json
from pathlib import Path

import pytest

from tests.launch.command import Command
from trainer.metrics import SURFACE_MEASURES, ScanScore
from trainer.score_table import write_csv


def lesion(key: str, dsc: float) -> ScanScore:
    surface = {f"{name}_px": 10 * (1 - dsc) for name in SURFACE_MEASURES} | {"surface_dice_px": dsc}
    return ScanScore(key, f"p-{key}", "benign", True, dsc > 0, 0.1, dsc, dsc, dsc, dsc, 1 - dsc, **surface)


def normal(key: str, fraction: float) -> ScanScore:
    return ScanScore(key, f"p-{key}", "normal", False, fraction > 0, fraction)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    """The second model is better by 0.1 on each of twelve scans, finds what it missed, and marks a normal one."""
    keys = [f"scan-{number:02}" for number in range(12)]
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    write_csv(first, [lesion(key, 0.5) for key in keys] + [lesion("hard", 0.0), normal("n", 0.0), lesion("old", 0.7)])
    write_csv(second, [lesion(key, 0.6) for key in keys] + [lesion("hard", 0.3), normal("n", 0.1)])
    return first, second


def test_two_tables_are_compared_scan_by_scan(sonotrain: Command, tables: tuple[Path, Path]) -> None:
    ended = sonotrain("compare", *tables, "--json", "compared.json")
    assert ended.status == 0
    for said in (
        "lesions missed: 1 by A only (hard), 0 by B only, 0 by both",
        "of 1 normal scans marked: 0 by A only, 1 by B only (n), 0 by both",
        "1 scans are in A only, and were left out: old",
        "+0.1154 [+0.1000, +0.1462]",
        "surface Dice, 5 px",
        "RMS surface distance, px",
    ):
        assert said in ended.output
    assert (
        ended.output.splitlines()[-1]
        == "DSC +0.1154, p < 0.001, over 13 scans of 13 patients; written to compared.json"
    )
    told = json.loads(Path("compared.json").read_text())
    assert (told["first"], told["second"]) == tuple(map(str, tables))
    assert told["measures"]["dsc"]["difference"] == pytest.approx((12 * 0.1 + 0.3) / 13)
    assert (told["unit"], told["surface_tolerance"], told["only_in_first"]) == ("px", 5.0, ["old"])
    assert told["missed"] == {"first_only": ["hard"], "second_only": [], "both": []}


def test_a_damaged_table_is_a_wrong_call_that_names_file_and_line(
    sonotrain: Command, tables: tuple[Path, Path]
) -> None:
    lines = tables[1].read_text().splitlines(keepends=True)
    tables[1].write_text("".join([*lines[:3], "scan-02,p\n", *lines[4:]]))
    ended = sonotrain("compare", *tables)
    assert ended.status == 2
    assert f"{tables[1]}, line 4: 2 values instead of 19" in ended.error


def test_tables_of_different_datasets_are_a_wrong_call(sonotrain: Command, tables: tuple[Path, Path]) -> None:
    write_csv(tables[1], [normal("scan-03", 0.0)])
    ended = sonotrain("compare", *tables)
    assert ended.status == 2
    assert "scan-03 has a lesion in one table and none in the other" in ended.error
    assert sonotrain("compare", tables[0], "nowhere.csv").status == 2
