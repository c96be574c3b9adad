"""Shards on a node's own disk: each is fetched once for all of the node's processes, and kept for the next run.

A shard's file is named by its sha256, so no two datasets can be taken for each other, and it appears under that
name only when all its bytes are there and are right. Beyond its bound the cache gives up what was used longest
ago. What cannot be kept is read from the store as if there were no cache.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from data_pipeline.faults import Fault
from data_pipeline.index import Shard
from data_pipeline.objectstore import Store

LANDING_TIMEOUT = 120.0
"""Seconds that a process waits for another one which fetches the same shard; then it reads from the store."""

TOUCH_EVERY = 60.0
"""Seconds after which the use of a shard is noted anew, for the choice of what to give up."""

_LANDING = "landing-"

_log = logging.getLogger("sonotrain")


@dataclass(slots=True)
class CacheCounters:
    """What a process has had of a cache: shards found there, fetched, refetched for damage, given up; bytes fetched."""

    found: int = 0
    fetched: int = 0
    damaged: int = 0
    evicted: int = 0
    bytes_fetched: int = 0


class NodeCache:
    """Shards in a folder of this node, at most `limit` bytes of them. Safe for any number of processes and threads."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._touched: dict[str, float] = {}  # when this process last noted that it uses a shard, which is there
        self._ours = threading.Lock()
        self._broken = False
        self.counters = CacheCounters()

    def __reduce__(self) -> tuple[type[NodeCache], tuple[Path, int]]:
        """Pickle as what it was made of."""
        return NodeCache, (self._folder, self._limit)

    def snapshot(self) -> dict[str, int]:
        """The counters, for a log."""
        return asdict(self.counters)

    def holds(self, largest: int) -> bool:
        """Whether so many bytes fit at once."""
        return largest <= self._limit

    def read(self, store: Store, shard: Shard, offset: int, length: int) -> bytes:
        """Exactly these bytes of a shard: from this node's disk, to which it is fetched first, or from the store.

        Raises Fault where the store fails, or where what it holds is not the shard that the index speaks of.
        """
        for _ in range(2):  # another process may give a file up between its landing and its reading
            if not self.land(store, shard):
                break
            try:
                with self._path(shard).open("rb", buffering=0) as file:
                    data = os.pread(file.fileno(), length, offset)
            except FileNotFoundError:
                self._touched.pop(shard.sha256, None)
                continue
            except OSError as failed:
                self._give_up(failed)
                break
            if len(data) == length:
                return data
            self.discard(shard)
        return store.read(shard.name, offset, length)

    def land(self, store: Store, shard: Shard) -> bool:
        """See to it that a shard is on this node's disk; False where that cannot be."""
        if self._broken or shard.bytes > self._limit:
            return False
        now = time.monotonic()
        if now - self._touched.get(shard.sha256, -math.inf) < TOUCH_EVERY:
            return True
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(self._folder / f"{shard.sha256}.lock", timeout=LANDING_TIMEOUT):
                if self._is_whole(shard):
                    self._count(found=shard.sha256 not in self._touched)
                elif not self._fetch(store, shard):
                    return False
            with suppress(FileNotFoundError):  # another process gives it up just now; the reader will notice
                os.utime(self._path(shard))  # the time of its last use, by which shards are given up
        except Timeout:
            _log.warning("%s: another process has been fetching it for %g s", shard.name, LANDING_TIMEOUT)
            return False
        except OSError as failed:
            self._give_up(failed)
            return False
        self._touched[shard.sha256] = now
        return True

    def discard(self, shard: Shard) -> None:
        """Remove a shard's file, whose bytes have turned out to be damaged."""
        _log.warning("%s: damaged on this node's disk; it is fetched again", self._path(shard))
        self._count(damaged=1)
        self._touched.pop(shard.sha256, None)
        self._path(shard).unlink(missing_ok=True)

    def _fetch(self, store: Store, shard: Shard) -> bool:
        """Fetch a shard, of which no other process has hold; False where other fetches leave no room for it."""
        partial = self._reserved(shard.bytes)
        if partial is None:
            return False
        try:
            sha256 = store.download(shard.name, partial)
            if sha256 != shard.sha256:
                raise Fault(
                    f"{store.uri}/{shard.name}: its bytes are not those that were written (sha256 differs); "
                    "`sonotrain data verify` tells more"
                )
            partial.replace(self._path(shard))
        finally:
            partial.unlink(missing_ok=True)
        self._count(fetched=1, bytes_fetched=shard.bytes)
        return True

    def _reserved(self, wanted: int) -> Path | None:
        """A file that stands for so many bytes within the bound, for which others go that were used longest ago."""
        with FileLock(self._folder / "room.lock", timeout=LANDING_TIMEOUT):
            kept, landing = _kept(self._folder)
            if landing + wanted > self._limit:
                return None
            total = landing + sum(size for _, _, size in kept)
            for path, _, size in sorted(kept, key=lambda entry: entry[1]):
                if total + wanted <= self._limit:
                    break
                path.unlink(missing_ok=True)
                self._touched.pop(path.stem, None)
                self._count(evicted=1)
                total -= size
            descriptor, name = tempfile.mkstemp(dir=self._folder, prefix=f"{_LANDING}{wanted}-")
            os.close(descriptor)
            return Path(name)

    def _is_whole(self, shard: Shard) -> bool:
        try:
            return self._path(shard).stat().st_size == shard.bytes
        except FileNotFoundError:
            return False

    def _count(self, **more: int) -> None:
        with self._ours:
            for name, count in more.items():
                setattr(self.counters, name, getattr(self.counters, name) + count)

    def _give_up(self, failed: OSError) -> None:
        if not self._broken:
            self._broken = True
            _log.warning(
                "the node's cache %s cannot be used (%s); shards are read from their store",
                self._folder, failed.strerror or failed,
            )  # fmt: skip

    def _path(self, shard: Shard) -> Path:
        return self._folder / f"{shard.sha256}.tar"


def _kept(folder: Path) -> tuple[list[tuple[Path, float, int]], int]:
    """Each shard's file with the time of its last use and its bytes; and the bytes that are being fetched."""
    kept, landing = [], 0
    for path in folder.iterdir():
        try:
            about = path.stat()
        except FileNotFoundError:
            continue
        if path.suffix == ".tar":
            kept.append((path, about.st_mtime, about.st_size))
        elif path.name.startswith(_LANDING):
            if time.time() - about.st_mtime > LANDING_TIMEOUT:  # its process was killed
                path.unlink(missing_ok=True)
            else:
                landing += int(path.name.split("-")[1])
    return kept, landing
