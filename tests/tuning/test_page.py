import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.tuning.studies import searched, study_of, tuning_of
from tuning.final import FinalComparison
from tuning.page import write_report
from tuning.results import Results
from tuning.results_text import answer

HOSTILE = "<script>alert(1)</script> & why"
FINAL = FinalComparison((3,), (0,), 0.82, 0.80, 0.02, 0.005, 0.035, 0.0123, 40, 30, 1, {"fold-3": (0.82, 0.8)})


class Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("a study")
    curves = [[0.5, 0.7, 0.80], [0.6, 0.7, 0.82]]
    told = [{"dsc": [{"fold-1": dsc} for dsc in of]} for of in curves]
    told[1]["values"] = {"optimizer.generator_rate": 0.002}  # type: ignore[assignment]
    told.append({"how": "failed", "failures": [HOSTILE], "why": HOSTILE})  # type: ignore[dict-item]
    return folder, write_report(folder, tuning_of(), study_of(tuning_of(), told), FINAL)


def test_the_page_needs_nothing_beside_it_and_runs_nothing(written: tuple[Path, Results]):
    page = Parsed((written[0] / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert len(page.sources) == 3  # too few trials for a picture of importance
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert HOSTILE in page.text


def test_the_page_tells_what_was_done_the_answer_and_how_to_go_on(written: tuple[Path, Results]):
    folder, results = written
    text = re.sub(r"\s+", " ", Parsed((folder / "report.html").read_text(encoding="utf-8")).text)
    for told in (
        answer(results),
        "one of 3 goes on beyond epoch 1",
        "0.01 to 1, logarithmic, and 0",
        "+2.00 [+0.50, +3.50]",
        "p = 0.0123",
        "1, the best",
        "3 trials, 6 epochs",
        "2 trials are too few",
        f"sonotrain crossval '{folder}/best.yaml'",
    ):
        assert told in text


def test_a_report_writes_all_files_of_a_study_and_its_importance(written: tuple[Path, Results]):
    folder, results = written
    pictures = ["curves.png", "importance.png", "parallel.png", "slices.png"]
    texts = ["best.yaml", "report.html", "result.json", "table.md", "trials.csv"]
    assert sorted(file.name for file in folder.iterdir()) == sorted(pictures + texts)
    assert results.importance is not None


@pytest.mark.parametrize("scheduler", ["none", "population"])
def test_a_search_that_has_hardly_begun_has_a_page(scheduler: str, tmp_path: Path):
    tuning = tuning_of(f"tune.scheduler={scheduler}")
    write_report(tmp_path, tuning, searched(tuning, 0))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No trial has finished yet" in text
    assert "sonotrain crossval" not in text
