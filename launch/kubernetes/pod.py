"""The pod that all kinds have in common: not root, a root that cannot be written, and memory that is shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.kubernetes.carried import FOLDER
from launch.kubernetes.environment import HOME, unexpanded
from launch.kubernetes.quantities import written
from launch.kubernetes.workload import Workload
from launch.node import GRACE, STOPPING

USER = 10001
"""The image's user and group, by number, which a cluster can tell from root's."""

GRACE_SECONDS = int(STOPPING + 2 * GRACE)
"""Between SIGTERM and SIGKILL: longer than a machine's share gives its ranks to write a checkpoint and copy it away."""


def container(workload: Workload, name: str) -> dict[str, Any]:
    """A container that may write to its volumes and nowhere else."""
    mounts: list[dict[str, Any]] = [
        {"name": "work", "mountPath": str(workload.workdir)},
        {"name": "home", "mountPath": HOME},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
    ]
    if workload.file:
        mounts.append({"name": "config", "mountPath": FOLDER, "readOnly": True})
    return {
        "name": name,
        "image": workload.image,
        "workingDir": str(workload.workdir),
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def running(workload: Workload, launch: Sequence[str]) -> dict[str, Any]:
    """What makes a container carry out the job's verb by `sonotrain launch ...`."""
    arguments = ("launch", *launch, "--procs", str(workload.processes), "--", *workload.verb)
    return {
        "command": ["sonotrain"],
        "args": [unexpanded(argument) for argument in arguments],
        "env": list(workload.environment),
        "resources": workload.resources.requirements(),
    }


def pod_template(workload: Workload, container: dict[str, Any]) -> dict[str, Any]:
    """A pod of one container, as Kubernetes' restricted security standard has it.

    It has no probes: the program in it watches its ranks by their signs of life, and ends with the reason in its log.
    """
    spec: dict[str, Any] = {
        "containers": [container],
        "volumes": _volumes(workload),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "automountServiceAccountToken": False,
        # So that what orphans leave is reaped, and SIGTERM reaches a program that is only just starting.
        "shareProcessNamespace": True,
        # A Service named master would set MASTER_PORT, to an address.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
    }
    if workload.service_account:
        spec["serviceAccountName"] = workload.service_account
    # Through a mesh's proxy ranks do not reach each other, and a pod with one never ends.
    labels = workload.labels() | {"sidecar.istio.io/inject": "false"}
    return {"metadata": {"labels": labels}, "spec": spec}


def config_map(workload: Workload) -> list[dict[str, Any]]:
    """The object that holds the configuration's file; none where it is a preset."""
    if workload.file is None:
        return []
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": workload.metadata(),
            "immutable": True,
            "data": {workload.file.name: workload.file.text},
        }
    ]


def _volumes(workload: Workload) -> list[dict[str, Any]]:
    claim = {"persistentVolumeClaim": {"claimName": workload.claim}}
    volumes: list[dict[str, Any]] = [
        {"name": "work", **(claim if workload.claim else {"emptyDir": {}})},
        {"name": "home", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": written(workload.resources.shared_memory)}},
    ]
    if workload.file:
        volumes.append({"name": "config", "configMap": {"name": workload.name}})
    return volumes
