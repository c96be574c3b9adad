"""What a search came to as people read it: the answer in a sentence, and the table in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tuning.final import FinalComparison
from tuning.labels import label, percent, written
from tuning.results import Results, Row

SAME = "·"
"""In a table, for a value that the paper's trial has too."""


def answer(results: Results) -> str:
    """Whether something was found that is better than the paper's weights, and how sure that is."""
    best, paper = results.row(results.best), results.row(results.paper)
    if best is None:
        ended = sum(results.states.get(state, 0) for state in ("stopped", "failed"))
        return f"No trial has finished yet; of {results.asked} asked for, {ended} ended early."
    among = f"of {sum(results.states.values())} trials"
    reached = f"{percent(best.dsc)} % DSC in the search"
    if best.trial == results.paper:
        return f"The paper's weights win: no other {among} reached their {reached}.{_next_best(results.final)}"
    if results.final is not None and results.final.winner == best.trial:
        return _answer_of_final(results.final, best, among, reached)
    if paper is None or best.difference is None:
        return (
            f"Trial {best.trial} is the best {among}, with {reached}; there is no such figure of the paper's weights."
        )
    return (
        f"Trial {best.trial} is the best {among}, with {reached}, {percent(best.difference, '+')} points against the "
        f"paper's weights, and higher in {best.better} of {len(best.trainings)} trainings; the best of many is "
        "flattered by the folds that chose it, and no unseen fold has been compared on yet."
    )


def _next_best(final: FinalComparison | None) -> str:
    """What the next best came to beside the paper's weights, where it was compared."""
    if final is None:
        return ""
    told = f"{percent(final.best)} % against {percent(final.paper)} %, {percent(final.difference, '+')} points"
    sure = "" if final.low is None else f" [{percent(final.low, '+')}, {percent(final.high, '+')}]"
    return (
        f" On {final.cases} scans of {final.patients} patients that no trial had seen the next best, "
        f"trial {final.winner}, has {told}{sure}."
    )


def _answer_of_final(final: FinalComparison, best: Row, among: str, reached: str) -> str:
    what = (
        f"on {final.cases} scans of {final.patients} patients that no trial had seen, "
        f"{percent(final.best)} % against {percent(final.paper)} %, {percent(final.difference, '+')} points"
    )
    if final.low is None or final.high is None:
        return (
            f"Trial {best.trial} is the best {among}, with {reached}: {what}; too few patients to say how sure that is."
        )
    interval = f"[{percent(final.low, '+')}, {percent(final.high, '+')}]"
    if final.low > 0:
        return f"Trial {best.trial} is better than the paper's weights: {what} {interval}."
    if final.high < 0:
        return f"The paper's weights win: trial {best.trial}, the best {among}, is worse {what} {interval}."
    return (
        f"No difference between the paper's weights and trial {best.trial}, the best {among}, is certain: "
        f"{what} {interval}, which chance alone may give."
    )


def headings(results: Results) -> list[str]:
    """What stands above the cells of a row, the values' keys last."""
    spread = " ± sd" if any(row.sd is not None for row in results.rows) else ""
    return ["Trial", f"DSC (%){spread}", "Against the paper's (points)", "Epochs", *map(label, _keys(results))]


def cells(row: Row, results: Results) -> list[str]:
    """A row as text, all values written out."""
    name = f"{row.trial}, the best" if row.trial == results.best else str(row.trial)
    ending = "" if row.state == "finished" else f", {row.state}"
    return [
        f"{name}{', the paper' if row.trial == results.paper else ''}",
        percent(row.dsc) + (f" ± {percent(row.sd)}" if row.sd is not None else ""),
        percent(row.difference, "+"),
        f"{row.epoch}{ending}",
        *(written(row.values.get(key, "-")) for key in _keys(results)),
    ]


def as_paper(row: Row, results: Results) -> list[bool]:
    """For each cell, whether it holds a value that the paper's trial has too, which is therefore none to look at."""
    paper = results.row(results.paper)
    same = [
        paper is not None and row is not paper and row.values.get(key) == paper.values.get(key)
        for key in _keys(results)
    ]
    return [False] * 4 + same


def meaning(results: Results) -> str:
    """What the table's figures are."""
    trainings = max((len(row.trainings) for row in results.rows), default=0)
    of_what = f"mean and standard deviation over {trainings} trainings" if trainings > 1 else "of one training"
    return (
        f"Validation DSC {of_what}, after the epochs that the trial was trained; the difference is to the paper's "
        "trial after the same epoch, over the same trainings."
    )


def cost(results: Results) -> str:
    """What the search took, and what it would have taken if no trial had been stopped."""
    share = f" ({100 * results.trained / results.full:.0f} % of a full search's {results.full})" if results.full else ""
    trials = sum(results.states.values())
    return f"{trials} trials, {results.trained} epochs{share}, {duration(results.seconds)} of training"


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes, or seconds."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 60 else f"{seconds:.0f} s"


def markdown(results: Results) -> str:
    """The answer, the table, and what it cost."""
    rows = [
        [SAME if same else cell for cell, same in zip(cells(row, results), as_paper(row, results), strict=True)]
        for row in results.rows
    ]
    head = [heading.replace(".", "<br>") for heading in headings(results)]
    blocks = ["# The best configurations", answer(results)]
    if rows:
        blocks += [_grid(head, rows), f"{meaning(results)} {SAME} is the paper's value."]
    return "\n\n".join([*blocks, cost(results) + "."]) + "\n"


def _keys(results: Results) -> list[str]:
    return list(results.rows[0].values) if results.rows else []


def _grid(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown, all columns but the first set to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
