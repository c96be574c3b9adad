"""One interface over a folder and an S3 bucket: objects written atomically, and read whole, in part or as a stream."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from data_pipeline.counters import Counters, PerProcess
from data_pipeline.faults import Fault, WrongCall

_PIECE = 1 << 20


class Store(Protocol):
    """Named objects below one root. A name has no leading slash, no empty part, no `..` and no back-slash (WrongCall).

    A store can be pickled, used after a fork and by several threads at once. Every method raises WrongCall where the
    root or the credentials are wrong, and Fault where the work failed; both name the object.
    """

    uri: str
    """The root as a path or s3:// URI, without a trailing slash."""

    @property
    def counters(self) -> Counters:
        """What this process has asked for, and what went wrong on the way. Streams of a folder count no bytes."""

    def make(self) -> None:
        """Create the folder, or check that the bucket exists and the credentials open it."""

    def exists(self, name: str) -> bool:
        """Whether the object is there."""

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Exactly `length` bytes from `offset`, or all up to the end. Raises Fault where the object holds fewer."""

    def open(self, name: str) -> BinaryIO:
        """The object as a readable stream; the caller closes it."""

    def download(self, name: str, path: Path) -> str:
        """Write the object's bytes to a file of this machine, in bounded memory, and give their sha256.

        What goes wrong with that file is raised as the OSError that it is, so that a full disk can be told from a
        store that fails; the file is then incomplete.
        """

    def put(self, name: str, source: Path) -> None:
        """Write a whole file under a name, which shows the old content or the new one and nothing between."""

    def publish(self, name: str, data: bytes) -> None:
        """Write an object that must not exist yet (else WrongCall). Of several writers at once exactly one wins."""

    def delete(self, name: str) -> None:
        """Remove the object; one that is not there is as good as removed."""


def open_store(uri: str) -> Store:
    """The store behind a path, a file:// or an s3://bucket/prefix URI; nothing is touched yet.

    Endpoint and credentials of S3 come from the AWS chain (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, profiles...).
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if not uri:
            raise WrongCall("the store's URI is empty: give a path or s3://bucket/prefix")
        return FolderStore(Path(uri))
    if scheme == "s3":
        # Here, because boto3 takes a third of a second to import and a folder needs none of it.
        from data_pipeline.s3store import S3Store

        return S3Store(uri)
    if scheme == "file" and rest.startswith(("/", "localhost/")):
        return FolderStore(Path(unquote(urlsplit(uri).path)))
    raise WrongCall(f"{uri} is not a store: give a path, file:///path or s3://bucket/prefix")


