"""KubeRay's RayJob (ray.io/v1): a cluster of Ray for one sweep, which ends with it."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from typing import Any

from launch.kubernetes.pod import config_map, container, pod_template
from launch.kubernetes.quantities import cores_of
from launch.kubernetes.resources import CORES_OF_RAY, OBJECTS_OF_RAY
from launch.kubernetes.workload import Workload

CLUSTER_KEPT_FOR = 300
"""Seconds that the cluster stays after a sweep, with its machines, so that what its last lines are can be read."""

_AGENT = 52365
"""The port of Ray's agent on each machine, which tells whether Ray is well there."""


def rayjob(workload: Workload) -> list[dict[str, Any]]:
    """The manifest of a RayJob. Trials run on all machines; the first one, the head, also carries out the verb.

    KubeRay sets RAY_ADDRESS in each pod, and Ray's job server that of the verb. A sweep that fails is started again on
    a new cluster, at most `restarts` times.
    """
    spec: dict[str, Any] = {
        # Through a shell, in a directory of Ray's own choice.
        "entrypoint": f"cd {shlex.quote(str(workload.workdir))} && exec {shlex.join(('sonotrain', *workload.verb))}",
        # The operator submits it itself, so that there is no further pod.
        "submissionMode": "HTTPMode",
        "backoffLimit": workload.restarts,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": CLUSTER_KEPT_FOR,
    }
    if workload.time_limit:
        spec["activeDeadlineSeconds"] = int(workload.time_limit.total_seconds())
    start = {
        "num-cpus": str(int(cores_of("--cpu", workload.resources.cpu)) - CORES_OF_RAY),
        "object-store-memory": str(OBJECTS_OF_RAY),
    }
    head = {
        "rayStartParams": {"dashboard-host": "0.0.0.0", **start},  # noqa: S104 - the operator submits the job there
        "template": _pod(workload, "ray-head"),
    }
    cluster: dict[str, Any] = {
        "rayVersion": version("ray"),
        # Whom Ray listens to can run programs in the pods: nobody without the token that KubeRay makes.
        "authOptions": {"mode": "token"},
        "headGroupSpec": head,
    }
    workers = workload.nodes - 1
    if workers:
        group = {"groupName": "workers", "replicas": workers, "minReplicas": workers, "maxReplicas": workers}
        cluster["workerGroupSpecs"] = [group | {"rayStartParams": start, "template": _pod(workload, "ray-worker")}]
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": workload.metadata(),
        "spec": spec | {"rayClusterSpec": cluster},
    }
    return [*config_map(workload), job]


def _pod(workload: Workload, name: str) -> dict[str, Any]:
    """KubeRay writes the command that starts Ray. Its own probes would need wget, which the image has not."""
    here = container(workload, name) | {
        "env": [*workload.environment, {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
        "resources": workload.resources.requirements(),
        "startupProbe": _probe(30),
        "livenessProbe": _probe(10),
    }
    if name == "ray-head":
        here["readinessProbe"] = _probe(3)
    return pod_template(workload, here)


def _probe(failures: int) -> dict[str, Any]:
    """Whether Ray is well on a machine, asked every 10 s."""
    asked = {"path": "/api/local_raylet_healthz", "port": _AGENT}
    return {"httpGet": asked, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": failures}
