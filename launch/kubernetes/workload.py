"""A job as its pods need it: everything checked and worked out, whichever kind of object carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from launch.job import Job
from launch.kubernetes.carried import Carried, carried
from launch.kubernetes.environment import environment_of, tracking_uri_of
from launch.kubernetes.keeping import require_kept, workdir_of
from launch.kubernetes.names import require_job_name
from launch.kubernetes.options import Options
from launch.kubernetes.resources import Resources, resources_of, resources_of_sweep
from launch.train_verbs import parsed_tuning
from trainer import Config

KEPT_FOR = timedelta(days=7)
"""How long a finished job stays to be looked at, with its pods' logs, before the cluster deletes it."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a manifest is made of."""

    name: str
    namespace: str
    image: str
    verb: tuple[str, ...]
    """train, crossval or tune, and its arguments, as they are in a pod."""
    file: Carried | None
    """The configuration's file, where it is no preset."""
    nodes: int
    processes: int
    """In each pod."""
    restarts: int
    time_limit: timedelta | None
    workdir: Path
    claim: str
    service_account: str
    environment: Sequence[Mapping[str, Any]]
    resources: Resources

    def metadata(self) -> dict[str, Any]:
        """Of each object of the job, which can be found together by their label app.kubernetes.io/instance."""
        where = {"namespace": self.namespace} if self.namespace else {}
        return {"name": self.name, **where, "labels": self.labels()}

    def labels(self) -> dict[str, str]:
        """Of each object and pod."""
        return {
            "app.kubernetes.io/name": "sonotrain",
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/component": self.verb[0],
        }


def workload_of(job: Job, options: Options, config: Config) -> Workload:
    """What a job with these options needs. Raises WrongCall for what cannot run, or would lose what it has learnt."""
    name = options.name or f"sonotrain-{job.verb[0]}"
    require_job_name(name)
    tune = parsed_tuning(job.verb).tune if job.verb[0] == "tune" else None
    require_kept(job, options, config, tune, tracking_uri_of(job.environment, options))
    verb, file = carried(job.verb)
    return Workload(
        name=name,
        namespace=options.namespace,
        image=options.image,
        verb=verb,
        file=file,
        nodes=job.nodes,
        processes=job.processes,
        restarts=job.restarts,
        time_limit=job.time_limit,
        workdir=workdir_of(job),
        claim=options.claim,
        service_account=options.service_account,
        environment=environment_of(job.environment, options),
        resources=resources_of_sweep(job, options, config, tune) if tune else resources_of(job, options, config),
    )
