"""The variables of a job's pods. Credentials come from Secrets of the cluster and never stand in a manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline import WrongCall
from launch.kubernetes.options import Options

HOME = "/home/sonotrain"
"""The home of the image's user, on a disk of the pod's own: cached shards and compiled kernels lie there."""

TRACKING_URI = "MLFLOW_TRACKING_URI"

S3_KEYS = {"AWS_ACCESS_KEY_ID": True, "AWS_SECRET_ACCESS_KEY": True, "AWS_SESSION_TOKEN": False}
"""Variables that --s3-secret holds, and whether it must."""

MLFLOW_KEYS = {"MLFLOW_TRACKING_USERNAME": False, "MLFLOW_TRACKING_PASSWORD": False, "MLFLOW_TRACKING_TOKEN": False}
"""Variables that --mlflow-secret holds: the first two, or the last."""

# Set by Kubeflow, by KubeRay, by us, or by the machine's share of the job for each of its processes.
_RESERVED = re.compile(r"HOME|PET_\w+|RAY_ADDRESS|(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)")
_CREDENTIAL = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_PASSWORD_IN_ADDRESS = re.compile(r"://[^/?#\s]*@")


def tracking_uri_of(given: Mapping[str, str], options: Options) -> str:
    """The MLflow server, by its option or its variable; empty where none is named."""
    return options.tracking_uri or given.get(TRACKING_URI, "")


def environment_of(given: Mapping[str, str], options: Options) -> list[dict[str, Any]]:
    """The variables as a container writes them: those given, and references to the keys of Secrets.

    Raises WrongCall for one that looks like a credential, in its name or as a password in an address, and for one that
    is set for each process anyway.
    """
    for name, value in given.items():
        if _CREDENTIAL.search(name):
            raise WrongCall(
                f"--env {name} may be a credential, which a manifest does not hide; put it into a Secret of the "
                "cluster and name that (--s3-secret, --mlflow-secret)"
            )
        _require_no_password(f"--env {name}", value)
        if _RESERVED.fullmatch(name):
            raise WrongCall(f"--env {name} cannot be chosen; it is set for each process")
    _require_no_password("--tracking-uri", options.tracking_uri)
    chosen = {"HOME": HOME} | dict(given)
    if options.tracking_uri:
        chosen[TRACKING_URI] = options.tracking_uri
    plain = [{"name": name, "value": unexpanded(value)} for name, value in chosen.items()]
    return plain + _from_secret(options.s3_secret, S3_KEYS) + _from_secret(options.mlflow_secret, MLFLOW_KEYS)


def unexpanded(text: str) -> str:
    """A text that Kubernetes, which replaces $(NAME) and $$ in values and arguments, hands on as it is."""
    return text.replace("$", "$$")


def shown(variables: Sequence[Mapping[str, Any]]) -> list[str]:
    """The variables for a person, with where those come from that are hidden."""
    lines = []
    for variable in variables:
        if "value" in variable:
            lines.append(f"{variable['name']}={variable['value'].replace('$$', '$')}")
        else:
            lines.append(f"{variable['name']}=(from Secret {variable['valueFrom']['secretKeyRef']['name']})")
    return lines


def _from_secret(secret: str, keys: Mapping[str, bool]) -> list[dict[str, Any]]:
    if not secret:
        return []
    return [
        {
            "name": key,
            "valueFrom": {"secretKeyRef": {"name": secret, "key": key} | ({} if must else {"optional": True})},
        }
        for key, must in keys.items()
    ]


def _require_no_password(option: str, value: str) -> None:
    if _PASSWORD_IN_ADDRESS.search(value):
        raise WrongCall(f"{option} holds a name or password in an address; put them into a Secret (--mlflow-secret)")
