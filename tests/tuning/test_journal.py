"""What a study's journal promises, also to those who are killed while they write."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import Fault
from tests.tuning.conftest import StudyOf
from tuning.journal import NAME, Journal, StudyRecord, read_journal

TRIAL = {"number": 0, "values": {"optimizer.clip": 1.0, "network.widths": (8, 16)}, "origin": "paper"}
BEGAN = {"trial": 0, "attempt": 1, "node": "here"}


def report(trial: int = 0, epoch: int = 1, dsc: float = 0.5) -> dict[str, Any]:
    return {
        "trial": trial,
        "epoch": epoch,
        "dsc": dsc,
        "trainings": {"fold-1": dsc},
        "trained": epoch,
        "seconds": 9.5,
    }


def same(one: StudyRecord, other: StudyRecord) -> bool:
    return one.trials == other.trials and one.reports == other.reports


@st.composite
def happenings(draw: st.DrawFn) -> list[tuple[str, dict[str, Any]]]:
    """What may happen in a study, event by event."""
    events: list[tuple[str, dict[str, Any]]] = []
    trials = 0
    for _ in range(draw(st.integers(0, 15))):
        kind = draw(
            st.sampled_from(["trial", "began", "report", "failed", "ended", "exchanged"] if trials else ["trial"])
        )
        trial = draw(st.integers(0, trials - 1)) if trials else 0
        values = {"a.b": draw(st.one_of(st.floats(0, 1), st.text(max_size=3), st.tuples(st.integers(1, 9))))}
        told: dict[str, Any] = {
            "trial": {"number": trials, "values": values, "origin": "tpe"},
            "began": {"trial": trial, "attempt": draw(st.integers(1, 4)), "node": draw(st.text(max_size=3))},
            "report": report(trial, draw(st.integers(1, 5)), draw(st.floats(0, 1))),
            "failed": {"trial": trial, "why": draw(st.text(max_size=5))},
            "ended": {"trial": trial, "how": draw(st.sampled_from(["finished", "stopped", "failed"])), "why": ""},
            "exchanged": {"trial": trial, "donor": 0, "epoch": 1, "values": values},
        }[kind]
        trials += kind == "trial"
        events.append((kind, told))
    return events


@settings(max_examples=25)  # each event of each is brought to the disk
@given(happenings(), st.data())
def test_what_is_read_after_a_kill_anywhere_is_what_was_known_after_the_last_whole_line(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, dict[str, Any]]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("study")
    with Journal(folder) as journal:
        for kind, told in events:
            journal.write(kind, **told)
        assert same(read_journal(folder), journal.study)
    whole = (folder / NAME).read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    (folder / NAME).write_bytes(whole[:cut])

    lines = whole[:cut].split(b"\n")[:-1]
    expected = StudyRecord(map(json.loads, lines))
    assert same(read_journal(folder), expected)
    with Journal(folder) as journal:
        assert same(journal.study, expected)
        journal.write("trial", number=99, values={}, origin="random")
    assert (folder / NAME).read_bytes().splitlines()[:-1] == lines
    assert 99 in read_journal(folder).trials


def test_a_report_that_is_repeated_counts_once() -> None:
    study = StudyRecord({"event": kind, **told} for kind, told in (("trial", TRIAL), ("began", BEGAN)))
    for epoch, dsc in ((1, 0.4), (2, 0.5), (1, 0.9), (2, 0.9)):
        study.add({"event": "report", **report(epoch=epoch, dsc=dsc)})
    assert [(seen.epoch, seen.dsc) for seen in study.trials[0].reports] == [(1, 0.4), (2, 0.5)]
    assert study.reports == study.trials[0].reports
    assert study.trials[0].state == "running"


def test_a_second_driver_is_refused_while_the_first_lives_and_not_when_it_was_killed(tmp_path: Path) -> None:
    hold = "import sys, time; from pathlib import Path; from tuning.journal import Journal\n"
    hold += "journal = Journal(Path(sys.argv[1])); print('open', flush=True); time.sleep(240)"
    first = subprocess.Popen([sys.executable, "-c", hold, tmp_path], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"open\n"
        with pytest.raises(Fault, match=r"^[^\n]*another sonotrain tune is at work on this study[^\n]*$"):
            Journal(tmp_path)
        assert read_journal(tmp_path).trials == {}
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    Journal(tmp_path).__exit__(None, None, None)


def test_a_disk_that_is_full_loses_nothing_and_the_study_goes_on_when_there_is_room(tmp_path: Path) -> None:
    fill = """
import resource, sys
from pathlib import Path
from data_pipeline import Fault
from tuning.journal import Journal
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
with Journal(Path(sys.argv[1])) as journal:
    try:
        for number in range(1000):
            journal.write("trial", number=number, values={"optimizer.clip": 0.5}, origin="random")
    except Fault as full:
        assert len(journal.study.trials) == number
        print(number, full)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    journal.write("trial", number=number, values={"optimizer.clip": 0.5}, origin="random")
"""
    done = subprocess.run(
        [sys.executable, "-c", fill, tmp_path], capture_output=True, text=True, timeout=240, check=True
    )
    number, _, told = done.stdout.strip().partition(" ")
    assert told.startswith(f"{tmp_path / NAME} cannot be written")
    assert "\n" not in told
    assert 3 < int(number) < 20
    assert list(read_journal(tmp_path).trials) == list(range(int(number) + 1))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"event": "trial", "number": 0, "val\n', "line 2"),
        ("5\n", "line 2: is damaged \\(no event\\)"),
        ('{"event": "dreamt", "trial": 0}\n', "'dreamt' is none of trial, began"),
        ('{"event": "failed", "trial": 0}\n', "failed without why"),
        ('{"event": "failed", "trial": 7, "why": ""}\n', "failed of trial 7"),
        ('{"event": "trial", "number": 0, "values": {}, "origin": "tpe"}\n', "trial of trial 0"),
    ],
)
def test_a_line_that_is_none_is_refused_by_its_number(tmp_path: Path, line: str, why: str) -> None:
    with Journal(tmp_path) as journal:
        journal.write("trial", **TRIAL)
    with (tmp_path / NAME).open("a") as file:
        file.write(line)
    for read in (read_journal, Journal):
        with pytest.raises(Fault, match=why) as refused:
            read(tmp_path)
        assert "line 2" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_what_cannot_have_happened_is_not_written(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        with pytest.raises(ValueError, match="trial 0"):
            journal.write("began", **BEGAN)
        journal.write("trial", **TRIAL)
        with pytest.raises(ValueError, match="report without dsc"):
            journal.write("report", trial=0, epoch=1)
        assert (tmp_path / NAME).read_text().count("\n") == 1


def test_a_folder_without_a_journal_holds_no_study(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="holds no study"):
        read_journal(tmp_path)


def test_finished_trials_come_before_those_that_were_better_for_a_while(study_of: StudyOf) -> None:
    study = study_of(
        [[0.1, 0.2, 0.6], [0.7, 0.9], [0.5, 0.6, 0.7], [0.8], [0.7], [0.9, 0.95, 0.99], [], [0.3, 0.4, 0.7]],
        ["finished", "stopped", "finished", "stopped", None, "failed", None, "finished"],
    )
    assert [trial.number for trial in study.best()] == [2, 7, 0, 1, 3, 4]
