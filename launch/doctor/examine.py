"""All checks on all nodes: what each sees by itself, then what they see of each other, then a training by all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_pipeline import Fault, WrongCall
from launch.deepspeed_launcher import require_launcher
from launch.doctor.clock import judge_clock, offset
from launch.doctor.conversation import Conversation
from launch.doctor.finding import Finding, Wanted, failure
from launch.doctor.links import Listener
from launch.doctor.needs import needs
from launch.doctor.network import judge_links, judge_ports, next_in_ring, others
from launch.doctor.training import SECONDS, judge_training
from launch.doctor.versions import compare
from launch.installed import SOURCES, versions
from launch.node import address_towards

HERE = "this machine"
"""The host that the doctor was called on, where others are examined."""

LOCAL = "127.0.0.1"
"""Where processes of one machine alone find each other."""

BEGIN_SECONDS = 60.0
"""In which a host has to be reached and to have loaded the libraries."""

LOOK_SECONDS = 240.0
LINKS_SECONDS = 60.0
"""For everything that a node sees by itself, and for its links to all others."""

_WORD_SECONDS = 10.0
_CLOCK_QUESTIONS = 5
_TRAINING_STARTS = 120.0

Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Machine:
    """A host, and the command that starts the doctor's process there."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that it does not have by itself."""
    remote: bool = True


def examine(wanted: Wanted, machines: Sequence[Machine], workdir: Path) -> list[Finding]:
    """What is found on machines, by check and in their order; one that cannot be reached keeps none from the rest."""
    with ExitStack() as ends:
        talks = [ends.enter_context(Conversation(machine.name, machine.command)) for machine in machines]
        examination = _Examination(wanted, talks)
        remote = any(machine.remote for machine in machines)
        if remote:
            examination.launcher()
        examination.begin(machines, workdir)
        if remote:
            examination.clocks()
        examination.look(compared=remote)
        examination.links(ends, supervised=remote)
        examination.train()
    return _by_check(examination.findings)


