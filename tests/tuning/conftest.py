"""Set-up of the search's tests: studies as a journal would tell of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import pytest

from tuning.journal import StudyRecord

StudyOf = Callable[..., StudyRecord]


@pytest.fixture(scope="session")
def study_of() -> StudyOf:
    """Makes the record of a study whose trials' DSC, epoch by epoch, are given; all trials were at work together.

    hows tells how each ended (finished if not said; None for one still running), values what each tried, node where.
    A trial has one training, fold-1, whose epochs take 10 seconds.
    """

    def make(
        curves: Sequence[Sequence[float]],
        hows: Sequence[str | None] = (),
        values: Sequence[Mapping[str, Any]] = (),
        node: str = "here",
    ) -> StudyRecord:
        study = StudyRecord()
        for number in range(len(curves)):
            tried = values[number] if values else {"objective.alpha.2": 0.1 * number}
            origin = "random" if number else "paper"
            study.add({"event": "trial", "number": number, "values": tried, "origin": origin})
            study.add({"event": "began", "trial": number, "attempt": 1, "node": node})
        for epoch, measures in enumerate(zip_longest(*curves), start=1):
            for number, dsc in enumerate(measures):
                if dsc is not None:
                    study.add(
                        {
                            "event": "report",
                            "trial": number,
                            "epoch": epoch,
                            "dsc": dsc,
                            "trainings": {"fold-1": dsc},
                            "trained": epoch,
                            "seconds": 10.0 * epoch,
                        }
                    )
        for number in range(len(curves)):
            how = hows[number] if hows else "finished"
            if how is not None:
                study.add({"event": "ended", "trial": number, "how": how, "why": ""})
        return study

    return make
