"""The Training Operator's PyTorchJob (kubeflow.org/v1), for clusters without Kubeflow Trainer."""

from __future__ import annotations

from typing import Any

from launch.kubernetes.pod import config_map, container, pod_template, running
from launch.kubernetes.workload import KEPT_FOR, Workload

CONTAINER = "pytorch"
"""The name by which the operator knows the container to which it tells its place."""


def pytorchjob(workload: Workload) -> list[dict[str, Any]]:
    """The manifest of a PyTorchJob: a master, which is the first machine, and workers.

    nprocPerNode is left out, so that RANK and WORLD_SIZE count pods: each starts its own ranks.
    """
    policy: dict[str, Any] = {
        "cleanPodPolicy": "Running",
        "ttlSecondsAfterFinished": int(KEPT_FOR.total_seconds()),
    } | _restarts(workload)
    if workload.time_limit:
        policy["activeDeadlineSeconds"] = int(workload.time_limit.total_seconds())
    replicas = {"Master": _replicas(workload, 1)}
    if workload.nodes > 1:
        replicas["Worker"] = _replicas(workload, workload.nodes - 1)
    job = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": workload.metadata(),
        "spec": {"runPolicy": policy, "pytorchReplicaSpecs": replicas},
    }
    return [*config_map(workload), job]


def _restarts(workload: Workload) -> dict[str, Any]:
    """The operator fails a job whose containers' restarts, added up over its pods, reach this."""
    if not workload.restarts:
        return {}
    return {"backoffLimit": workload.restarts * workload.nodes + 1}


def _replicas(workload: Workload, count: int) -> dict[str, Any]:
    what = running(workload, ("node", "--by", "kubeflow"))
    return {
        "replicas": count,
        # Not ExitCode: that takes 1 and 75 for final, and does not count what it does start again.
        "restartPolicy": "OnFailure" if workload.restarts else "Never",
        "template": pod_template(workload, container(workload, CONTAINER) | what),
    }
