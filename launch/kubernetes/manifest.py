"""The manifests of a job: which kind of object carries it out, and its YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from data_pipeline import WrongCall
from launch.job import Job
from launch.kubernetes.batch import batch_job
from launch.kubernetes.options import Options
from launch.kubernetes.pytorchjob import pytorchjob
from launch.kubernetes.rayjob import rayjob
from launch.kubernetes.trainjob import trainjob
from launch.kubernetes.workload import workload_of
from trainer import Config

_KINDS = {"job": batch_job, "pytorchjob": pytorchjob, "trainjob": trainjob}


def manifest(job: Job, options: Options, config: Config) -> list[dict[str, Any]]:
    """The objects of a job, in the order in which they are made; the last is the one that runs it.

    config is what the job's verb would train. Raises WrongCall for what cannot run on a cluster.
    """
    if job.elastic:
        raise WrongCall("--elastic cannot be on Kubernetes, where a machine that is lost is replaced; write --nodes")
    workload = workload_of(job, options, config)
    if job.verb[0] == "tune":
        if options.kind != "auto":
            raise WrongCall(f"--kind {options.kind} carries out no tune, which is a RayJob; leave --kind out")
        return rayjob(workload)
    if options.kind == "job" and job.nodes > 1:
        raise WrongCall(f"--kind job runs on one machine, and --nodes is {job.nodes}; write --kind trainjob")
    alone = "job" if job.nodes == 1 else "trainjob"
    return _KINDS[alone if options.kind == "auto" else options.kind](workload)


def as_yaml(documents: Sequence[Mapping[str, Any]]) -> str:
    """The objects as kubectl reads them, each a YAML document."""
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=1000, allow_unicode=True)


class _Plain(yaml.SafeDumper):
    """Writes what stands in two places twice, rather than once with a reference to it."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True
