"""A real folder as a store that writes down what is read of it, in whatever process, and may be slow."""

import os
import time
from dataclasses import replace
from pathlib import Path

from data_pipeline import Dataset
from data_pipeline.objectstore import FolderStore


class CountingStore(FolderStore):
    """Each read and download is a line of the log; a download pauses after each megabyte."""

    def __init__(self, root: Path, log: Path, pause: float = 0.0) -> None:
        super().__init__(root)
        self.log, self.pause = log, pause

    def __reduce__(self):
        return CountingStore, (self._root, self.log, self.pause)

    def read(self, name, offset=0, length=None):
        data = super().read(name, offset, length)
        self._note("read", name, len(data))
        return data

    def download(self, name, path):
        self._note("download", name, 0)
        return super().download(name, path)

    def noted(self, kind: str) -> list[str]:
        """The objects that were read or downloaded, in order."""
        return [line.split()[1] for line in self._lines() if line.split()[0] == kind]

    def bytes_read(self) -> int:
        """By reads, without downloads."""
        return sum(int(line.split()[2]) for line in self._lines())

    def _lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def _note(self, kind: str, name: str, length: int) -> None:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{kind} {name} {length}\n".encode())
        os.close(descriptor)

    def _piece(self, name, stream):
        if stream.tell():
            time.sleep(self.pause)
        return super()._piece(name, stream)


def counted(dataset: Dataset, log: Path, pause: float = 0.0) -> tuple[Dataset, CountingStore]:
    """The dataset through a store that counts."""
    store = CountingStore(Path(dataset.uri), log, pause)
    return replace(dataset, stores=(store,) * len(dataset.index.shards)), store
