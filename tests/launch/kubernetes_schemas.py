"""Published schemas of what a manifest may say: a field that they do not have is wrong, and so is a value's type.

Core kinds are held against Kubernetes' own schemas in their strict form, Kubeflow's against the models that Kubeflow
publishes, and KubeRay's, which publishes none for Python, against the fields of its API (ray.io/v1) as listed here.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jsonschema
import kubeflow.training.models as operator_models
import kubeflow_trainer_api.models as trainer_models
import kubernetes.client.models as core_models
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

RELEASE = "v1.31.0"
"""The oldest Kubernetes release in which a Job's pod failure policy is final."""

NEWEST = "v1.37.0"

_PODS = {"template": "pod"}
_RAY_FIELDS: dict[str, dict[str, Any]] = {
    "job": {"apiVersion": str, "kind": str, "metadata": "metadata", "spec": "spec"},
    "spec": {
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "entrypoint": str,
        "rayClusterSpec": "cluster",
        "shutdownAfterJobFinishes": bool,
        "submissionMode": str,
        "ttlSecondsAfterFinished": int,
        "clusterSelector": dict,
        "entrypointNumCpus": float,
        "entrypointNumGpus": float,
        "entrypointResources": str,
        "jobId": str,
        "managedBy": str,
        "metadata": dict,
        "runtimeEnvYAML": str,
        "submitterPodTemplate": "pod",
        "suspend": bool,
    },
    "cluster": {
        "headGroupSpec": "head",
        "rayVersion": str,
        "authOptions": dict,
        "workerGroupSpecs": ["group"],
        "enableInTreeAutoscaling": bool,
        "headServiceAnnotations": dict,
        "suspend": bool,
    },
    "head": {"rayStartParams": dict, "serviceType": str, "enableIngress": bool, **_PODS},
    "group": {
        "groupName": str,
        "replicas": int,
        "minReplicas": int,
        "maxReplicas": int,
        "numOfHosts": int,
        "rayStartParams": dict,
        **_PODS,
    },
}


def problems(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with an object, and with each pod template in it as a Pod of its own."""
    version = document["apiVersion"]
    if version == "kubeflow.org/v1":
        found = list(_of_operator(document, "KubeflowOrgV1" + document["kind"], document["kind"]))
    elif version.startswith("trainer.kubeflow.org/"):
        found = list(_of_trainer(document))
    elif version == "ray.io/v1":
        found = list(_of_ray(document, "job", "RayJob"))
    else:
        found = _of_core(document)
    if document["kind"] == "TrainingRuntime":
        for job in document["spec"]["template"]["spec"]["replicatedJobs"]:
            found += _of_core({"apiVersion": "batch/v1", "kind": "Job", **job["template"]})
    return found + [problem for pod in pods(document) for problem in pod_problems(pod)]


def pod_problems(template: Mapping[str, Any]) -> list[str]:
    """What is wrong with a pod template as a Pod."""
    return _of_core({"apiVersion": "v1", "kind": "Pod", **template})


def pods(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Each pod template in an object."""
    if isinstance(tree, Mapping):
        if isinstance(tree.get("spec"), Mapping) and "containers" in tree["spec"]:
            yield tree
        for branch in tree.values():
            yield from pods(branch)
    elif isinstance(tree, list):
        for item in tree:
            yield from pods(item)


def _of_core(document: Mapping[str, Any]) -> list[str]:
    return [
        f"{release} {document['kind']} {error.json_path}: {error.message}"
        for release in (RELEASE, NEWEST)
        for error in _core_schema(release, document["apiVersion"], document["kind"]).iter_errors(document)
    ]


@cache
def _core_schema(release: str, version: str, kind: str) -> Any:
    folder = f"kubernetes-json-schema/{release}-local-strict"
    name = f"{kind.lower()}-{version.replace('/', '-')}.json"
    schema = schema_contents(f"{folder}/{name}", release)
    definitions = Resource.from_contents(schema_contents(f"{folder}/_definitions.json", release))
    registry = definitions @ (Resource.from_contents(schema) @ Registry())
    return jsonschema.Draft202012Validator(schema, registry=registry)


def _of_operator(value: Any, kind: str, where: str) -> Iterator[str]:
    """By the generated models, which know of each field its name and its type but refuse nothing themselves."""
    lists, maps = re.fullmatch(r"list\[(.*)\]", kind), re.fullmatch(r"dict\(str, (.*)\)", kind)
    plain = {"str": str, "int": int, "bool": bool, "float": (int, float)}.get(kind)
    model = getattr(operator_models, kind, None) or getattr(core_models, kind, None)
    if lists or maps:
        if not isinstance(value, list if lists else dict):
            yield f"{where}: {value!r} is no {kind}"
            return
        for key, item in enumerate(value) if lists else value.items():
            yield from _of_operator(item, (lists or maps)[1], f"{where}.{key}")
    elif plain:
        if not isinstance(value, plain) or (isinstance(value, bool) and kind != "bool"):
            yield f"{where}: {value!r} is no {kind}"
    elif model and not isinstance(value, dict):
        yield f"{where}: {value!r} is no {kind}"
    elif model:
        types = {written: model.openapi_types[name] for name, written in model.attribute_map.items()}
        for key, item in value.items():
            if key in types:
                yield from _of_operator(item, types[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}: unknown field of {kind}"


def _of_trainer(document: Mapping[str, Any]) -> Iterator[str]:
    """By the generated models, which pass over fields that they do not know: what they give back lacks those."""
    model = getattr(trainer_models, "TrainerV1alpha1" + document["kind"])
    try:
        understood = model.from_dict(document).to_dict()
    except ValueError as invalid:
        yield f"{document['kind']}: {' '.join(str(invalid).split())}"
    else:
        yield from _lost(document, understood, document["kind"])


def _lost(given: Any, understood: Any, where: str) -> Iterator[str]:
    if isinstance(given, Mapping):
        for key, value in given.items():
            if not isinstance(understood, Mapping) or key not in understood:
                yield f"{where}.{key}: unknown field"
            else:
                yield from _lost(value, understood[key], f"{where}.{key}")
    elif isinstance(given, list):
        for place, (ours, theirs) in enumerate(zip(given, understood, strict=True)):
            yield from _lost(ours, theirs, f"{where}.{place}")


def _of_ray(value: Any, kind: str, where: str) -> Iterator[str]:
    for key, item in value.items():
        wanted = _RAY_FIELDS[kind].get(key)
        if wanted is None:
            yield f"{where}.{key}: unknown field"
        elif isinstance(wanted, list):
            for place, each in enumerate(item):
                yield from _of_ray(each, wanted[0], f"{where}.{key}.{place}")
        elif wanted == "metadata":
            yield from _of_operator(item, "V1ObjectMeta", f"{where}.{key}")
        elif wanted in _RAY_FIELDS:
            yield from _of_ray(item, wanted, f"{where}.{key}")
        elif wanted != "pod" and type(item) is not wanted:
            yield f"{where}.{key}: {item!r} is no {wanted.__name__}"
