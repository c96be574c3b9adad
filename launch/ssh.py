"""A Job on the machines of a DeepSpeed hostfile, through the DeepSpeed launcher, which reaches them by pdsh and ssh."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline import WrongCall
from launch.cluster import NotReady, run_cluster
from launch.control import Control
from launch.deepspeed_launcher import (
    deepspeed_command,
    deepspeed_environment,
    require_launcher,
    require_passable,
)
from launch.hostfile import Slots, chosen, read_hostfile
from launch.installed import require_equal
from launch.job import Host, Job, Meeting, bound
from launch.preview import Preview
from launch.probe import PROGRAM
from launch.remote import Answer, ask_all
from launch.terminal import say

ANSWERING = 60.0
"""Seconds that a machine has to answer what it is asked."""

ENDING = 5.0
"""Seconds that what belongs to an attempt has to end by itself, once all nodes have, before it is killed."""


@dataclass(frozen=True, slots=True)
class SshOptions:
    """What a launch over ssh takes beside what all launches take."""

    hostfile: Path
    include: str = ""
    exclude: str = ""
    """As the DeepSpeed launcher has them: NAME[:SLOT,SLOT...], joined by @."""
    master_addr: str | None = None
    """The first machine's address for the others, where it is not the one that ssh comes to."""
    master_port: int | None = None
    """Where ranks find each other; a free port, if not given."""
    ssh_port: int | None = None


def run(job: Job, options: SshOptions, passed_on: Sequence[str], logs: Path) -> int:
    """Carry the job out; gives 0, 2 or 75. What the DeepSpeed launcher says is kept in `logs`/deepspeed.log.

    Raises what `run_cluster` does, and WrongCall for a hostfile or an option that cannot be used.
    """
    slots = _slots(job, options, passed_on)
    require_launcher()
    for each in (Path.home() / ".deepspeed_env", Path.cwd() / ".deepspeed_env"):
        if each.is_file():
            say(f"{each} is not read, for it would show on command lines; give variables by --env")
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise WrongCall(f"{logs} cannot be made a folder for logs: {refused.strerror}") from refused
    output = logs / "deepspeed.log"
    return run_cluster(job, OverSsh(job, slots, options, passed_on, output), output)


def plan(job: Job, options: SshOptions, passed_on: Sequence[str]) -> Preview:
    """The command that `run` would start. No machine is asked, so what is chosen then stands in capitals."""
    slots = dict(list(_slots(job, options, passed_on).items())[: job.nodes])
    meeting = (options.master_addr or "ADDRESS", str(options.master_port or "PORT"))
    own = _own(options, passed_on)
    command = deepspeed_command(job, options.hostfile, slots, meeting, "JOB", _control_file("JOB", 1, "%n"), own)
    return Preview([command], environment=[f"{name}=(hidden)" for name in job.environment])


def fitted(job: Job, options: SshOptions, nodes: bool, processes: bool) -> Job:
    """The job on all hosts of the hostfile, and in all slots of the host that has the fewest, where that is asked."""
    slots = chosen(read_hostfile(options.hostfile), options.include, options.exclude)
    if nodes:
        job = replace(job, nodes=len(slots))
    return replace(job, processes=min(map(len, slots.values()))) if processes else job


