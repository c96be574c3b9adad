"""The files of a source folder, without what file managers, archives and editors leave there."""

from __future__ import annotations

import os
from pathlib import Path

from data_pipeline.faults import WrongCall

_LEFT_BEHIND = {"thumbs.db", "desktop.ini", "__macosx"}


def list_files(source: Path) -> tuple[list[Path], dict[str, str]]:
    """Every file below a folder, sorted by path; and what is no file there, or a link out of it, refused by name.

    Hidden files and folders (.DS_Store, ._name.png), thumbnails and office locks (~$name) are passed over in silence;
    linked folders are not entered. Raises WrongCall for a folder that cannot be read.
    """
    files: list[Path] = []
    refused: dict[str, str] = {}
    inside = Path(os.path.realpath(source))
    for folder, subfolders, names in os.walk(source, onerror=_unreadable):
        subfolders[:] = sorted(name for name in subfolders if not _is_left_behind(name))
        for name in sorted(names):
            path = Path(folder, name)
            if _is_left_behind(name):
                continue
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
                refused[name] = "is a link that leads out of the source folder"
            elif not path.is_file():  # reading a pipe would wait for ever
                refused[name] = "is no file, or a link to none"
            else:
                files.append(path)
    return files, refused


def with_suffix(files: list[Path], suffix: str) -> list[Path]:
    """Those whose suffix is this one in whatever case."""
    return [path for path in files if path.suffix.lower() == suffix]


def _is_left_behind(name: str) -> bool:
    return name.startswith((".", "~$")) or name.lower() in _LEFT_BEHIND


def _unreadable(failed: OSError) -> None:
    raise WrongCall(f"folder {failed.filename} cannot be read: {failed.strerror}") from failed
