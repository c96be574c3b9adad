"""Result files that are whole or not there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline import Fault


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path`, with its suffix, to write to; at the end it becomes `path`, after an error it is gone.

    The folder is made. Raises Fault, naming the path, for what the file system refuses.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as failed:
        raise Fault(
            f"{path} cannot be written: {failed.strerror or failed}; make room or name another place"
        ) from failed
    finally:
        partial.unlink(missing_ok=True)
