"""Names as a cluster takes them: of images, objects and namespaces."""

from __future__ import annotations

import re

from data_pipeline import WrongCall

LONGEST_NAME = 40
"""Characters of a job's name. Pods, services and host names add to it what may have 63 in all, KubeRay what may 47."""

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"

# The grammar of the OCI distribution project's references: [HOST[:PORT]/]PATH[:TAG][@DIGEST].
_HOST_PART = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PATH_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = rf"(?:{_HOST}/)?{_PATH_PART}(?:/{_PATH_PART})*"
_TAG = r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_IMAGE = re.compile(rf"(?P<name>{_NAME})(?::{_TAG})?(?:@(?P<digest>{_DIGEST}))?")

_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_LONGEST_IMAGE_NAME = 255


def require_image(text: str) -> None:
    """Raise WrongCall for what is no name of an image, by the grammar of OCI references."""
    found = _IMAGE.fullmatch(text)
    if found and len(found["name"]) <= _LONGEST_IMAGE_NAME:
        algorithm, _, digits = (found["digest"] or "").partition(":")
        if len(digits) == _DIGEST_LENGTHS.get(algorithm, len(digits)):
            return
    raise WrongCall(f"--image {text!r} is no name of an image; write [HOST/]NAME:TAG, in small letters, or NAME@DIGEST")


def require_job_name(text: str) -> None:
    """Raise WrongCall for what cannot name a job: Kubeflow and KubeRay want a DNS label that begins with a letter."""
    if not (re.fullmatch(_LABEL, text) and text[0].isalpha() and len(text) <= LONGEST_NAME):
        raise WrongCall(
            f"--name {text!r} is no DNS label that a job can have; write small letters, digits and -, "
            f"a letter first, at most {LONGEST_NAME}"
        )


def require_label(option: str, text: str) -> None:
    """Raise WrongCall for what is no DNS label (RFC 1123), which a namespace is."""
    if not re.fullmatch(_LABEL, text):
        raise WrongCall(f"{option} {text!r} is no DNS label; write small letters, digits and -, at most 63")


def require_object_name(option: str, text: str) -> None:
    """Raise WrongCall for what is no DNS subdomain (RFC 1123), which names of Secrets, claims and accounts are."""
    if not re.fullmatch(rf"{_LABEL}(?:\.{_LABEL})*", text) or len(text) > 253:
        raise WrongCall(f"{option} {text!r} is no name of an object; write small letters, digits, - and .")
