"""How a job's objects are made in a cluster. In kubectl's place is a program that keeps what it is given."""

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data_pipeline import Fault, WrongCall
from launch.job import Job
from launch.kubernetes import Options, plan, run
from tests.launch.command import Command

TRAIN = Job(("train", "paper", "data.uri=s3://scans/bus-bra", "checkpoints.mirror=s3://runs/paper"), nodes=2)
OPTIONS = Options("sonotrain:0.1.0", name="a-run", namespace="research", tracking_uri="http://mlflow:5000")

Kubectl = Callable[[str], None]


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubectl:
    """Put a kubectl on the PATH that keeps its calls in tmp_path, as N.call and N.yaml, and then does as it is told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KEPT", str(tmp_path))

    def install(then: str) -> None:
        program = folder / "kubectl"
        program.write_text(
            f'#!/bin/sh\nn=$(ls "$KEPT" | grep -c call)\necho "$@" > "$KEPT/$n.call"\ncat > "$KEPT/$n.yaml"\n{then}\n'
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    install("exit 0")
    return install


def calls(folder: Path) -> list[tuple[str, list[str]]]:
    """Each call of kubectl, in order: its arguments, and the kinds of the objects that it was given."""
    return [
        (
            call.read_text().strip(),
            [document["kind"] for document in yaml.safe_load_all(call.with_suffix(".yaml").open())],
        )
        for call in sorted(folder.glob("*.call"))
    ]


def test_the_output_of_a_sweep_is_read_where_it_is_written(
    kubectl: Kubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = ("tune", "paper", "data.uri=s3://scans/bus-bra", "tune.storage=s3://runs/tune")
    assert run(Job(verb), OPTIONS, ("--context", "lab")) == 0
    said = capsys.readouterr().out
    assert "kubectl get rayjob,pods --selector app.kubernetes.io/instance=a-run --namespace=research" in said
    assert "kubectl exec --namespace=research --context lab $(kubectl get pods --output=name" in said
    assert "instance=a-run,ray.io/node-type=head" in said
    assert "kubectl delete rayjob,configmap" in said


def test_a_plan_is_the_manifest_and_the_command_that_takes_it() -> None:
    preview = plan(TRAIN, OPTIONS, ("--context", "lab"))
    assert preview.commands == [["kubectl", "create", "--filename=-", "--namespace=research", "--context", "lab"]]
    assert [document["kind"] for document in yaml.safe_load_all(preview.manifest)] == ["TrainingRuntime", "TrainJob"]
    assert "MLFLOW_TRACKING_URI=http://mlflow:5000" in preview.environment


def test_the_objects_of_a_job_are_made_in_order(
    kubectl: Kubectl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(TRAIN, OPTIONS, ("--context", "lab")) == 0
    create = "create --filename=- --namespace=research --context lab"
    assert calls(tmp_path) == [(create, ["TrainingRuntime"]), (create, ["TrainJob"])]
    said = capsys.readouterr().out
    for hint in ("get trainjob,pods", "logs --follow", "delete trainjob,trainingruntime,configmap"):
        assert f"kubectl {hint}" in said
    assert said.count("--selector app.kubernetes.io/instance=a-run") == 3
    assert said.count("--namespace=research --context lab") == 3


def test_a_name_that_is_taken_is_a_wrong_call_and_nothing_is_changed(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl("echo 'Error from server (AlreadyExists): trainingruntimes \"a-run\" already exists' >&2; exit 1")
    with pytest.raises(WrongCall, match="has a TrainingRuntime a-run already; choose another --name") as wrong:
        run(TRAIN, OPTIONS, ())
    assert "kubectl delete trainjob,trainingruntime,configmap" in str(wrong.value)
    assert len(calls(tmp_path)) == 1


def test_a_job_that_is_refused_leaves_nothing_behind(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl('grep -q "kind: TrainJob" "$KEPT/$n.yaml" && { echo "error: exceeded\n quota" >&2; exit 1; }; exit 0')
    with pytest.raises(Fault, match="did not take the TrainJob a-run: error: exceeded quota"):
        run(TRAIN, OPTIONS, ())
    assert [(call.split()[0], kinds) for call, kinds in calls(tmp_path)] == [
        ("create", ["TrainingRuntime"]),
        ("create", ["TrainJob"]),
        ("delete", ["TrainingRuntime"]),
    ]


def test_a_trainjob_is_sent_again_until_its_runtime_is_known(kubectl: Kubectl, tmp_path: Path) -> None:
    unknown = "spec.runtimeRef: not found: specified trainingRuntime must be created before the TrainJob is created"
    kubectl(f'[ "$n" -lt 1 ] || [ "$n" -gt 2 ] || {{ echo "{unknown}" >&2; exit 1; }}')
    assert run(TRAIN, OPTIONS, (), pause=0) == 0
    assert [kinds for _, kinds in calls(tmp_path)] == [["TrainingRuntime"], ["TrainJob"], ["TrainJob"], ["TrainJob"]]


def test_a_cluster_that_does_not_answer_is_given_up(
    kubectl: Kubectl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.kubernetes.kubectl.PATIENCE", 0.5)
    kubectl("exec sleep 30")
    with pytest.raises(Fault, match=r"kubectl did not answer within 0\.5 s"):
        run(TRAIN, OPTIONS, ())


def test_without_kubectl_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("kubectl") is None
    with pytest.raises(WrongCall, match="kubectl is not installed here"):
        run(TRAIN, OPTIONS, ())


def test_what_is_wrong_is_said_before_kubectl_is_called(kubectl: Kubectl, tmp_path: Path) -> None:
    with pytest.raises(WrongCall, match=r"data\.uri is not set"):
        run(Job(("train", "paper")), OPTIONS, ())
    assert calls(tmp_path) == []


def test_the_command_shows_a_manifest_and_starts_nothing(
    sonotrain: Command, dataset: Path, kubectl: Kubectl, tmp_path: Path
) -> None:
    where = ("--image", "sonotrain:0.1.0", "--claim", "runs", "--context", "lab", "--nodes", 2)
    verb = ("train", "quick", f"data.uri={dataset.name}")
    outcome = sonotrain("launch", "kubernetes", *where, "--dry-run", "--json", "plan.json", "--", *verb)
    assert outcome.status == 0, outcome.errors
    told = yaml.safe_load((tmp_path / "plan.json").read_text())
    assert told["commands"] == [["kubectl", "create", "--filename=-", "--context", "lab"]]
    assert told["manifest"].strip() in outcome.output
    assert [document["kind"] for document in yaml.safe_load_all(told["manifest"])] == ["TrainingRuntime", "TrainJob"]
    assert calls(tmp_path) == []


def test_the_command_makes_a_job(sonotrain: Command, kubectl: Kubectl, tmp_path: Path) -> None:
    where = ("--image", "sonotrain:0.1.0", "--tracking-uri", "http://mlflow:5000")
    outcome = sonotrain("launch", "kubernetes", *where, "--", *TRAIN.verb)
    assert outcome.status == 0, outcome.errors
    assert [kinds for _, kinds in calls(tmp_path)] == [["Job"]]
    assert "kubectl logs --follow" in outcome.output


def test_a_wrong_image_is_one_line(sonotrain: Command, kubectl: Kubectl, tmp_path: Path) -> None:
    outcome = sonotrain("launch", "kubernetes", "--image", "Sonotrain:1", "--", *TRAIN.verb)
    assert outcome.status == 2
    assert "--image 'Sonotrain:1' is no name of an image" in outcome.error
    assert calls(tmp_path) == []


def test_what_pods_run_is_understood(sonotrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def arguments(kind: str) -> list[str]:
        """Of the container, as the program in it gets them."""
        job = Job(("train", "quick", "data.uri=nothing"))
        documents = yaml.safe_load_all(plan(job, replace(OPTIONS, claim="runs", kind=kind), ()).manifest)
        job = list(documents)[-1]["spec"]
        return (job.get("trainer") or job["template"]["spec"]["containers"][0])["args"]

    monkeypatch.delenv("PET_NODE_RANK", raising=False)
    launch, local, *rest = arguments("job")
    assert "nothing holds no dataset" in sonotrain(launch, local, "--dry-run", *rest).error
    assert "PET_NODE_RANK is not set" in sonotrain(*arguments("trainjob")).error
