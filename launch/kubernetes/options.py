"""What `sonotrain launch kubernetes` takes beside what every launch takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from data_pipeline import WrongCall
from launch.kubernetes.names import require_image, require_job_name, require_label, require_object_name
from launch.kubernetes.quantities import bytes_of, cores_of

KINDS = ("auto", "trainjob", "pytorchjob", "job")
"""Kubeflow Trainer's TrainJob, the Training Operator's PyTorchJob, or Kubernetes' own Job, for one machine only."""

_SERVER = re.compile(r"https?://[^\s/]+\S*|databricks(?:://\S+)?")


@dataclass(frozen=True, slots=True)
class Options:
    """Where a job's pods come from, what each asks of its machine, and what they find in the cluster.

    Quantities are Kubernetes' own (16Gi, 1500m). Empty is what a field's text says. Raises WrongCall for the first
    that cannot be.
    """

    image: str
    """The image, as launch/Containerfile builds it."""
    kind: str = "auto"
    """One of KINDS; auto is a Job for one machine and a TrainJob for more."""
    name: str = ""
    """Of the job, new in its namespace; if empty, sonotrain-VERB."""
    namespace: str = ""
    """If empty, the one that kubectl uses."""
    gpus: int = 0
    """NVIDIA GPUs of a pod, one for each of its processes at least; 0 for cores alone."""
    cpu: str = ""
    """Cores of a pod; if empty, enough for each process and its readers."""
    memory: str = ""
    """Memory of a pod without what is shared; if empty, 8Gi for each process."""
    shm: str = ""
    """Shared memory of a pod; if empty, what data.resident_gb says and 1Gi for the processes' exchange."""
    claim: str = ""
    """A PersistentVolumeClaim for the working directory; if empty, a pod's own disk, which is lost with it."""
    s3_secret: str = ""
    """A Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if need be, AWS_SESSION_TOKEN."""
    mlflow_secret: str = ""
    """A Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."""
    tracking_uri: str = ""
    """The MLflow server."""
    service_account: str = ""
    """The pods' ServiceAccount, where the cloud gives it a role that may read the store; if empty, default."""

    def __post_init__(self) -> None:
        require_image(self.image)
        if self.kind not in KINDS:
            raise WrongCall(f"--kind {self.kind} is none of {', '.join(KINDS)}")
        if self.name:
            require_job_name(self.name)
        if self.namespace:
            require_label("--namespace", self.namespace)
        for option, name in (
            ("--claim", self.claim),
            ("--s3-secret", self.s3_secret),
            ("--mlflow-secret", self.mlflow_secret),
            ("--service-account", self.service_account),
        ):
            if name:
                require_object_name(option, name)
        if self.gpus < 0:
            raise WrongCall(f"--gpus {self.gpus} cannot be; it is at least 0")
        if self.cpu:
            cores_of("--cpu", self.cpu)
        for option, quantity in (("--memory", self.memory), ("--shm", self.shm)):
            if quantity:
                bytes_of(option, quantity)
        if self.tracking_uri and not _SERVER.fullmatch(self.tracking_uri):
            raise WrongCall("--tracking-uri is no address of an MLflow server; write http://HOST:PORT")
