"""`sonotrain launch ...`: a training verb in many processes, on one machine or many."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.order import LaunchCommand, MemberCommand, Order
from launch.terminal import say
from launch.train_verbs import parsed_config, require_sizes

if TYPE_CHECKING:
    from launch.job import Job
    from launch.preview import Preview

launch = typer.Typer(
    no_args_is_help=True,
    help="Start a training verb in many processes, for example: launch local --procs 2 -- train quick. "
    "Options that are not known here are handed on to the program that carries the job out.",
)


@launch.command(cls=LaunchCommand)
def local(
    context: typer.Context,
    logs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where each rank's output is kept; if not given, OUTPUT/logs.")
    ] = None,
    cores: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Cores of each process that no other launch with --cores has; 0 for a share of all.",
        ),
    ] = 0,
) -> None:
    """Run a training verb in processes of this machine."""
    from data_pipeline import WrongCall
    from launch import local as here

    order: Order = context.obj
    if order.passed_on:
        raise WrongCall(f"{order.passed_on[0]} is no option of launch local; the verb stands behind --")
    enter(order.job.workdir)
    folder = logs or logs_of(order)
    if not shown(order, here.plan(order.job)):
        watched(order.job, folder, lambda: here.run(order.job, folder, cores))


@launch.command(cls=LaunchCommand)
def ssh(
    context: typer.Context,
    hostfile: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="DeepSpeed's hostfile, a line NAME slots=N for each machine; without --nodes and --procs, all of it.",
        ),
    ],
    include: Annotated[
        str, typer.Option(metavar="HOSTS", help="Of the hostfile only these: NAME[:SLOT,SLOT...], joined by @.")
    ] = "",
    exclude: Annotated[str, typer.Option(metavar="HOSTS", help="Of the hostfile all but these.")] = "",
    master_addr: Annotated[
        str | None,
        typer.Option(
            "--master-addr",
            "--master_addr",
            metavar="ADDRESS",
            help="The first machine's address for the others; the one that ssh comes to, if not given.",
        ),
    ] = None,
    master_port: Annotated[
        int | None,
        typer.Option(
            "--master-port",
            "--master_port",
            min=1,
            max=65535,
            metavar="PORT",
            help="Where processes find each other on the first machine; a free one, if not given.",
        ),
    ] = None,
    ssh_port: Annotated[
        int | None,
        typer.Option("--ssh-port", "--ssh_port", min=1, max=65535, metavar="PORT", help="Where sshd listens."),
    ] = None,
) -> None:
    """Run a training verb on machines that are reached by ssh, through the DeepSpeed launcher."""
    from launch import ssh as there

    order: Order = context.obj
    options = there.SshOptions(hostfile.absolute(), include, exclude, master_addr, master_port, ssh_port)
    enter(order.job.workdir)
    all_nodes = order.job.elastic is None and not _is_given(context, "nodes")
    job = there.fitted(order.job, options, all_nodes, not _is_given(context, "procs"))
    require_sizes(job)
    folder = logs_of(order)
    if not shown(replace(order, job=job), there.plan(job, options, order.passed_on)):
        watched(job, folder, lambda: there.run(job, options, order.passed_on, folder))


@launch.command(cls=LaunchCommand)
def kubernetes(
    context: typer.Context,
    image: Annotated[str, typer.Option(metavar="IMAGE", help="The image, built by launch/Containerfile.")],
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="job, trainjob or pytorchjob; auto: job for one machine, else trainjob.")
    ] = "auto",
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the job; sonotrain-VERB, if not given.")] = "",
    namespace: Annotated[str, typer.Option(metavar="NAME", help="Where; kubectl's own, if not given.")] = "",
    gpus: Annotated[int, typer.Option(metavar="N", help="GPUs of a pod, one for each process at least.")] = 0,
    cpu: Annotated[str, typer.Option(metavar="CORES", help="Cores of a pod; enough, if not given.")] = "",
    memory: Annotated[str, typer.Option(metavar="16Gi", help="Of a pod, without what is shared.")] = "",
    shm: Annotated[str, typer.Option(metavar="4Gi", help="Shared memory; for data.resident_gb, if not given.")] = "",
    claim: Annotated[
        str,
        typer.Option(metavar="NAME", help="PersistentVolumeClaim of the working directory; else a mirror is needed."),
    ] = "",
    s3_secret: Annotated[str, typer.Option(metavar="NAME", help="Secret of the store's credentials.")] = "",
    mlflow_secret: Annotated[str, typer.Option(metavar="NAME", help="Secret of the tracker's credentials.")] = "",
    tracking_uri: Annotated[str, typer.Option(metavar="URI", help="The MLflow server.")] = "",
    service_account: Annotated[str, typer.Option(metavar="NAME", help="ServiceAccount of the pods.")] = "",
) -> None:
    """Run a training verb in pods: a Job, a Kubeflow TrainJob or PyTorchJob, sent by kubectl (docs/kubernetes.md)."""
    from launch.kubernetes import Options, plan, run

    order: Order = context.obj
    options = Options(
        image=image,
        kind=kind,
        name=name,
        namespace=namespace,
        gpus=gpus,
        cpu=cpu,
        memory=memory,
        shm=shm,
        claim=claim,
        s3_secret=s3_secret,
        mlflow_secret=mlflow_secret,
        tracking_uri=tracking_uri,
        service_account=service_account,
    )
    require_sizes(order.job)
    if not shown(order, plan(order.job, options, order.passed_on), elsewhere=True):
        run(order.job, options, order.passed_on)


@launch.command(cls=LaunchCommand)
def slurm(
    context: typer.Context,
    array: Annotated[
        bool,
        typer.Option("--array", help="crossval's folds at the same time, a task for each, and a job behind them."),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the job is over, with its exit status.")] = False,
) -> None:
    """Submit a training verb to Slurm; other options, such as --partition, are sbatch's (docs/slurm.md)."""
    from launch.slurm import SlurmOptions, plan, run

    order: Order = context.obj
    options = SlurmOptions(array=array, wait=wait)
    enter(order.job.workdir)
    require_sizes(order.job)
    if not shown(order, plan(order.job, options, order.passed_on)):
        status = run(order.job, options, order.passed_on)
        if status:
            raise typer.Exit(status)


