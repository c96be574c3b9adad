"""Tables beside the scans, as spreadsheets write them in different countries."""

from __future__ import annotations

import csv
import io
from pathlib import Path

Row = dict[str, str]


def read_rows(path: Path) -> list[Row]:
    """The rows of a table by column; columns in small letters with _ for blanks, cells without blanks around them.

    Cells are separated by comma, semicolon or tab, whichever is most frequent in the first line; the text is UTF-8,
    with a byte-order mark or without, or else Windows-1252. Raises OSError, ValueError or csv.Error.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", errors="replace")
    separator = max(",;\t", key=text.partition("\n")[0].count)
    # A short row has None for its last columns, a long one a list under None.
    return [
        {_column(name): (cell or "").strip() for name, cell in row.items() if name is not None}
        for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    ]


def _column(name: str) -> str:
    return name.strip().lower().replace(" ", "_")
