"""Kubernetes' own Job (batch/v1), for a job on one machine."""

from __future__ import annotations

from typing import Any

from data_pipeline import WrongCall
from launch.job import STOPPED
from launch.kubernetes.pod import config_map, container, pod_template, running
from launch.kubernetes.workload import KEPT_FOR, Workload

CONTAINER = "sonotrain"


def batch_job(workload: Workload) -> list[dict[str, Any]]:
    """The manifest of a Job of one pod.

    A pod that fails is replaced, after a pause that grows, at most `restarts` times; in it nothing is started again,
    since another machine may do better. One that was called wrongly is not; one that was evicted, or has stopped when
    it was asked to, does not count.
    """
    spec: dict[str, Any] = {"backoffLimit": workload.restarts}
    if workload.time_limit:
        spec["activeDeadlineSeconds"] = int(workload.time_limit.total_seconds())
    spec |= {
        "ttlSecondsAfterFinished": int(KEPT_FOR.total_seconds()),
        "podFailurePolicy": failure_policy(CONTAINER, "Ignore"),
    }
    launch = ("local", "--restarts", "0")
    template = pod_template(workload, container(workload, CONTAINER) | running(workload, launch))
    template["spec"]["restartPolicy"] = "Never"
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": workload.metadata(),
        "spec": spec | {"template": template},
    }
    return [*config_map(workload), job]


def failure_policy(container: str, stopped: str) -> dict[str, Any]:
    """How a pod's failure counts: as that of the whole for a wrong call, by the action `stopped` where it was stopped.

    See Kubernetes' "Pod failure policy". It needs pods that are never restarted in place.
    """
    return {
        "rules": [
            {"action": "FailJob", "onExitCodes": _exited(container, WrongCall.exit_status)},
            {"action": stopped, "onExitCodes": _exited(container, STOPPED)},
            {"action": stopped, "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]
    }


def _exited(container: str, status: int) -> dict[str, Any]:
    return {"containerName": container, "operator": "In", "values": [status]}
