"""The S3 side of the object store: clients per process, reads that go on where they broke, uploads in parts."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import boto3
from botocore import exceptions as boto
from botocore.config import Config

from data_pipeline.counters import Counters, PerProcess
from data_pipeline.faults import Fault, WrongCall
from data_pipeline.objectstore import check_range, checked_name, taken, too_short
from data_pipeline.patience import CONNECT_TIMEOUT, PATIENCE, READ_TIMEOUT, Patience, Silence
from data_pipeline.s3errors import FAILED, MISSING, TAKEN, cannot_begin, code_of, passes, throttles, times_out, told

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedMultipartUploadTypeDef, CompletedPartTypeDef

T = TypeVar("T")

PART = 1 << 24
"""Bytes of a part of an upload. Files up to this size go in one request."""

RANGE = 1 << 23
"""Bytes of a part of a download, of which only small pieces are in memory."""

PARALLEL = 4
"""Parts of one object that are on their way at once."""

_MOST_PARTS = 10_000
_PIECE = 1 << 18
_READ_BACK = 1 << 20


class S3Store:
    """Objects of one bucket below one prefix.

    read_timeout is in seconds of one try without a byte; after patience seconds without one the work has failed.
    """

    def __init__(self, uri: str, read_timeout: float = READ_TIMEOUT, patience: float = PATIENCE) -> None:
        self._bucket, *parts = uri.removeprefix("s3://").split("/")
        parts = [part for part in parts if part]
        if not self._bucket:
            raise WrongCall(f"{uri} names no bucket: write s3://bucket/prefix")
        self.uri = "s3://" + "/".join([self._bucket, *parts])
        self._prefix = "".join(f"{part}/" for part in parts)
        self._read_timeout = read_timeout
        self._silence = Silence(self.uri, patience)
        self._clients = PerProcess(self._connect)
        self._counters = PerProcess(Counters)

    def __reduce__(self) -> tuple[type[S3Store], tuple[str, float], dict[str, Silence]]:
        """Pickle as what it was made of: connections and credentials stay where they are."""
        return S3Store, (self.uri, self._read_timeout), {"_silence": self._silence}

    @property
    def counters(self) -> Counters:
        """What this process has asked for."""
        return self._counters.here()

    def make(self) -> None:
        """Check by a listing, whose errors tell a missing bucket from a wrong key (those of HEAD do not)."""
        self._ask("", lambda: self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1))

    def exists(self, name: str) -> bool:
        """Fetch one byte: HEAD would not tell a missing bucket from a missing object."""

        def holds_a_byte() -> bool:
            try:
                self._get(name, Range="bytes=0-0")["Body"].read()
            except boto.ClientError as answer:
                if code_of(answer) in (*MISSING, "InvalidRange"):  # an empty object has no first byte
                    return code_of(answer) == "InvalidRange"
                raise
            return True

        return self._ask(name, holds_a_byte)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read exactly `length` bytes from `offset`, or all up to the end; a broken body is resumed."""
        check_range(offset, length)
        if length == 0:
            return b""
        with _Resumed(self, name, offset, length) as stream:
            data = stream.readall()
        if length is not None and len(data) < length:
            raise too_short(self._uri(name), offset, length)
        return data

    def open(self, name: str) -> BinaryIO:
        """Start to read; a broken body is resumed where it broke."""
        return io.BufferedReader(_Resumed(self, name, 0, None), _PIECE)

    def download(self, name: str, path: Path) -> str:
        """Write the object to a file, in parts that come several at once, and read it back for its sha256."""
        digest = hashlib.sha256()
        with path.open("w+b", buffering=0) as file, _Resumed(self, name, 0, RANGE) as first:

            def fetch(start: int) -> int:
                part = first if start == 0 else _Resumed(self, name, start, RANGE, first.version)
                with part, path.open("r+b") as sink:
                    sink.seek(start)
                    for piece in part.pieces():
                        sink.write(piece)
                return start

            with ThreadPoolExecutor(PARALLEL) as pool:
                for start in pool.map(fetch, range(0, first.size, RANGE)):
                    for place in range(start, min(start + RANGE, first.size), _READ_BACK):
                        digest.update(os.pread(file.fileno(), _READ_BACK, place))
        return digest.hexdigest()

    def put(self, name: str, source: Path) -> None:
        """Upload in parts where the file is large; the bucket shows the object when the last one has arrived."""
        key = self._key(name)
        data = _part_of_file(source, 0, PART + 1)
        if len(data) > PART:
            self._put_in_parts(name, source)
            return
        self._ask(name, lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=data))
        self.counters.add(bytes_written=len(data))

    def publish(self, name: str, data: bytes) -> None:
        """Write on the condition that nothing is there."""
        # Some servers ignore the condition; the look before it then guards against all but a race.
        if self.exists(name):
            raise taken(self._uri(name))
        tries = 0

        def written() -> bool:
            nonlocal tries
            tries += 1
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=data, IfNoneMatch="*")
            except boto.ClientError as answer:
                if code_of(answer) in TAKEN:
                    return False
                raise
            return True

        # A try after a lost answer meets the object that the one before it wrote.
        if not self._ask(name, written) and not (tries > 1 and self.read(name) == data):
            raise taken(self._uri(name))
        self.counters.add(bytes_written=len(data))

    def delete(self, name: str) -> None:
        """Remove the object, which S3 does not mind to be asked for twice."""
        self._ask(name, lambda: self._client.delete_object(Bucket=self._bucket, Key=self._key(name)))

    def _put_in_parts(self, name: str, source: Path) -> None:
        """A multipart upload, whose parts are thrown away where it fails."""
        client, bucket, key = self._client, self._bucket, self._key(name)
        size = source.stat().st_size
        step = max(PART, -(-size // _MOST_PARTS))

        def begin() -> str:
            return _complete(client.create_multipart_upload(Bucket=bucket, Key=key).get("UploadId"))

        upload = self._ask(name, begin)

        def send(number: int) -> CompletedPartTypeDef:
            data = _part_of_file(source, (number - 1) * step, step)
            call = partial(client.upload_part, Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=data)
            tag = self._ask(name, lambda: _complete(call().get("ETag"), '"'))
            self.counters.add(bytes_written=len(data))
            return {"PartNumber": number, "ETag": tag}

        try:
            with ThreadPoolExecutor(PARALLEL) as pool:
                parts: CompletedMultipartUploadTypeDef = {"Parts": list(pool.map(send, range(1, 1 + -(-size // step))))}
            finish = partial(client.complete_multipart_upload, Bucket=bucket, Key=key, UploadId=upload)
            self._ask(name, lambda: _complete(finish(MultipartUpload=parts).get("Key")))
        except BaseException:
            with suppress(*FAILED):
                client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
            raise

    def _get(self, name: str, **conditions: str) -> Any:
        return self._client.get_object(Bucket=self._bucket, Key=self._key(name), **cast(Any, conditions))

    def _ask(self, name: str, call: Callable[[], T]) -> T:
        """Call until an answer comes, which may be an error that lasts."""
        patience = Patience(self._silence)
        while True:
            try:
                self.counters.add(requests=1)
                answer = call()
            except FAILED as failed:
                self._bear(failed, name, patience)
            else:
                self.counters.add(seconds_waiting=patience.waited())
                patience.heard()
                return answer

    def _bear(self, failed: Exception, name: str, patience: Patience) -> None:
        """Pause before another try, or raise what is wrong where none may help or patience has ended."""
        self.counters.add(timeouts=times_out(failed), throttled=throttles(failed))
        silent = None
        if not passes(failed) or (silent := patience.exhausted()) is not None:
            where = urlsplit(self._client.meta.endpoint_url)
            server = f"{where.scheme}://{where.netloc.rpartition('@')[2]}"  # without a name and a password
            raise told(failed, self._uri(name), self._bucket, server, silent) from failed
        patience.pause()
        self.counters.add(retries=1, seconds_waiting=patience.waited())

    @property
    def _client(self) -> S3Client:
        try:
            return self._clients.here()
        except FAILED as failed:
            raise cannot_begin(failed, self.uri) from failed

    def _connect(self) -> S3Client:
        config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=self._read_timeout,
            retries={"mode": "standard", "total_max_attempts": 1},  # tries are counted here, not twice
            max_pool_connections=64,
            # Other servers than AWS refuse the checksums that newer clients add unasked.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.session.Session().client("s3", config=config)

    def _key(self, name: str) -> str:
        return self._prefix + checked_name(name)

    def _uri(self, name: str) -> str:
        return f"{self.uri}/{name}" if name else self.uri


class _Resumed(io.RawIOBase):
    """Part of one S3 object, or all of it. A broken body goes on from the byte reached, of the same version only.

    version and size, of the whole object, are known when the first piece has been read.
    """

    def __init__(self, store: S3Store, name: str, offset: int, length: int | None, version: str | None = None) -> None:
        super().__init__()
        self.version, self.size = version, sys.maxsize
        self._store, self._name = store, name
        self._position = offset
        self._end = sys.maxsize if length is None else offset + length
        self._patience = Patience(store._silence)
        self._body: Any = None
        self._ready = self._received()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._piece(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def readall(self) -> bytes:
        """Read what is left."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """What is left, as it comes."""
        return iter(lambda: self._piece(_PIECE), b"")

    def close(self) -> None:
        self._disconnect()
        super().close()

    def _piece(self, most: int) -> bytes:
        """The next bytes, none at the end."""
        if not self._ready:
            self._ready = self._received()
        piece, self._ready = self._ready[:most], self._ready[most:]
        return piece

    def _received(self) -> bytes:
        """What comes from the server next. It is never much, for what was read of a piece that breaks is lost."""
        while self._position < self._end:
            try:
                piece = self._body.read(min(_PIECE, self._end - self._position)) if self._body else self._answered()
            except FAILED as broken:
                self._disconnect()
                self._store._bear(broken, self._name, self._patience)
            else:
                self._position += len(piece)
                self._patience.heard()
                self._store.counters.add(bytes_read=len(piece))
                return bytes(piece)
        return b""

    def _answered(self) -> bytes:
        """The first piece of a body that begins at the position reached."""
        ask = {"Range": f"bytes={self._position}-{self._end - 1}"}
        if self.version is not None:
            ask["IfMatch"] = self.version
        self._store.counters.add(requests=1, resumptions=self.size < sys.maxsize)
        try:
            answer = self._store._get(self._name, **ask)
        except boto.ClientError as refused:
            if code_of(refused) == "InvalidRange" and self._position == 0:
                self._end = self.size = 0
                return b""
            raise
        self._store.counters.add(seconds_waiting=self._patience.waited())
        self._body = answer["Body"]
        piece: bytes = self._body.read(min(_PIECE, self._end - self._position))
        if not piece:  # a head that breaks off looks like a whole one, so none is believed before its body comes
            raise ConnectionResetError
        if "ContentRange" not in answer:
            raise Fault(f"{self._store._uri(self._name)}: the S3 server does not read parts of objects")
        self._end = self._position + answer["ContentLength"]
        self.size = int(answer["ContentRange"].rpartition("/")[2])
        self.version = answer["ETag"]
        return piece

    def _disconnect(self) -> None:
        """Close the connection: the rest of a broken body must not be taken for the next answer."""
        if self._body is not None:
            self._body.close()
            self._body = None


def _complete(told: str | None, end: str = "") -> str:
    """What an answer tells, for an answer that breaks off may look like a whole one. Raises ConnectionResetError."""
    if not told or not told.endswith(end) or told == end:
        raise ConnectionResetError
    return told


def _part_of_file(source: Path, offset: int, length: int) -> bytes:
    """At most so many bytes of a file of this machine."""
    try:
        with source.open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError as failed:
        raise Fault(f"{source} cannot be read: {failed.strerror}") from failed
