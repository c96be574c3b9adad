"""Kubeflow Trainer's TrainJob (v2), which starts all machines of a job again where one has failed."""

from __future__ import annotations

from typing import Any

from data_pipeline import WrongCall
from launch.job import STOPPED
from launch.kubernetes.batch import failure_policy
from launch.kubernetes.pod import config_map, container, pod_template, running
from launch.kubernetes.workload import KEPT_FOR, Workload

API = "trainer.kubeflow.org/v1alpha1"

NODE = "node"
"""What the replicated job and its container must be called for Trainer's torch policy to tell pods their place."""


def trainjob(workload: Workload) -> list[dict[str, Any]]:
    """The manifests of a TrainJob and of the TrainingRuntime that it refers to, which is its own.

    A TrainJob may patch a cluster's runtime only in part: neither how failures count nor whether pods get a token of
    the cluster's. So what a pod is stands in the runtime, and what runs in it in the TrainJob.
    """
    what = running(workload, ("node", "--by", "trainer"))
    trainer = {
        "numNodes": workload.nodes,
        "numProcPerNode": workload.processes,
        "image": workload.image,
        "command": what["command"],
        "args": what["args"],
        "env": what["env"],
        "resourcesPerNode": what["resources"],
    }
    spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": API.partition("/")[0], "kind": "TrainingRuntime", "name": workload.name},
        "trainer": trainer,
    }
    if workload.time_limit:
        spec["activeDeadlineSeconds"] = int(workload.time_limit.total_seconds())
    job = {"apiVersion": API, "kind": "TrainJob", "metadata": workload.metadata(), "spec": spec}
    return [*config_map(workload), _runtime(workload), job]


def _runtime(workload: Workload) -> dict[str, Any]:
    template = pod_template(workload, container(workload, NODE))
    template["spec"]["restartPolicy"] = "Never"
    replicated = {
        "name": NODE,
        "replicas": 1,
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {
                "completionMode": "Indexed",
                # The first pod that fails ends the others: alone they would wait for it in vain.
                "backoffLimit": 0,
                "podFailurePolicy": failure_policy(NODE, "FailJob"),
                "template": template,
            },
        },
    }
    jobs = {
        "failurePolicy": _restarts(workload.restarts),
        "ttlSecondsAfterFinished": int(KEPT_FOR.total_seconds()),
        "replicatedJobs": [replicated],
    }
    return {
        "apiVersion": API,
        "kind": "TrainingRuntime",
        "metadata": workload.metadata(),
        "spec": {"mlPolicy": {"numNodes": workload.nodes, "torch": {}}, "template": {"spec": jobs}},
    }


def _restarts(most: int) -> dict[str, Any]:
    """When all pods are started again. What no rule names is counted, up to `most`.

    The Job of the pods says which rule of its pod failure policy has ended it, and by what; where its words should
    ever change, the job fails rather than start again for ever.
    """
    by_policy = {"onJobFailureReasons": ["PodFailurePolicy"]}
    asked_to = [f"exit code {STOPPED} matching", "condition DisruptionTarget matching"]
    return {
        "maxRestarts": most,
        "rules": [
            {
                "name": "stopped",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                **by_policy,
                "onJobFailureMessagePatterns": asked_to,
            },
            {"name": f"exit{WrongCall.exit_status}", "action": "FailJobSet", **by_policy},
        ],
    }
