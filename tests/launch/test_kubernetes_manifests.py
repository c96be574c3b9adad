"""Manifests as a cluster takes them: every kind, under every combination of what it can be asked for."""

import re
from copy import deepcopy
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch.job import Job
from launch.kubernetes import Options, as_yaml, manifest
from launch.kubernetes.environment import HOME, unexpanded
from launch.kubernetes.pod import USER
from launch.kubernetes.quantities import GIB, MIB, bytes_of
from launch.train_verbs import parsed_config
from tests.launch.kubernetes_schemas import pod_problems, pods, problems
from trainer import Config, load_config

IMAGE = "registry.example:5000/team/sonotrain:0.1.0"
ON_S3 = ("data.uri=s3://scans/bus-bra", "checkpoints.mirror=s3://runs/paper")
ON_CLAIM = ("data.uri=datasets/bus-bra", "output=/workspace/runs/paper")
IN_STORAGE = ("data.uri=s3://scans/bus-bra", "tune.storage=s3://runs/tune", "tune.processes=2")
ALONE = Options(IMAGE, tracking_uri="https://mlflow.example")
EVERYTHING = Options(
    IMAGE,
    name="a-run",
    namespace="research",
    gpus=2,
    cpu="16",
    memory="32Gi",
    shm="8Gi",
    claim="runs",
    s3_secret="s3",
    mlflow_secret="mlflow",
    tracking_uri="https://mlflow.example",
    service_account="trainer",
)


def built(
    kind: str = "auto",
    nodes: int = 1,
    options: Options = ALONE,
    config: str = "paper",
    changes: tuple[str, ...] = ON_S3,
    **settings: Any,
) -> list[dict[str, Any]]:
    """A job's objects, as a cluster reads them from YAML; of kind rayjob those of a sweep."""
    verb = ("train", config, *changes)
    if kind == "rayjob":
        kind, verb = "auto", ("tune", config, *(IN_STORAGE if changes == ON_S3 else changes))
    settings = {"nodes": nodes, "processes": 2, **settings}
    asked = Options(**{name: getattr(options, name) for name in Options.__slots__} | {"kind": kind})
    text = as_yaml(manifest(Job(verb, **settings), asked, parsed_config(verb)))
    assert "&id" not in text
    return list(yaml.safe_load_all(text))


KINDS = {"job": (1,), "trainjob": (1, 3), "pytorchjob": (1, 3), "rayjob": (1, 3)}


@pytest.mark.parametrize(("kind", "nodes"), [(kind, nodes) for kind, many in KINDS.items() for nodes in many])
def test_every_manifest_is_valid_whatever_is_asked_for(kind: str, nodes: int, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("training: {epochs: 3}\n")
    for everything, claimed, own, limited, restarts in product((False, True), repeat=5):
        options = EVERYTHING if everything else ALONE
        options = Options(
            **{name: getattr(options, name) for name in Options.__slots__} | {"claim": "runs" if claimed else ""}
        )
        documents = built(
            kind,
            nodes,
            options,
            str(file) if own else "paper",
            ON_CLAIM if claimed else ON_S3,
            time_limit=timedelta(hours=8) if limited else None,
            restarts=3 if restarts else 0,
            environment={"AWS_ENDPOINT_URL_S3": "https://s3.example", "COST": "$(HOME) $$5"} if own else {},
        )
        assert [problem for document in documents for problem in problems(document)] == []
        assert [document["kind"].lower() for document in documents][-1] == kind
        if kind == "trainjob":
            assert pod_problems(whole_pod(documents)) == []


def whole_pod(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The pod of a job, of a TrainJob as Trainer puts it together from the runtime's and what the job says."""
    (pod, *_) = (deepcopy(dict(pod)) for document in documents for pod in pods(document))
    if documents[-1]["kind"] == "TrainJob":
        trainer = documents[-1]["spec"]["trainer"]
        own = {name: trainer[name] for name in ("image", "command", "args", "env")}
        pod["spec"]["containers"][0] |= own | {"resources": trainer["resourcesPerNode"]}
    return pod


@pytest.mark.parametrize("kind", KINDS)
def test_the_checker_refuses_a_field_that_is_unknown_anywhere(kind: str) -> None:
    documents = built(kind)
    places = list(_maps(documents[-1]))
    if kind == "trainjob":
        places += _maps(documents[0])
    checked = 0
    for place in places:
        if set(place) & {"name", "image", "spec", "replicas", "securityContext", "medium", "sizeLimit", "runAsUser"}:
            place["unheardOf"] = True
            assert [problem for document in documents for problem in problems(document) if "unheardOf" in problem]
            del place["unheardOf"]
            checked += 1
    assert checked > 10


def _maps(tree: Any) -> list[dict[str, Any]]:
    branches = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return ([tree] if isinstance(tree, dict) else []) + [found for branch in branches for found in _maps(branch)]


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("job", "spec.backoffLimit", "three"),
        ("job", "spec.template.spec.terminationGracePeriodSeconds", "long"),
        ("trainjob", "spec.trainer.numNodes", "3"),
        ("trainjob", "spec.trainer.args", "train"),
        ("pytorchjob", "spec.runPolicy.backoffLimit", True),
        ("pytorchjob", "spec.pytorchReplicaSpecs.Master.replicas", "1"),
        ("rayjob", "spec.backoffLimit", "3"),
    ],
)
def test_the_checker_refuses_a_value_of_another_type(kind: str, path: str, value: object) -> None:
    document = built(kind)[-1]
    *branches, leaf = path.split(".")
    place = document
    for branch in branches:
        place = place[branch]
    assert problems(document) == []
    place[leaf] = value
    assert problems(document) != []