class _Examination:
    """The nodes that answer, and what was found so far."""

    def __init__(self, wanted: Wanted, talks: Sequence[Conversation]) -> None:
        self.findings: list[Finding] = []
        self._wanted = wanted
        self._talks = list(talks)
        self._addresses: dict[str, str] = {}

    def begin(self, machines: Sequence[Machine], workdir: Path) -> None:
        """Reach every host; those that do not answer are left out from here on."""
        began = time.monotonic()
        places = {m.name: {"workdir": str(workdir), "environment": dict(m.environment)} for m in machines}
        advice = "see that ssh HOST runs a command there without a password, and that sonotrain is installed there"
        answers = self._ask("reach", advice, "begin", BEGIN_SECONDS, places)
        self._talks = [talk for talk in self._talks if talk.host in answers]
        remote = any(machine.remote for machine in machines)
        self._addresses = {host: answer["address"] if remote else LOCAL for host, answer in answers.items()}
        if remote:
            told = f"answers over ssh, all within {time.monotonic() - began:.1f} s, at "
            self.findings += [
                Finding("reach", "ok", told + address, host=host) for host, address in self._addresses.items()
            ]
        self._wanted = replace(self._wanted, nodes=max(1, len(self._talks)))

    def launcher(self) -> None:
        """What a launch over ssh needs on this machine."""
        try:
            require_launcher()
        except WrongCall as missing:
            self.findings.append(failure("launcher", missing, "install the Debian package pdsh").on(HERE))
        else:
            self.findings.append(Finding("launcher", "ok", "pdsh is installed, for the DeepSpeed launcher", host=HERE))

    def clocks(self) -> None:
        """How far each clock is from this machine's: one node after the other, while none is busy."""
        for talk in self._talks:
            trips = []
            try:
                for _ in range(_CLOCK_QUESTIONS):
                    sent = time.time()
                    talk.say("clock")
                    shown = talk.answer(_WORD_SECONDS)["time"]
                    trips.append((sent, shown, time.time()))
            except Fault as silent:
                self.findings.append(failure("clock", silent, "see why the host is silent").on(talk.host))
            else:
                self.findings.append(judge_clock(offset(trips)).on(talk.host))

    def look(self, compared: bool) -> None:
        """What each node sees by itself; and whether all have the same versions as this machine."""
        wanted = {talk.host: {"wanted": self._wanted.as_json()} for talk in self._talks}
        answers = self._ask("host", "see why the host is so slow", "look", LOOK_SECONDS, wanted)
        if compared:
            here = {HERE: {SOURCES: versions()[SOURCES]}}  # it only watches
            self.findings += compare(here | {host: each["versions"] for host, each in answers.items()})
        for host, answer in answers.items():
            self.findings += [Finding(**{**finding, "host": host}) for finding in answer["findings"]]

    def links(self, ends: ExitStack, supervised: bool) -> None:
        """Ports, latency and bandwidth between nodes; and whether they reach this machine, which supervises a job."""
        listen = {host: {"address": address} for host, address in self._addresses.items()}
        advice = "see that no firewall keeps the host from listening at this address, which is its own"
        peers = self._ask("ports", advice, "listen", _WORD_SECONDS, listen)
        silent = "see why the host is silent"
        here = self._here(ends) if supervised else {}
        reach = {host: {"peers": others(host, peers | here)} for host in self._addresses}
        trips = self._ask("ports", silent, "reach", LINKS_SECONDS, reach)
        self.findings += judge_ports(peers | here, trips)
        if len(peers) > 1:
            ring = {host: {"peers": next_in_ring(host, peers)} for host in peers}
            needed = needs(self._wanted)
            gradients = needed.gradients if needed else 0
            rates = self._ask("network", silent, "send", LINKS_SECONDS, ring)
            self.findings += judge_links(trips, rates, gradients)

    def _here(self, ends: ExitStack) -> dict[str, Answer]:
        """A port of this machine, at the address from which it reaches the nodes."""
        for address in self._addresses.values():
            with suppress(OSError):
                return {HERE: asdict(ends.enter_context(Listener(address_towards(address))).peer)}
        return {}

    def train(self) -> None:
        """Two steps by all processes of all nodes, unless it is known that they cannot reach each other."""
        if not self._talks:
            return
        shut = [each.host for each in self.findings if each.check == "ports" and each.state == "failed"]
        if set(shut) - {HERE}:
            told = f"not tried: ports of {', '.join(shut)} are shut"
            self.findings.append(Finding("training", "warning", told, "open them and examine again", host="all"))
            return
        first = self._talks[0]
        address = self._addresses[first.host]
        silent = "see why the host is silent"
        free = self._ask("training", silent, "port", _WORD_SECONDS, {first.host: {"address": address}})
        if not free:
            return
        place = {"wanted": self._wanted.as_json(), "address": address, "port": free[first.host]["port"]}
        shares = {talk.host: {**place, "node": node} for node, talk in enumerate(self._talks)}
        advice = "see what is told of this host above; with --json there is more"
        answers = self._ask("training", advice, "train", SECONDS + _TRAINING_STARTS, shares)
        if len(answers) == len(shares):
            host = first.host if len(shares) == 1 else "all"
            self.findings.append(judge_training(answers[first.host], self._wanted).on(host))

    def _ask(
        self, check: str, advice: str, wish: str, seconds: float, arguments: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Answer]:
        """Ask all at once; a host that does not answer, or tells of a fault, is a failed line of the check."""
        asked = [talk for talk in self._talks if talk.host in arguments]
        for talk in asked:
            talk.say(wish, **arguments[talk.host])
        deadline = time.monotonic() + seconds
        answers = {}
        for talk in asked:
            try:
                answers[talk.host] = talk.answer(deadline - time.monotonic())
            except Fault as fault:
                self.findings.append(failure(check, fault, advice).on(talk.host))
        return answers


def _by_check(findings: Sequence[Finding]) -> list[Finding]:
    """Lines of the same check together, where the first of them stands."""
    order = list(dict.fromkeys(finding.check for finding in findings))
    return sorted(findings, key=lambda finding: order.index(finding.check))