@launch.command(cls=MemberCommand)
def slurm_batch(
    context: typer.Context,
    procs: Annotated[int, typer.Option(metavar="P", min=1, help="Processes on each machine.")] = 1,
    restarts: Annotated[int, typer.Option(metavar="R", min=0, help="As launch slurm has it.")] = 0,
    elastic: Annotated[str | None, typer.Option(metavar="MIN:MAX", help="As launch slurm has it.")] = None,
) -> None:
    """Supervise a job from the first of its machines; the batch script of launch slurm becomes this."""
    from launch.job import Job, node_range
    from launch.slurm.batch import run_batch

    verb = tuple(context.obj)
    job = Job(verb, processes=procs, restarts=restarts, elastic=node_range(elastic))
    status = run_batch(job, Path(parsed_config(verb).output) / "logs")
    if status:
        raise typer.Exit(status)


@launch.command(cls=MemberCommand)
def node(
    context: typer.Context,
    by: Annotated[
        str, typer.Option(metavar="WAY", help="Who starts it: deepspeed, slurm, kubeflow (PyTorchJob) or trainer.")
    ],
    procs: Annotated[int, typer.Option(metavar="P", min=1, help="Processes on this machine.")] = 1,
    control: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What a supervisor has written for this node; read once.")
    ] = None,
    cores: Annotated[int, typer.Option(min=0, metavar="N", help="As launch local has it.")] = 0,
) -> None:
    """Run one machine's share of a job; a scheduler or a supervisor starts it on each machine."""
    from launch.job import sonotrain
    from launch.member import run_member

    logs = Path(parsed_config(context.obj).output) / "logs"
    status = run_member(by, procs, sonotrain(*context.obj), logs, control, cores)
    if status:
        raise typer.Exit(status)


def enter(workdir: Path) -> None:
    """Go to the working directory. Raises WrongCall where it is no folder."""
    from data_pipeline import WrongCall

    try:
        os.chdir(workdir)
    except OSError as refused:
        raise WrongCall(f"--workdir {workdir}: {refused.strerror}") from refused


def logs_of(order: Order) -> Path:
    """Where the logs of a launch lie, below its output. Raises what its verb would raise."""
    return Path(parsed_config(order.job.verb).output) / "logs"


def watched(job: Job, logs: Path, run: Callable[[], int]) -> None:
    """Run a job that this process watches to its end, and say how it ended."""
    from launch.job import STOPPED

    many = f"{job.processes * job.nodes} processes" + (f" on {job.nodes} machines" if job.nodes > 1 else "")
    say(f"Launching {many} of `sonotrain {' '.join(job.verb)}`; their logs: {logs}")
    status = run()
    if status == STOPPED:
        say(f"All {many} have stopped when asked to; the same call goes on; their logs are in {logs}")
    if status:
        raise typer.Exit(status)
    say(f"All {many} are done; their logs are in {logs}")


def shown(order: Order, preview: Preview, elsewhere: bool = False) -> bool:
    """Where it is a dry run, show what would be started and what it needs, for people and for machines.

    `elsewhere`: the job runs where another disk and other credentials may be, so its dataset need not be found here.
    """
    if not order.dry_run:
        return False
    from data_pipeline import Fault, WrongCall
    from launch.forecast import forecast_of
    from launch.forecast_table import show_forecast
    from launch.options import write_json

    for variable in preview.environment:
        say(f"environment: {variable}")
    for command in preview.commands:
        say(shlex.join(command))
    for text in filter(None, (preview.script, preview.manifest)):
        say(text.rstrip("\n"))
    told = asdict(preview)
    try:
        forecast = forecast_of(order.job)
        if order.job.verb[0] == "tune":
            say("One trial, of which sonotrain tune --dry-run tells how many there are at a time, and for how long:")
        show_forecast(forecast)
        told = forecast.as_json() | told
    except Fault as unknown:
        if isinstance(unknown, WrongCall) and not elsewhere:
            raise
        say(f"Warning: steps, reading and memory cannot be told from here: {unknown}")
    write_json(order.json, told)
    return True


def _is_given(context: typer.Context, option: str) -> bool:
    """Whether an option stands in the call, and not only its default holds."""
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"
