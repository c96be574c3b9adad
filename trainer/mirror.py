"""A run's checkpoints in a second place: copied there in the background, and fetched from it on a new machine.

Each checkpoint has the same files there. `checkpoints.json` beside them lists those that are complete: it is written
when the last file of a new one has arrived, and before the first file of an old one goes.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock, Thread

from data_pipeline import Fault, WrongCall, open_store
from data_pipeline.objectstore import checked_name
from trainer import checkpoint_files as files

log = logging.getLogger("sonotrain")

INDEX = "checkpoints.json"


class Mirror:
    """The mirror at a path or an s3:// URI of the checkpoints in a folder, kept for one process that writes them.

    After it was first reached, a store that fails costs a warning: what it lacks is copied with the next checkpoint.
    """

    def __init__(self, uri: str, folder: Path, keep: int) -> None:
        self._store = open_store(uri)
        self._folder = folder
        self._keep = keep
        self._lock = Lock()
        self._thread: Thread | None = None
        self._to_come: list[tuple[str, int]] = []
        self._outdated: set[str] = set()

    def fetch(self, newer_than: int, best_of: Callable[[Path], int]) -> str | None:
        """Bring the newest sound checkpoint of a later step than this (-1 for any) into the folder; gives its name.

        The best one comes with it; a damaged one is named and passed over. best_of reads the best one's step from a
        checkpoint, and raises where it is another run's. Raises WrongCall for a mirror that cannot be, and Fault where
        without it the run would begin again.
        """
        try:
            self._store.make()
            names = [name for name in self._listed() if files.step_of(name) > newer_than]
            for name in reversed(names):
                best_step = self._fetched(name, best_of)
                if best_step is not None:
                    best = files.name_of(best_step)
                    if best in names and best != name:
                        self._fetched(best, best_of)
                    log.warning("going on from %s, fetched from %s", name, self._store.uri)
                    return name
            if names:
                raise Fault(f"{self._store.uri}: no checkpoint in it can be used")
        except WrongCall:
            raise
        except Fault as failed:
            if newer_than < 0:
                raise Fault(
                    f"{failed}; there is no checkpoint in {self._folder} either: start again when the mirror can be "
                    "read, or with another checkpoints.mirror to begin anew"
                ) from failed
            log.warning("%s; going on from what is in %s", failed, self._folder)
        return None

    def follow(self, name: str, best_step: int) -> None:
        """Copy a checkpoint that has been published, in the background, and remove what it supersedes."""
        with self._lock:
            self._to_come.append((name, best_step))
            if self._thread is None:
                self._thread = Thread(target=self._copy_what_comes, name="mirror", daemon=True)
                self._thread.start()

    def clear(self) -> None:
        """Remove all that it holds, which no process may be writing to. Raises Fault where the store fails."""
        listed = self._listed()
        if listed:
            self._list([])
        for name in listed:
            self._delete(name, json.loads(self._store.read(f"{name}/{files.MANIFEST}"))["sha256"])
        self._store.delete(INDEX)

    def close(self, seconds: float) -> None:
        """Wait for what is being copied."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
            if thread.is_alive():
                log.warning("%s: the newest checkpoint is not copied after %.0f s", self._store.uri, seconds)

    def _copy_what_comes(self) -> None:
        while True:
            with self._lock:
                if not self._to_come:
                    self._thread = None
                    return
                came, self._to_come = self._to_come, []
            self._outdated.update(name for name, _ in came)
            try:
                self._bring_up_to_date(came[-1][1])
            except Exception as failed:  # of whatever kind, it must not become the training's
                log.warning("checkpoint %s is not in the mirror yet: %s", came[-1][0], failed)

    def _bring_up_to_date(self, best_step: int) -> None:
        """Copy what the folder has and the mirror has not, newest first; remove what is superseded."""
        listed = self._listed()
        for name in reversed(files.names(self._folder)):
            if name in self._outdated and name in listed:
                listed.remove(name)
                self._list(listed)
            if name not in listed and self._copied(name):
                listed = sorted([*listed, name])
                self._list(listed)
        self._outdated.clear()
        superseded = files.superseded(listed, self._keep, best_step)
        if superseded:
            self._list([name for name in listed if name not in superseded])
            for name in superseded:
                self._delete(name, json.loads(self._store.read(f"{name}/{files.MANIFEST}"))["sha256"])

    def _copied(self, name: str) -> bool:
        """Copy a checkpoint, the manifest last; not where it has been superseded and removed meanwhile."""
        source = self._folder / name
        contents = [*files.files(source), files.MANIFEST]
        try:
            for file in contents:
                self._store.put(f"{name}/{file}", source / file)
        except Fault:
            if source.exists():
                raise
            self._delete(name, contents)
            return False
        return True

    def _fetched(self, name: str, best_of: Callable[[Path], int]) -> int | None:
        """Bring a checkpoint into the folder and give its best one's step, or say why it cannot be used."""
        target = self._folder / name
        try:
            partial = files.begin(target)
            manifest = self._store.read(f"{name}/{files.MANIFEST}")
            for file, sha256 in json.loads(manifest)["sha256"].items():
                path = partial / checked_name(file)
                path.parent.mkdir(parents=True, exist_ok=True)
                if self._store.download(f"{name}/{file}", path) != sha256:
                    raise ValueError(f"{file} is not what was written")
            (partial / files.MANIFEST).write_bytes(manifest)
            best_step = best_of(partial)
            files.put_in_place(target)
        except WrongCall:
            raise
        except OSError as full:
            raise Fault(f"{self._folder} cannot take the checkpoint from {self._store.uri}: {full.strerror}") from full
        except (ValueError, KeyError, AttributeError, TypeError, Fault) as broken:
            where = f"{self._store.uri}/{name}"
            log.warning("checkpoint %s cannot be used (%s); going back to the one before it", where, broken)
            return None
        finally:
            shutil.rmtree(files.partial_of(target), ignore_errors=True)
        return best_step

    def _listed(self) -> list[str]:
        """The complete checkpoints, oldest first."""
        if not self._store.exists(INDEX):
            return []
        try:
            names = json.loads(self._store.read(INDEX))["checkpoints"]
            return sorted(name for name in names if files.is_name(name))
        except (ValueError, KeyError, TypeError) as broken:
            raise Fault(f"{self._store.uri}/{INDEX} is damaged ({broken}); remove it with all beside it") from broken

    def _list(self, names: list[str]) -> None:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".json") as file:
            json.dump({"format": 1, "checkpoints": names}, file)
            file.flush()
            self._store.put(INDEX, Path(file.name))

    def _delete(self, name: str, contents: list[str]) -> None:
        for file in (files.MANIFEST, *contents):
            self._store.delete(f"{name}/{file}")
