"""What goes wrong with an S3 server: whether it may pass by itself, and what to tell of it in one line."""

from __future__ import annotations

import re
import ssl

import urllib3
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from data_pipeline.faults import Fault, WrongCall

MISSING = ("NoSuchKey", "404")
TAKEN = ("PreconditionFailed", "412")

FAILED = (
    boto.ClientError,
    boto.BotoCoreError,
    urllib3.exceptions.HTTPError,
    OSError,
    ValueError,
)
"""All that boto3 raises."""

_BROKEN = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    ResponseParserError,
    ValueError,  # of a date, a number or a name that the answer was cut off in
)
_THROTTLED = (
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "TooManyRequestsException",
    "BandwidthLimitExceeded",
)
_PASSING = ("RequestTimeout", "RequestTimeoutException", "ConditionalRequestConflict", "OperationAborted")


def passes(failed: Exception) -> bool:
    """Whether trying again may help: not where the server has made up its mind."""
    if isinstance(failed, boto.ClientError):
        return code_of(failed) in _PASSING or throttles(failed) or (_status(failed) >= 500 and _status(failed) != 501)
    if isinstance(failed, boto.SSLError):
        # A server that stops breaks handshakes off; one that is not trusted completes them.
        return isinstance(_reason(failed), ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
    return isinstance(failed, _BROKEN)


def throttles(failed: Exception) -> bool:
    """Whether the server says that it is asked for too much."""
    return isinstance(failed, boto.ClientError) and (
        code_of(failed) in _THROTTLED or _status(failed) in (429, 503, 509)
    )


def times_out(failed: Exception) -> bool:
    """Whether a try ended because nothing came."""
    return isinstance(failed, (boto.ReadTimeoutError, boto.ConnectTimeoutError, urllib3.exceptions.TimeoutError))


def cannot_begin(failed: Exception, uri: str) -> WrongCall:
    """What kept a client from being made at all: no address, no profile, no region."""
    return WrongCall(f"{uri}: {_one_line(failed)}; check the URI and the AWS settings")


def told(failed: Exception, uri: str, bucket: str, server: str, silent: float | None = None) -> Fault:
    """The exception as one line that says what to do. Access keys and signatures stay out of it.

    silent is for how many seconds it was tried in vain.
    """
    lasted = "" if silent is None else f" for {silent:.0f} s"
    if isinstance(failed, boto.ClientError):
        return _answered(failed, uri, bucket, lasted)
    if times_out(failed):
        return Fault(f"{uri}: the S3 server {server} was silent{lasted}; try again when it is well")
    if isinstance(failed, boto.SSLError) and not passes(failed):
        return WrongCall(f"{uri}: the server's certificate is not trusted; name its authority in AWS_CA_BUNDLE")
    if isinstance(failed, _BROKEN):
        return Fault(f"{uri}: no connection to {server}{lasted}; is the server up and AWS_ENDPOINT_URL_S3 right?")
    if isinstance(failed, (boto.NoCredentialsError, boto.PartialCredentialsError)):
        return WrongCall(f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
    if isinstance(failed, boto.ParamValidationError):
        return WrongCall(f"{uri} is no possible name of a bucket or an object in it; correct the URI")
    return cannot_begin(failed, uri)


def code_of(answer: boto.ClientError) -> str:
    """The server's word for what is wrong, or the HTTP status where it says no more."""
    return str(answer.response["Error"].get("Code", ""))


def _answered(answer: boto.ClientError, uri: str, bucket: str, lasted: str) -> Fault:
    """What the server's error code means and what to do about it."""
    code = code_of(answer)
    if code in MISSING:
        return Fault(f"{uri} is missing")
    if code in TAKEN:
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
    if throttles(answer):
        return Fault(f"{uri}: the S3 server answers {code}{lasted}; try again when it is less busy")
    message = _one_line(answer.response["Error"].get("Message", ""))
    return Fault(f"{uri}: the S3 server answers {code}{lasted}: {message}")


def _status(answer: boto.ClientError) -> int:
    return int(answer.response["ResponseMetadata"]["HTTPStatusCode"])


def _reason(failed: boto.SSLError) -> BaseException | None:
    """What the system's library said, below the exceptions of urllib3 and boto3."""
    reason: object = failed.kwargs["error"]
    while isinstance(reason, BaseException) and not isinstance(reason, ssl.SSLError):
        reason = reason.args[-1] if reason.args else None
    return reason if isinstance(reason, ssl.SSLError) else None


def _one_line(text: object) -> str:
    """Without line breaks, and without what an address has before its host: a name and a password."""
    return re.sub(r"//[^/\s]*@", "//", " ".join(str(text).split()))