def test_the_checker_agrees_with_kubernetes_validate() -> None:
    document = built("job")[-1]
    assert kubernetes_validate.validate(document, "1.31", strict=True) == "1.31"
    document["spec"]["template"]["spec"]["containers"][0]["unheardOf"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="unheardOf"):
        kubernetes_validate.validate(document, "1.31", strict=True)
    assert len(problems(document)) >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_is_as_the_restricted_security_standard_has_it(kind: str) -> None:
    pod = whole_pod(built(kind, options=EVERYTHING, changes=ON_CLAIM))["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == USER
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} <= {
        "emptyDir",
        "persistentVolumeClaim",
        "configMap",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_written_to_has_a_volume(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("seed: 1\n")
    documents = built(kind, config=str(file))
    pod = whole_pod(documents)["spec"]
    (container,) = pod["containers"]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounted) == {"/workspace", HOME, "/tmp", "/dev/shm", "/etc/sonotrain"}
    assert set(mounted.values()) == {volume["name"] for volume in pod["volumes"]}
    assert container["workingDir"] == "/workspace"
    assert {"name": "HOME", "value": HOME} in container["env"]
    assert documents[0]["data"] == {"config.yaml": "seed: 1\n"}
    told = documents[-1]["spec"].get("entrypoint", "").split() or container["args"]
    assert "/etc/sonotrain/config.yaml" in told
    assert str(file) not in told


@pytest.mark.parametrize("kind", KINDS)
def test_shared_memory_is_sized_and_counted(kind: str) -> None:
    options = Options(IMAGE, tracking_uri="http://mlflow:5000", gpus=4, cpu="8", memory="20Gi", shm="6Gi")
    pod = whole_pod(built(kind, options=options))["spec"]
    (shared,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
    assert shared == {"medium": "Memory", "sizeLimit": "6Gi"}
    limits, requests = (pod["containers"][0]["resources"][name] for name in ("limits", "requests"))
    assert limits == {"cpu": "8", "memory": "26Gi", "nvidia.com/gpu": "4"}
    assert {name: requests[name] for name in limits} == limits
    assert bytes_of("", requests["ephemeral-storage"]) == 30 * GIB  # 20 of cached shards, 10 for the rest


def test_what_is_not_told_follows_from_the_configuration() -> None:
    changes = (*ON_S3, "data.resident_gb=0.5", "data.readers=2", "data.cache_gb=0")
    pod = whole_pod(built("job", changes=changes))["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "6", "memory": "17920Mi"}  # 2 x 8 + 1.5 Gi
    assert pod["containers"][0]["resources"]["requests"]["ephemeral-storage"] == "10Gi"


@pytest.mark.parametrize("kind", KINDS)
def test_credentials_come_from_secrets(kind: str) -> None:
    container = whole_pod(built(kind, options=EVERYTHING, changes=ON_CLAIM))["spec"]["containers"][0]
    references = {
        variable["name"]: variable["valueFrom"]["secretKeyRef"]
        for variable in container["env"]
        if "valueFrom" in variable
    }
    assert references["AWS_SECRET_ACCESS_KEY"] == {"name": "s3", "key": "AWS_SECRET_ACCESS_KEY"}
    assert references["AWS_SESSION_TOKEN"]["optional"] is True
    assert {reference["name"] for reference in references.values()} == {"s3", "mlflow"}
    assert all(name == reference["key"] for name, reference in references.items())
    names = [variable["name"] for variable in container["env"]]
    assert len(names) == len(set(names))


def test_one_machine_is_a_job_that_counts_failures_as_they_are_meant() -> None:
    (job,) = built(nodes=1, restarts=2, time_limit=timedelta(hours=1, seconds=30))
    spec = job["spec"]
    assert (job["kind"], spec["backoffLimit"], spec["activeDeadlineSeconds"]) == ("Job", 2, 3630)
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > 600
    decided = [
        (rule["action"], rule.get("onExitCodes", {}).get("values"), rule.get("onPodConditions"))
        for rule in spec["podFailurePolicy"]["rules"]
    ]
    assert decided == [
        ("FailJob", [2], None),
        ("Ignore", [75], None),
        ("Ignore", None, [{"type": "DisruptionTarget", "status": "True"}]),
    ]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["sonotrain"]
    assert container["args"][:7] == ["launch", "local", "--restarts", "0", "--procs", "2", "--"]
    assert container["args"][7:] == ["train", "paper", *ON_S3]
    assert all(
        rule.get("onExitCodes", container)["containerName" if "onExitCodes" in rule else "name"] == "sonotrain"
        for rule in spec["podFailurePolicy"]["rules"]
    )


def test_more_machines_are_a_trainjob_whose_pods_start_again_together() -> None:
    runtime, job = built(nodes=3, restarts=2)
    assert (job["kind"], job["spec"]["runtimeRef"]["kind"]) == ("TrainJob", runtime["kind"])
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert job["spec"]["trainer"]["numNodes"] == 3
    assert job["spec"]["trainer"]["args"][:7] == ["launch", "node", "--by", "trainer", "--procs", "2", "--"]
    jobs = runtime["spec"]["template"]["spec"]
    (node,) = jobs["replicatedJobs"]
    # By these Trainer's torch policy finds the pods that it tells their place.
    assert node["name"] == node["template"]["spec"]["template"]["spec"]["containers"][0]["name"] == "node"
    assert node["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert runtime["spec"]["mlPolicy"] == {"numNodes": 3, "torch": {}}
    assert node["template"]["spec"]["backoffLimit"] == 0
    assert jobs["failurePolicy"]["maxRestarts"] == 2


@pytest.mark.parametrize(
    ("reason", "message", "action"),
    [
        (
            "PodFailurePolicy",
            "Container node for pod research/a-node-0-1-x4x failed with exit code 75 matching FailJob rule at index 1",
            "RestartJobSetAndIgnoreMaxRestarts",
        ),
        (
            "PodFailurePolicy",
            "Pod research/a-node-0-1-x4x has condition DisruptionTarget matching FailJob rule at index 2",
            "RestartJobSetAndIgnoreMaxRestarts",
        ),
        (
            "PodFailurePolicy",
            "Container node for pod research/a-node-0-1-x4x failed with exit code 2 matching FailJob rule at index 0",
            "FailJobSet",
        ),
        ("BackoffLimitExceeded", "Job has reached the specified backoff limit", "RestartJobSet"),
    ],
)
def test_a_trainjob_decides_by_what_ended_a_pod(reason: str, message: str, action: str) -> None:
    """As JobSet decides: by the first rule that has the reason and, where it names any, a pattern of the message."""
    runtime, _ = built(nodes=3)
    for rule in runtime["spec"]["template"]["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            assert rule["action"] == action
            return
    assert action == "RestartJobSet"  # what JobSet does, and counts, where no rule says otherwise


@pytest.mark.parametrize(("restarts", "nodes", "limit"), [(0, 3, None), (1, 1, 2), (3, 4, 13)])
def test_a_pytorchjob_may_restart_so_many_containers(restarts: int, nodes: int, limit: int | None) -> None:
    (job,) = built("pytorchjob", nodes=nodes, restarts=restarts)
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert sum(each["replicas"] for each in replicas.values()) == nodes
    assert {each["restartPolicy"] for each in replicas.values()} == {"OnFailure" if restarts else "Never"}
    assert job["spec"]["runPolicy"].get("backoffLimit") == limit
    assert "nprocPerNode" not in job["spec"]  # so that RANK and WORLD_SIZE count pods
    (container,) = replicas["Master"]["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"
    assert container["args"][:5] == ["launch", "node", "--by", "kubeflow", "--procs"]


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_sweep_is_a_rayjob_on_all_machines(nodes: int) -> None:
    (job,) = built("rayjob", nodes=nodes, restarts=1, time_limit=timedelta(hours=2))
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec["entrypoint"] == f"cd /workspace && exec sonotrain tune paper {' '.join(IN_STORAGE)}"
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"], spec["shutdownAfterJobFinishes"]) == (1, 7200, True)
    assert cluster["authOptions"] == {"mode": "token"}
    groups = cluster.get("workerGroupSpecs", [])
    assert sum(group["replicas"] for group in groups) == nodes - 1
    for pod in pods(job):
        (container,) = pod["spec"]["containers"]
        assert container["livenessProbe"]["httpGet"] == {"path": "/api/local_raylet_healthz", "port": 52365}
        # The operator's own RAY_ADDRESS is set only where a container has none.
        assert "RAY_ADDRESS" not in {variable["name"] for variable in container["env"]}


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_pod_of_a_sweep_has_room_for_its_trials_and_for_ray(nodes: int) -> None:
    changes = (*IN_STORAGE, "tune.cpus=4", "data.resident_gb=1", "data.cache_gb=0")
    (job,) = built("rayjob", nodes, changes=changes, processes=6)
    cluster = job["spec"]["rayClusterSpec"]
    # 6 processes, that is 3 trials, of 4 cores, and one core of Ray's own; 6 x 8 + 2 GiB beside what is shared.
    for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])):
        assert group["rayStartParams"]["num-cpus"] == "24"
        assert group["rayStartParams"]["object-store-memory"] == str(256 * MIB)
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["limits"] == {"cpu": "25", "memory": f"{(50 + 2) * 1024 + 256}Mi"}


def test_ray_gets_no_core_that_a_pod_has_only_in_part() -> None:
    options = Options(IMAGE, tracking_uri="https://mlflow.example", cpu="4500m", gpus=2)
    (job,) = built("rayjob", options=options)
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "3"
    assert head["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_all_objects_of_a_job_are_found_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("seed: 1\n")
    documents = built("trainjob", 2, EVERYTHING, str(file), ON_CLAIM)
    assert [document["kind"] for document in documents] == ["ConfigMap", "TrainingRuntime", "TrainJob"]
    for part in (*documents, *(pod for document in documents for pod in pods(document))):
        assert part["metadata"]["labels"]["app.kubernetes.io/instance"] == "a-run"
    assert {document["metadata"]["namespace"] for document in documents} == {"research"}


def expanded(text: str) -> str:
    """As Kubernetes does it: $(NAME) becomes a value, if there is one, and $$ a single $."""
    made, place = "", 0
    while place < len(text):
        if text[place] != "$" or place + 1 == len(text):
            made, place = made + text[place], place + 1
        elif text[place + 1] == "$":
            made, place = made + "$", place + 2
        elif text[place + 1] == "(" and ")" in text[place:]:
            made, place = made + "EXPANDED", text.index(")", place) + 1
        else:
            made, place = made + text[place : place + 2], place + 2
    return made


@given(st.text("$()ab", max_size=12))
def test_nothing_is_expanded_by_the_cluster(text: str) -> None:
    assert expanded(unexpanded(text)) == text


def test_a_dollar_reaches_the_program_and_its_variables() -> None:
    changes = (*ON_S3, "output=runs/$(HOME)")
    (job,) = built("job", changes=changes, environment={"COST": "$$5"})
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert expanded(container["args"][-1]) == "output=runs/$(HOME)"
    assert {"name": "COST", "value": "$$$$5"} in container["env"]


def test_a_configuration_stays_what_it_is() -> None:
    config = load_config("paper", ON_S3)
    before = config.flat()
    manifest(Job(("train", "paper", *ON_S3)), ALONE, config)
    assert isinstance(config, Config)
    assert config.flat() == before
