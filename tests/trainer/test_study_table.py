import csv
import io
import json

import pytest

from tests.trainer.scored import score
from trainer.metrics import ScanScore
from trainer.study import load_study
from trainer.study_table import StudyTable, Trained, tabulate
from trainer.study_text import cells, comma_separated, compared_cells, headings, markdown


def trained(*scores: ScanScore, seconds: float = 60) -> Trained:
    return Trained(scores, parameters=1_234_567, seconds=seconds)


@pytest.fixture
def table() -> StudyTable:
    """Stage I and IV with two folds, of two lesions each and a normal scan; Stage II with one; Stage III without."""
    one = {
        1: trained(score("a", 0.5), score("b", 0.7), score("n", None), seconds=60),
        2: trained(score("c", 0.8), score("d", 0.0, 40), seconds=180),
    }
    four = {
        2: trained(score("c", 0.9), score("d", 0.6)),
        1: trained(score("a", 0.6), score("b", 0.6)),
    }
    two = {1: trained(score("a", 0.5), score("b", 0.9))}
    return tabulate(load_study("paper-ablation"), {"Stage IV": four, "Stage I": one, "Stage II": two, "Stage III": {}})


def test_rows_are_means_over_folds_with_their_standard_deviation(table: StudyTable):
    one, two, four = table.rows
    assert [row.variant for row in table.rows] == ["Stage I", "Stage II", "Stage IV"]
    # Means on the folds: (0.5 + 0.7) / 2 = 0.6 and (0.8 + 0) / 2 = 0.4.
    assert one.measures["dsc"].mean == pytest.approx(0.5)
    assert one.measures["dsc"].sd == pytest.approx(0.2 / 2**0.5)
    assert one.measures["dsc"].low is None
    # (3 + 3) / 2 and (3 + 40) / 2 pixels.
    assert one.measures["rms_surface_distance"].mean == pytest.approx(12.25)
    assert (one.folds, one.cases, one.missed, one.normals, one.marked_normals) == ((1, 2), 4, 1, 1, 1)
    assert (one.minutes, one.parameters) == (2.0, 1_234_567)
    assert four.folds == (1, 2)
    assert two.measures["dsc"].sd is None


def test_one_fold_alone_has_an_interval_over_patients(table: StudyTable):
    dsc = table.rows[1].measures["dsc"]
    assert dsc.mean == pytest.approx(0.7)
    # Two patients, drawn twice: 0.5 and 0.9 are the means of a quarter of the draws each.
    assert (dsc.low, dsc.high) == (pytest.approx(0.5), pytest.approx(0.9))


def test_variants_are_compared_on_the_scans_of_the_folds_that_both_have(table: StudyTable):
    assert list(table.comparisons) == ["Stage II", "Stage IV"]
    two, four = table.comparisons["Stage II"], table.comparisons["Stage IV"]
    assert (two.cases, four.cases) == (2, 4)
    # Stage II: 0 and +0.2. Stage IV: +0.1, -0.1, +0.1 and +0.6.
    assert two.measures["dsc"].difference == pytest.approx(0.1)
    assert four.measures["dsc"].difference == pytest.approx(0.175)
    assert (four.measures["dsc"].better, four.measures["dsc"].worse) == (3, 1)
    assert four.missed.first_only == ("d",)


def test_the_table_is_in_pixels_unless_every_scan_is_known_in_mm():
    study = load_study("paper-ablation")
    known, unknown = trained(score("a", 0.5, 3, mm=0.3)), trained(score("b", 0.5, 5))
    for folds, unit, distance in (({1: known}, "mm", 0.3), ({1: known, 2: unknown}, "px", 4)):
        table = tabulate(study, {"Stage I": folds})
        assert table.unit == unit
        assert table.rows[0].measures["hd95"].mean == pytest.approx(distance)
        assert f"HD95 ({unit})" in headings(table)


def test_cells_read_as_the_papers_tables_do(table: StudyTable):
    shown = {row.variant: dict(zip(headings(table), cells(row, table), strict=True)) for row in table.rows}
    assert shown["Stage I"]["DSC (%)"] == "50.00 ± 14.14"
    assert shown["Stage II"]["DSC (%)"] == "70.00 [50.00, 90.00]"
    assert shown["Stage I"]["RMSE of the map"] == "0.500 ± 0.141"
    assert shown["Stage I"]["Missed lesions"] == "1 of 4"
    assert shown["Stage I"]["Normal scans marked"] == "1 of 1"
    assert shown["Stage I"]["Parameters (M)"] == "1.23"
    assert compared_cells("Stage IV", table.comparisons["Stage IV"])[1].startswith("+17.50 [")


def test_markdown_has_three_tables_and_says_what_each_is(table: StudyTable):
    text = markdown(table)
    assert text.startswith(
        "# Table 2, deep supervision of one to four stages\n\nMean ± standard deviation over folds; "
    )
    assert "## Each against Stage I" in text
    published = text.partition("## As published")[2]
    assert "Li et al. (2023), Table 2" in published
    assert "| Stage IV | 80.97 ± 0.88 | 81.64 ± 1.30 | 82.19 ± 1.61 | 68.83 ± 1.38 | 0.68 ± 0.06 |" in published
    for grid in text.split("\n\n"):
        if grid.startswith("|"):
            assert len({line.count("|") for line in grid.strip().splitlines()}) == 1


def test_csv_has_a_line_a_variant_and_what_does_not_exist_is_empty(table: StudyTable):
    rows = list(csv.DictReader(io.StringIO(comma_separated(table))))
    assert [row["method"] for row in rows] == ["Stage I", "Stage II", "Stage IV"]
    assert (rows[0]["dsc_percent"], rows[0]["dsc_percent_sd"], rows[0]["dsc_percent_low"]) == ("50.0000", "14.1421", "")
    assert (rows[1]["folds"], rows[1]["dsc_percent_sd"], rows[1]["dsc_percent_high"]) == ("1", "", "90.0000")
    assert rows[0]["rms_surface_distance_px"] == "12.2500"


def test_json_has_all_numbers(table: StudyTable):
    told = json.loads(json.dumps(table.as_json()))
    assert told["rows"][0]["measures"]["dsc"]["mean"] == pytest.approx(0.5)
    assert told["comparisons"]["Stage IV"]["measures"]["dsc"]["difference"] == pytest.approx(0.175)
    assert told["published"]["rows"]["Stage I"][0] == "70.52 ± 1.25"


def test_a_study_of_which_nothing_is_finished_has_an_empty_table():
    table = tabulate(load_study("paper-ablation"), {})
    assert table.rows == ()
    assert markdown(table)


def test_folds_without_a_lesion_have_no_measures():
    table = tabulate(load_study("paper-ablation"), {"Stage I": {1: trained(score("n", None))}})
    assert table.rows[0].measures["dsc"].mean is None
    assert cells(table.rows[0], table)[2] == "-"
