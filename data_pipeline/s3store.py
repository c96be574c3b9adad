"""The S3 side of the object store: a client per process, reads that go on where they broke, errors in one line."""

from __future__ import annotations

import hashlib
import io
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlsplit

import boto3
import urllib3
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as boto
from botocore.config import Config

from data_pipeline.faults import Fault, WrongCall
from data_pipeline.objectstore import check_range, checked_name, taken, too_short

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""

RESUMPTIONS = 8
"""How often one object's reading goes on after its connection broke."""

_PIECE = 1 << 16
_MISSING = ("NoSuchKey", "404")
_BROKEN = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
)


class S3Store:
    """Objects of one bucket below one prefix. read_timeout is in seconds without a byte."""

    def __init__(self, uri: str, read_timeout: float = READ_TIMEOUT) -> None:
        self._bucket, *parts = uri.removeprefix("s3://").split("/")
        parts = [part for part in parts if part]
        if not self._bucket:
            raise WrongCall(f"{uri} names no bucket: write s3://bucket/prefix")
        self.uri = "s3://" + "/".join([self._bucket, *parts])
        self._prefix = "".join(f"{part}/" for part in parts)
        self._read_timeout = read_timeout
        self._clients: dict[int, S3Client] = {}

    def __reduce__(self) -> tuple[type[S3Store], tuple[str, float]]:
        """Pickle as what it was made of: connections stay where they are."""
        return S3Store, (self.uri, self._read_timeout)

    def make(self) -> None:
        """Check by a listing, whose errors tell a missing bucket from a wrong key (those of HEAD do not)."""
        with self._faults(""):
            self._client().list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def exists(self, name: str) -> bool:
        """Fetch one byte: HEAD would not tell a missing bucket from a missing object."""
        try:
            self._get(name, Range="bytes=0-0")["Body"].read()
        except boto.ClientError as answer:
            if _code(answer) in _MISSING:
                return False
            if _code(answer) == "InvalidRange":  # an empty object has no first byte
                return True
            raise self._told(answer, name) from answer
        except (*_BROKEN, boto.BotoCoreError, OSError, ValueError) as failed:
            raise self._told(failed, name) from failed
        return True

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
        return io.BufferedReader(_Resumed(self, name, 0, None), 4 * _PIECE)

    def download(self, name: str, path: Path) -> str:
        """Write the object to a file, hashing on the way; a broken body is resumed where it broke."""
        digest = hashlib.sha256()
        with self.open(name) as stream, path.open("wb") as sink:
            while piece := stream.read(1 << 20):
                digest.update(piece)
                sink.write(piece)
        return digest.hexdigest()

    def put(self, name: str, source: Path) -> None:
        """Upload in parts where the file is large; the bucket shows the object when the last one has arrived."""
        key = self._key(name)
        transfer = TransferConfig(multipart_threshold=1 << 25, multipart_chunksize=1 << 25, max_concurrency=4)
        with self._faults(name):
            try:
                stream = source.open("rb")
            except OSError as failed:
                raise Fault(f"{source} cannot be read: {failed.strerror}") from failed
            with stream:
                self._client().upload_fileobj(stream, self._bucket, key, Config=transfer)

    def publish(self, name: str, data: bytes) -> None:
        """Write on the condition that nothing is there."""
        # Some servers ignore the condition; the look before it then guards against all but a race.
        if self.exists(name):
            raise taken(self._uri(name))
        with self._faults(name):
            try:
                self._client().put_object(Bucket=self._bucket, Key=self._key(name), Body=data, IfNoneMatch="*")
            except boto.ClientError as answer:
                if _code(answer) not in ("PreconditionFailed", "ConditionalRequestConflict", "409", "412"):
                    raise
                # A retry after a lost answer meets the object that its own first try wrote.
                if not (answer.response["ResponseMetadata"]["RetryAttempts"] and self.read(name) == data):
                    raise taken(self._uri(name)) from answer

    def _get(self, name: str, **conditions: str) -> Any:
        return self._client().get_object(Bucket=self._bucket, Key=self._key(name), **cast(Any, conditions))

    def _client(self) -> S3Client:
        """The client of this very process: connections do not survive a fork.

        Two threads may both make one, each from a session of its own; the first one stays.
        """
        process = os.getpid()
        if process not in self._clients:
            config = Config(
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=self._read_timeout,
                retries={"mode": "standard", "total_max_attempts": 3},
                max_pool_connections=32,
                # Other servers than AWS refuse the checksums that newer clients add unasked.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            self._clients.setdefault(process, boto3.session.Session().client("s3", config=config))
        return self._clients[process]

    def _key(self, name: str) -> str:
        return self._prefix + checked_name(name)

    def _uri(self, name: str) -> str:
        return f"{self.uri}/{name}" if name else self.uri

    @contextmanager
    def _faults(self, name: str) -> Iterator[None]:
        try:
            yield
        except (*_BROKEN, boto.ClientError, boto.BotoCoreError, OSError, ValueError) as failed:
            raise self._told(failed, name) from failed

    def _told(self, failed: Exception, name: str) -> Fault:
        """The exception as one line that says what to do. Access keys and signatures stay out of it."""
        uri = self._uri(name)
        if isinstance(failed, boto.ClientError):
            return _answered(failed, uri, self._bucket)
        if isinstance(failed, boto.ReadTimeoutError):
            return Fault(f"{uri}: the S3 server was silent for {self._read_timeout:g} s; try again when it is well")
        if isinstance(failed, boto.SSLError):
            return WrongCall(f"{uri}: the server's certificate is not trusted; name its authority in AWS_CA_BUNDLE")
        if isinstance(failed, _BROKEN):
            where = urlsplit(self._client().meta.endpoint_url)
            server = f"{where.scheme}://{where.hostname}" + (f":{where.port}" if where.port else "")
            return Fault(f"{uri}: no connection to {server}; is the server up and AWS_ENDPOINT_URL_S3 right?")
        if isinstance(failed, (boto.NoCredentialsError, boto.PartialCredentialsError)):
            return WrongCall(f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
        if isinstance(failed, boto.ParamValidationError):
            return WrongCall(f"{uri} is no possible name of a bucket or an object in it; correct the URI")
        return WrongCall(f"{uri}: {_one_line(failed)}; check the URI and the AWS settings")


class _Resumed(io.RawIOBase):
    """Part of one S3 object, or all of it. A broken body goes on from the byte reached, of the same version only."""

    def __init__(self, store: S3Store, name: str, offset: int, length: int | None) -> None:
        super().__init__()
        self._store, self._name = store, name
        self._position = offset
        self._end = sys.maxsize if length is None else offset + length
        self._version: dict[str, str] = {}
        self._resumptions = 0
        self._body: Any = None
        with store._faults(name):
            self._request()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # Small pieces, because what was read of a piece that breaks is lost with it.
        piece = memoryview(buffer).cast("B")[: min(self._end - self._position, _PIECE)]
        while piece:
            try:
                if self._body is None:
                    self._request()
                count = int(self._body.readinto(piece))
            except (*_BROKEN, boto.ClientError) as broken:
                self._give_up_or_wait(broken)
            else:
                self._position += count
                return count
        return 0

    def readall(self) -> bytes:
        """Read what is left; the inherited way goes in steps of 8 KiB, at a third of the speed."""
        data = bytearray(self._end - self._position)
        reached = 0
        with memoryview(data) as view:
            while reached < len(data):
                reached += self.readinto(view[reached:])
        return bytes(data)

    def close(self) -> None:
        self._disconnect()
        super().close()

    def _give_up_or_wait(self, broken: Exception) -> None:
        self._disconnect()
        # A server that is too busy to resume is one more break; its other answers will not change.
        lasting = isinstance(broken, boto.ClientError) and _status(broken) < 500
        if lasting or self._resumptions == RESUMPTIONS:
            raise self._store._told(broken, self._name) from broken
        time.sleep(min(5.0, 0.1 * 2**self._resumptions) * random.uniform(0.5, 1.0))
        self._resumptions += 1

    def _request(self) -> None:
        whole = self._position == 0 and self._end == sys.maxsize  # an empty object has no range
        ask = {} if whole else {"Range": f"bytes={self._position}-{self._end - 1}"}
        answer = self._store._get(self._name, **ask, **self._version)
        self._body = answer["Body"]
        if ask and "ContentRange" not in answer:
            self._disconnect()
            raise Fault(f"{self._store._uri(self._name)}: the S3 server does not read parts of objects")
        self._end = self._position + answer["ContentLength"]
        self._version = {"IfMatch": answer["ETag"]}

    def _disconnect(self) -> None:
        """Close the connection: the rest of a broken body must not be taken for the next answer."""
        if self._body is not None:
            self._body.close()
            self._body = None


def _answered(answer: boto.ClientError, uri: str, bucket: str) -> Fault:
    """What the server's error code means and what to do about it."""
    code = _code(answer)
    if code in _MISSING:
        return Fault(f"{uri} is missing")
    if code in ("PreconditionFailed", "412"):
        return Fault(f"{uri} changed while it was read; start again")
    if code in ("InvalidRange", "416"):
        return Fault(f"{uri} ends before the bytes asked for: it is truncated or not what its index describes")
    advice = {
        "NoSuchBucket": f"the bucket {bucket} does not exist; create it or correct the URI",
        "InvalidBucketName": f"{bucket} is no valid bucket name; correct the URI",
        "InvalidAccessKeyId": "the server does not know the access key; check AWS_ACCESS_KEY_ID or AWS_PROFILE",
        "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
        "AccessDenied": "access is denied; check the credentials and their rights to the bucket",
        "403": "access is denied; check the credentials and their rights to the bucket",
        "ExpiredToken": "the credentials have expired; renew them",
        "RequestTimeTooSkewed": "this machine's clock differs from the server's; set it",
        "PermanentRedirect": "the bucket lies in another region; set AWS_DEFAULT_REGION",
        "AuthorizationHeaderMalformed": "the bucket lies in another region; set AWS_DEFAULT_REGION",
    }
    if code in advice:
        return WrongCall(f"{uri}: {advice[code]}")
    return Fault(f"{uri}: the S3 server answers {code}: {_one_line(answer.response['Error'].get('Message', ''))}")


def _code(answer: boto.ClientError) -> str:
    return str(answer.response["Error"].get("Code", ""))


def _status(answer: boto.ClientError) -> int:
    return int(answer.response["ResponseMetadata"]["HTTPStatusCode"])


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
