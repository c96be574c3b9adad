"""What a verb says to a person: plain lines, tables, progress, and its error in one line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

ERROR = "error: "
"""How every error line begins."""

QUIET_SECONDS = 5.0
"""Where there is no terminal to draw on, a line of progress appears this often."""

TABLE_WIDTH = 120
"""Columns of a table where there is no terminal to tell."""

T = TypeVar("T")


def speaks() -> bool:
    """Whether this process is the one that speaks: under a launch only rank 0 does."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def say(text: str) -> None:
    """One line, as it is: no colour, no wrapping, so that paths can be copied and scripts can read it."""
    if speaks():
        print(text, flush=True)


def complain(text: str) -> None:
    """An error as one line on stderr, from any rank."""
    print(ERROR + " ".join(text.split()), file=sys.stderr, flush=True)


def show_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]], numbers: bool = False) -> None:
    """A table. With numbers, all columns but the first are set to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if numbers and place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    if speaks():
        Console(width=None if sys.stdout.isatty() else TABLE_WIDTH).print(table)


def with_progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Pass items on, showing how many of `total` have gone by and the time left: a bar on a terminal, else lines."""
    console = Console(stderr=True)
    if not speaks():
        yield from items
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            yield from progress.track(items, total=total, description=what)
    else:
        begun = shown = time.monotonic()
        for count, item in enumerate(items, start=1):
            yield item
            if (now := time.monotonic()) - shown > QUIET_SECONDS:
                shown = now
                left = timedelta(seconds=round((now - begun) / count * (total - count)))
                print(f"{what}: {count} of {total}, {left} left", file=sys.stderr, flush=True)