class FolderStore:
    """Objects as files of one folder, on a local disk or a shared one."""

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()
        self.uri = str(self._root)
        self._counters = PerProcess(Counters)

    def __reduce__(self) -> tuple[type[FolderStore], tuple[Path]]:
        """Pickle as what it was made of."""
        return FolderStore, (self._root,)

    @property
    def counters(self) -> Counters:
        """What this process has asked for."""
        return self._counters.here()

    def make(self) -> None:
        """Create the folder and its parents."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as refused:
            raise WrongCall(f"{self.uri} cannot be made a folder: {refused.strerror}; name another place") from refused
        except OSError as failed:
            raise Fault(f"{self.uri} cannot be made: {failed.strerror}") from failed
        if not os.access(self._root, os.W_OK | os.X_OK):
            raise WrongCall(f"{self.uri} cannot be written to: change its rights or name another place")

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        self.counters.add(requests=1)
        with self._faults(name):
            return self._path(name).is_file()

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read exactly `length` bytes from `offset`, or all up to the end."""
        check_range(offset, length)
        with self._faults(name):
            # A file object would cost twice as much as the reading of a scan.
            descriptor = os.open(self._path(name), os.O_RDONLY)
            try:
                left = max(0, os.fstat(descriptor).st_size - offset)
                data = _read_at(descriptor, offset, left if length is None else min(left, length))
            finally:
                os.close(descriptor)
        if len(data) < (min(offset, 1) if length is None else length):
            raise too_short(self._uri(name), offset, length)
        self.counters.add(requests=1, bytes_read=len(data))
        return data

    def open(self, name: str) -> BinaryIO:
        """Open the file for reading."""
        self.counters.add(requests=1)
        with self._faults(name):
            return self._path(name).open("rb")

    def download(self, name: str, path: Path) -> str:
        """Copy the file, hashing on the way."""
        digest = hashlib.sha256()
        with self.open(name) as stream, path.open("wb") as sink:
            while piece := self._piece(name, stream):
                digest.update(piece)
                sink.write(piece)
                self.counters.add(bytes_read=len(piece))
        return digest.hexdigest()

    def put(self, name: str, source: Path) -> None:
        """Copy beside the target, then rename over it."""
        with self._faults(name), source.open("rb") as stream, self._partial(name) as (partial, sink):
            shutil.copyfileobj(stream, sink, _PIECE)
            _settle(sink)
            self.counters.add(requests=1, bytes_written=sink.tell())
            partial.replace(self._path(name))

    def publish(self, name: str, data: bytes) -> None:
        """Write beside the target, then link: the file system lets one link of a name succeed."""
        with self._faults(name), self._partial(name) as (partial, sink):
            sink.write(data)
            _settle(sink)
            try:
                self._path(name).hardlink_to(partial)
            except FileExistsError as existing:
                raise taken(self._uri(name)) from existing
        self.counters.add(requests=1, bytes_written=len(data))

    def delete(self, name: str) -> None:
        """Remove the file, and the folders below the root that it leaves empty."""
        self.counters.add(requests=1)
        with self._faults(name):
            self._path(name).unlink(missing_ok=True)
        with suppress(OSError):  # one that is not empty, or in which another writer just begins
            for folder in self._path(name).parents[: name.count("/")]:
                folder.rmdir()

    def _piece(self, name: str, stream: BinaryIO) -> bytes:
        with self._faults(name):
            return stream.read(_PIECE)

    @contextmanager
    def _partial(self, name: str) -> Iterator[tuple[Path, BinaryIO]]:
        """A file of this writer's own in the target's folder, gone afterwards; then the folder itself is synced."""
        folder = self._path(name).parent
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{uuid.uuid4().hex}.partial"
        try:
            with partial.open("xb") as sink:
                yield partial, sink
        finally:
            partial.unlink(missing_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _path(self, name: str) -> Path:
        return self._root / checked_name(name)

    def _uri(self, name: str) -> str:
        return f"{self.uri}/{name}"

    @contextmanager
    def _faults(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as missing:
            raise Fault(f"{missing.filename or self._uri(name)} is missing") from missing
        except OSError as failed:
            advice = "; make room and run again" if failed.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise Fault(f"{self._uri(name)}: {failed.strerror or failed}{advice}") from failed


def _read_at(descriptor: int, offset: int, length: int) -> bytes:
    """So many bytes of a file, fewer only at its end: the system may give some of what is asked for."""
    data = os.pread(descriptor, length, offset)
    while len(data) < length and (more := os.pread(descriptor, length - len(data), offset + len(data))):
        data += more
    return data


def _settle(sink: BinaryIO) -> None:
    """Have the bytes on the disk before a name points to them."""
    sink.flush()
    os.fsync(sink.fileno())


def checked_name(name: str) -> str:
    """The name as it is. Raises WrongCall for one that could lead out of the root."""
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise WrongCall(f"{name!r} is no object's name: parts joined by single slashes, without .. and back-slashes")
    return name


def check_range(offset: int, length: int | None) -> None:
    """Raise ValueError for a range that no object can have."""
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"offset {offset} and length {length} must not be negative")


def too_short(uri: str, offset: int, length: int | None) -> Fault:
    """The fault of an object that ends before the range asked for does."""
    wanted = "a byte" if length is None else f"{length} bytes"
    return Fault(f"{uri} does not hold {wanted} at offset {offset}: it is truncated or not what its index describes")


def taken(uri: str) -> WrongCall:
    """The fault of publishing under a name that is in use."""
    return WrongCall(f"{uri} exists already; choose another place or remove it first")
