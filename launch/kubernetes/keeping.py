"""Where a job reads and keeps things: nothing that is to stay may lie on a pod's own disk, which is lost with it."""

from __future__ import annotations

import os
from pathlib import Path

from data_pipeline import WrongCall
from launch.job import Job
from launch.kubernetes.options import Options
from trainer import Config
from tuning.settings import Tune

WORKDIR = Path("/workspace")
"""The working directory of a pod, if not told: here a claim is mounted, or a disk of the pod's own."""

_TAKEN = tuple(
    map(Path, ("/bin", "/dev", "/etc", "/home", "/lib", "/opt", "/proc", "/root", "/run", "/sbin", "/sys"))
) + tuple(map(Path, ("/tmp", "/usr", "/var")))  # noqa: S108 - not a file of ours, but what a pod has there


def workdir_of(job: Job) -> Path:
    """The pods' working directory. Raises WrongCall for one that is no path of its own in an image.

    The caller's own directory, which a launch has if not told, says nothing of a pod.
    """
    if job.workdir == Path.cwd():
        return WORKDIR
    wanted = Path(os.path.normpath(job.workdir))
    if not wanted.is_absolute() or wanted == Path("/") or any(wanted.is_relative_to(taken) for taken in _TAKEN):
        raise WrongCall(
            f"--workdir {job.workdir} cannot be mounted in a pod; write a path of its own, such as {WORKDIR}"
        )
    return wanted


def require_kept(job: Job, options: Options, config: Config, tune: Tune | None, tracking_uri: str) -> None:
    """Raise WrongCall where a job would read what a pod has not, or lose what it has learnt with the pod.

    tune is that of a sweep, which keeps its trials in tune.storage where others have checkpoints.mirror.
    """
    workdir = workdir_of(job)
    if not config.data.uris:
        raise WrongCall("data.uri is not set; write behind the configuration data.uri=s3://BUCKET/PREFIX")
    for uri in config.data.uris:
        if not is_on_s3(uri):
            if not options.claim:
                raise WrongCall(
                    f"data.uri={uri} is a path, and a pod has nothing there; name the claim that holds it (--claim), "
                    "or a dataset on s3://"
                )
            _require_inside(workdir, "data.uri", uri)
    _require_inside(workdir, "output", config.output)
    key, kept = ("tune.storage", tune.storage) if tune else ("checkpoints.mirror", config.checkpoints.mirror)
    if kept and not is_on_s3(kept):
        _require_inside(workdir, key, kept)
    if options.claim:
        return
    if not is_on_s3(kept):
        raise WrongCall(
            f"output={config.output} would lie on a pod's own disk, which is lost with it; "
            f"name a claim (--claim), or {key}=s3://BUCKET/PREFIX"
        )
    if not tracking_uri:
        raise WrongCall(
            "what MLflow is told would lie on a pod's own disk, which is lost with it; "
            "name a server (--tracking-uri) or a claim (--claim)"
        )
    if (tune.nodes if tune else job.nodes) > 1 and config.training.generator_zero == 3:
        raise WrongCall(
            "training.generator_zero=3 keeps checkpoints that all machines must see; name a claim (--claim)"
        )


def _require_inside(workdir: Path, key: str, path: str) -> None:
    """A path that is not absolute begins at the working directory."""
    if not Path(os.path.normpath(workdir / path)).is_relative_to(workdir):
        raise WrongCall(f"{key}={path} lies outside {workdir}, and nothing else can be written in a pod")


def is_on_s3(uri: str) -> bool:
    """Whether a place is in an object store, which all pods reach."""
    return uri.startswith("s3://")
