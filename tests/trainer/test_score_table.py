import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import Fault, WrongCall
from trainer.metrics import SURFACE_MEASURES, ScanScore
from trainer.score_table import COLUMNS, read_csv, write_csv

LESION = ScanScore(
    "a", "p", "benign", True, True, 0.25, 0.8, 0.7, 0.9, 0.6, 0.1, 3.0, 0.3, 2.0, 0.2, 5.0, 0.5, 0.9, 1.0
)
NORMAL = ScanScore("n", "q", "normal", False, False, 0.0)

fractions = st.floats(0, 1)
distances = st.floats(0, 1e6)
# A carriage return is not quoted by the csv module of Python 3.11; no scan is called so.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"))
surfaces = st.tuples(distances, distances, distances, fractions)


@st.composite
def scores(draw, key):
    who = (key, draw(texts), draw(texts))
    if not draw(st.booleans()):
        return ScanScore(*who, False, draw(st.booleans()), draw(fractions))
    px, mm = draw(st.none() | surfaces), draw(st.none() | surfaces)
    measured = {
        f"{name}_{unit}": value
        for unit, values in (("px", px), ("mm", mm))
        if values
        for name, value in zip(SURFACE_MEASURES, values, strict=True)
    }
    return ScanScore(*who, True, draw(st.booleans()), *(draw(fractions) for _ in range(6)), **measured)


@pytest.fixture
def table(tmp_path):
    """A table of a lesion, a lesion without surface measures, and a normal scan: lines 2 to 4."""
    without = dict.fromkeys((f"{name}_{unit}" for name in SURFACE_MEASURES for unit in ("px", "mm")), None)
    path = tmp_path / "new" / "scores.csv"
    write_csv(path, [LESION, ScanScore(**(as_dict(LESION) | {"key": "b"} | without)), NORMAL])
    return path


def as_dict(score):
    return {column: getattr(score, column) for column in COLUMNS}


def test_the_table_has_one_row_a_scan_and_empty_cells_for_what_is_not(table):
    with table.open(newline="") as file:
        lesion, _, normal = csv.DictReader(file)
    assert (lesion["key"], lesion["patient"], lesion["lesion"], lesion["dsc"]) == ("a", "p", "True", "0.8")
    assert (lesion["assd_mm"], lesion["surface_dice_px"]) == ("0.2", "0.9")
    assert (normal["key"], normal["marked"], normal["dsc"], normal["hd95_mm"]) == ("n", "False", "", "")


def test_a_table_that_cannot_be_written_leaves_nothing_and_is_named(tmp_path):
    (tmp_path / "scores.csv").mkdir()
    with pytest.raises(Fault, match=r"scores\.csv cannot be written: "):
        write_csv(tmp_path / "scores.csv", [LESION])
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.csv"]


@given(st.lists(texts.filter(bool), max_size=3, unique=True).flatmap(lambda keys: st.tuples(*map(scores, keys))))
def test_what_was_written_is_read_to_the_bit(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("tables") / "scores.csv"
    write_csv(path, written)
    assert read_csv(path) == list(written)


@pytest.mark.parametrize(
    ("line", "was", "becomes", "reason"),
    [
        (1, "rmse,", "", "not the header of a table of scores (rmse)"),
        (1, "key,patient", "patient,key", "not the header of a table of scores (another order)"),
        (2, "a,p", "a", "18 values instead of 19"),
        (2, "0.8,", "eighty,", "dsc is 'eighty', which is no number"),
        (2, "0.8,", "nan,", "dsc is nan, which it cannot be"),
        (2, "0.8,", "1.8,", "dsc is 1.8, which it cannot be"),
        (2, "5.0,", "-5.0,", "hd95_px is -5.0, which it cannot be"),
        (2, "5.0,", "inf,", "hd95_px is inf, which it cannot be"),
        (2, "0.25,", ",", "marked_fraction is '', which is no number"),
        (2, "True", "yes", "lesion is 'yes', which is neither True nor False"),
        (2, "0.8,", ",", "a scan with a lesion lacks dsc"),
        (2, "5.0,", ",", "a scan with a lesion lacks hd95_px"),
        (3, "b,", "a,", "a stands in the table twice"),
        (4, "0.0,,", "0.0,0.5,", "a scan without a lesion has dsc"),
        (4, "n,", '"n,', "unexpected end of data"),
    ],
)
def test_a_damaged_table_is_named_with_its_line(table, line, was, becomes, reason):
    lines = table.read_text().splitlines(keepends=True)
    assert was in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(was, becomes, 1)
    table.write_text("".join(lines))
    with pytest.raises(WrongCall) as refused:
        read_csv(table)
    assert str(refused.value) == f"{table}, line {line}: {reason}; write it again with evaluate --csv"


def test_a_table_that_is_cut_off_within_a_row_is_refused(table):
    whole = table.read_bytes()
    for kept in range(1, len(whole)):
        if whole[kept - 1 : kept] != b"\n":
            table.write_bytes(whole[:kept])
            with pytest.raises(WrongCall, match=r"scores\.csv, line \d: "):
                read_csv(table)


def test_a_table_of_a_spreadsheet_with_its_own_line_ends_is_read(table):
    before = read_csv(table)
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r\n"))
    assert read_csv(table) == before


def test_what_is_no_table_is_a_wrong_call_that_names_it(tmp_path):
    (tmp_path / "empty.csv").touch()
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "null.csv").write_bytes(b"key\0")
    for name in ("nothing.csv", "empty.csv", "image.csv", "null.csv", "."):
        with pytest.raises(WrongCall) as refused:
            read_csv(tmp_path / name)
        assert str(tmp_path / name) in str(refused.value)