class OverSsh:
    """A Starter: asks the machines what they have, and starts nodes on them."""

    def __init__(self, job: Job, slots: Slots, options: SshOptions, passed_on: Sequence[str], output: Path) -> None:
        self._job, self._slots, self._options, self._passed_on = job, slots, options, passed_on
        self._output = output
        self._name = secrets.token_hex(16)
        self._attempts = 0
        self._told: dict[str, dict[str, Any]] = {}

    def ready(self, sizes: range) -> list[Host]:
        """The first hosts, as many as the job takes, that are reached and have all it needs."""
        workdir = str(self._job.workdir.absolute())
        request = {"job": self._name, "workdir": workdir, "port": self._options.master_port}
        answers = self._ask("look", dict.fromkeys(self._slots, request))
        self._told = {}
        missing = []
        for host, answer in answers.items():
            wrong = _why_unfit(host, answer, workdir)
            if wrong and answer.reached and not self._attempts:
                raise WrongCall(wrong)
            # Later a host may be about to start, and its disks to come.
            if wrong:
                missing.append(wrong)
            else:
                self._told[host] = json.loads(answer.text)
        if len(self._told) < sizes[0]:
            raise NotReady("; ".join(missing))
        hosts = list(self._told)[: sizes[-1]]
        if missing:
            say(f"Going on with {len(hosts)} machines: {'; '.join(missing)}")
        for host in hosts:
            self._require_room(host)
        require_equal({host: self._told[host]["versions"] for host in hosts})
        first = self._told[hosts[0]]
        if first["taken"]:
            raise WrongCall(f"--master-port {first['port']} is taken on {hosts[0]}; give another, or leave it out")
        return [Host(host, self._told[host]["address"], len(self._slots[host])) for host in hosts]

    def meeting(self, hosts: Sequence[Host]) -> Meeting:
        """The first host's address, and the port given or one that was free when it was asked."""
        return Meeting(self._options.master_addr or hosts[0].address, self._told[hosts[0].name]["port"])

    def start(
        self, hosts: Sequence[Host], meeting: Meeting, control: Control, processes: int, verb: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        """Tell each host what its node needs to know, then have the DeepSpeed launcher start the nodes."""
        self._attempts += 1
        texts = {}
        for node, host in enumerate(hosts):
            own = replace(control, environment=dict(control.environment) | self._devices(host.name))
            texts[host.name] = {"path": self._control_file(str(node)), "text": own.to_json()}
        # A host that is lost now gives no word later, and is named then.
        self._ask("write", texts)
        command = deepspeed_command(
            replace(self._job, processes=processes, verb=tuple(verb)),
            self._options.hostfile,
            {host.name: self._slots[host.name] for host in hosts},
            (meeting.address, str(meeting.port)),
            self._name,
            self._control_file("%n"),
            _own(self._options, self._passed_on),
        )
        with self._output.open("ab") as sink:
            return subprocess.Popen(
                bound(command),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=deepspeed_environment(self._name),
                cwd="/",  # where the launcher goes to on each host, and puts on PYTHONPATH
                start_new_session=True,
            )

    def clean(self, hosts: Sequence[Host]) -> None:
        """End what is left of the job on those hosts that are reached."""
        requests = {
            host.name: {"job": self._name, "path": self._control_file(str(node)), "patience": ENDING}
            for node, host in enumerate(hosts)
        }
        for host, answer in self._ask("clean", requests).items():
            if answer.status == 0 and (ended := json.loads(answer.text)["ended"]):
                say(f"{ended} processes that did not end on {host} were killed")

    def _ask(self, wish: str, requests: Mapping[str, Mapping[str, Any]]) -> dict[str, Answer]:
        texts = {host: json.dumps({"do": wish, **request}) for host, request in requests.items()}
        return ask_all(texts, PROGRAM, ANSWERING, self._options.ssh_port)

    def _control_file(self, node: str) -> str:
        return _control_file(self._name, self._attempts, node)

    def _devices(self, host: str) -> dict[str, str]:
        """The GPUs that a host's ranks may use, of which the DeepSpeed launcher would leave them one."""
        if not self._told[host]["devices"]:
            return {}
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self._slots[host]))}

    def _require_room(self, host: str) -> None:
        told, processes = self._told[host], self._job.processes
        if processes > told["cores"]:
            raise WrongCall(f"--procs {processes} are more than the {told['cores']} cores of {host}")
        if told["devices"] and processes > told["devices"]:
            raise WrongCall(f"--procs {processes} are more than the {told['devices']} GPUs of {host}")
        if told["devices"] and max(self._slots[host]) >= told["devices"]:
            raise WrongCall(
                f"{host} has {told['devices']} GPUs, and the hostfile gives it slot {max(self._slots[host])}"
            )


def _slots(job: Job, options: SshOptions, passed_on: Sequence[str]) -> Slots:
    """The hosts and slots to choose from. Raises WrongCall for too few, and for what is not to be passed on."""
    require_passable(passed_on)
    slots = chosen(read_hostfile(options.hostfile), options.include, options.exclude)
    if job.nodes > len(slots):
        raise WrongCall(f"{job.nodes} machines are asked for, and {options.hostfile} names {len(slots)} to use")
    for host, numbers in slots.items():
        if job.processes > len(numbers):
            raise WrongCall(
                f"--procs {job.processes} are more than the {len(numbers)} slots of {host} in {options.hostfile}"
            )
    return slots


def _own(options: SshOptions, passed_on: Sequence[str]) -> list[str]:
    port = ("--ssh_port", str(options.ssh_port)) if options.ssh_port else ()
    return [*port, *passed_on]


def _control_file(name: str, attempt: int, node: str) -> str:
    return f"/tmp/sonotrain-{name}-{attempt}-{node}"  # noqa: S108 - its name cannot be guessed


def _why_unfit(host: str, answer: Answer, workdir: str) -> str | None:
    if not answer.reached:
        return f"{host} cannot be reached: {answer.why}"
    advice = "install sonotrain at the same place on every host"
    if answer.status in (126, 127):
        return f"{host} has no {sys.executable}; {advice}"
    if answer.status:
        return f"{host} has no sonotrain that can be used ({answer.why}); {advice}"
    return None if json.loads(answer.text)["workdir"] else f"--workdir {workdir} is no folder on {host}"
