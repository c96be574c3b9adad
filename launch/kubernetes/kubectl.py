"""Making a job in a cluster with kubectl, whose own configuration says which cluster that is."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline import Fault, WrongCall
from launch.job import Job
from launch.kubernetes.environment import shown
from launch.kubernetes.manifest import as_yaml, manifest
from launch.kubernetes.options import Options
from launch.kubernetes.workload import workload_of
from launch.preview import Preview
from launch.terminal import say
from launch.train_verbs import parsed_config

PATIENCE = 60.0
"""Seconds within which kubectl has to answer."""

ATTEMPTS = 5
"""How often a TrainJob is sent whose runtime, made a moment before, the cluster does not know yet."""

PAUSE = 2.0
"""Seconds between them."""

_HEAD = "ray.io/node-type=head"
_DRIVER_LOGS = "/tmp/ray/session_latest/logs/job-driver-*.log"  # noqa: S108 - where Ray's job server writes in a pod


def plan(job: Job, options: Options, passed_on: Sequence[str]) -> Preview:
    """What `run` would send, and how. Raises what it would raise before it starts anything."""
    config = parsed_config(job.verb)
    return Preview(
        commands=[_command("create", options, passed_on)],
        manifest=as_yaml(manifest(job, options, config)),
        environment=shown(workload_of(job, options, config).environment),
    )


def run(job: Job, options: Options, passed_on: Sequence[str], pause: float = PAUSE) -> int:
    """Make a job's objects in the cluster, and say how to follow them; gives 0. The cluster carries the job out.

    passed_on are options that all of kubectl's commands take, such as --context. Raises WrongCall for what cannot run,
    for a missing kubectl, and for a job whose name is taken; Fault where the cluster refuses an object or does not
    answer. What was made until then is deleted again.
    """
    documents = manifest(job, options, parsed_config(job.verb))
    if shutil.which("kubectl") is None:
        raise WrongCall("kubectl is not installed here; install it, or see with --dry-run what it would be given")
    made: list[Mapping[str, Any]] = []
    try:
        for document in documents:
            _create(document, options, passed_on, pause)
            made.append(document)
    except Fault:
        if made:
            _kubectl("delete", made, options, passed_on)
        raise
    for line in _follow(documents, options, passed_on):
        say(line)
    return 0


def _create(document: Mapping[str, Any], options: Options, passed_on: Sequence[str], pause: float) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        wrong = _kubectl("create", [document], options, passed_on)
        if "must be created before the TrainJob" not in wrong or attempt == ATTEMPTS:
            break
        time.sleep(pause)
    kind, name = document["kind"], document["metadata"]["name"]
    if "(AlreadyExists)" in wrong:
        raise WrongCall(
            f"the cluster has a {kind} {name} already; choose another --name, or delete what has this one: "
            f"{_delete(kind, name, options, passed_on)}"
        )
    if wrong:
        raise Fault(f"the cluster did not take the {kind} {name}: {wrong}")


def _kubectl(verb: str, documents: Sequence[Mapping[str, Any]], options: Options, passed_on: Sequence[str]) -> str:
    """Give documents to a command of kubectl's; what it says is wrong, in one line, or nothing."""
    try:
        done = subprocess.run(
            _command(verb, options, passed_on),
            input=as_yaml(documents),
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return f"kubectl did not answer within {PATIENCE:g} s"
    except OSError as failed:
        return f"kubectl could not be run: {failed.strerror}"
    if done.returncode == 0:
        return ""
    return " ".join(done.stderr.split()) or f"kubectl exited with status {done.returncode}"


def _command(verb: str, options: Options, passed_on: Sequence[str]) -> list[str]:
    return ["kubectl", verb, "--filename=-", *_where(options, passed_on)]


def _where(options: Options, passed_on: Sequence[str]) -> list[str]:
    return [*([f"--namespace={options.namespace}"] if options.namespace else []), *passed_on]


def _follow(documents: Sequence[Mapping[str, Any]], options: Options, passed_on: Sequence[str]) -> list[str]:
    """How to see what becomes of a job, for a person to copy."""
    kind, name = documents[-1]["kind"], documents[-1]["metadata"]["name"]
    where = _where(options, passed_on)
    return [
        f"The cluster has the {kind} {name} and carries it out",
        f"  how it stands: {shlex.join(('kubectl', 'get', f'{kind.lower()},pods', *_all_of(name), *where))}",
        f"  its output:    {_output(kind, name, where)}",
        f"  to end it:     {_delete(kind, name, options, passed_on)}",
    ]


def _output(kind: str, name: str, where: Sequence[str]) -> str:
    """The command that shows what a job writes: its pods' logs, but for a RayJob a file on the first machine."""
    if kind != "RayJob":
        logs = ("kubectl", "logs", "--follow", "--prefix", "--tail=-1", "--max-log-requests=100")
        return shlex.join((*logs, *_all_of(name), *where))
    _, label = _all_of(name)
    head = shlex.join(("kubectl", "get", "pods", "--output=name", "--selector", f"{label},{_HEAD}", *where))
    tail = shlex.join(("sh", "-c", f"tail -n +1 -F {_DRIVER_LOGS}"))
    return f"{shlex.join(('kubectl', 'exec', *where))} $({head}) -- {tail}"


def _delete(kind: str, name: str, options: Options, passed_on: Sequence[str]) -> str:
    kinds = "trainjob,trainingruntime" if kind in ("TrainJob", "TrainingRuntime") else kind.lower()
    kinds = kinds if kind == "ConfigMap" else f"{kinds},configmap"
    return shlex.join(("kubectl", "delete", kinds, *_all_of(name), *_where(options, passed_on)))


def _all_of(name: str) -> tuple[str, ...]:
    """Objects and pods of a job carry its name as this label."""
    return ("--selector", f"app.kubernetes.io/instance={name}")
