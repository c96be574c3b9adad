"""The doctor's process on a node: carries out what it is asked in lines of JSON, and ends with whoever asks.

    python -P -m launch.doctor.node

The first line holds the working directory and variables, so that no credential is on a command line.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from typing import Any

from data_pipeline import Fault
from launch.doctor.conversation import ENDING_SECONDS
from launch.doctor.finding import Finding, Wanted
from launch.probe import own_address

CHECK_SECONDS = 30.0
"""After which a check that has found nothing is given up."""

Answer = Mapping[str, Any]


def main() -> None:
    """Answer questions until there are none any more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(KeyboardInterrupt), ExitStack() as until_the_end:
        node = _Node(until_the_end)
        for question in _questions():
            wish: Callable[..., Answer] = getattr(node, question.pop("do"))
            try:
                answer = wish(**question)
            except (Fault, OSError) as failed:
                answer = {"fault": str(failed)}
            print(json.dumps(answer), file=answers)
    os._exit(0)  # whatever checks still wait for


def _questions() -> Iterator[dict[str, Any]]:
    """What is asked, read in a thread, so that the end of whoever asks interrupts what is being done for them."""
    asked: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            asked.put(json.loads(line))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(ENDING_SECONDS)
        os._exit(1)  # and with it end its ranks, which are bound to it

    threading.Thread(target=read, name="questions", daemon=True).start()
    while True:
        yield asked.get()


class _Node:
    """What can be asked, each method by its name; they give JSON values."""

    def __init__(self, until_the_end: ExitStack) -> None:
        self._until_the_end = until_the_end

    def begin(self, workdir: str, environment: Mapping[str, str]) -> Answer:
        """Be where the job will be, with its variables."""
        os.environ.update(environment)
        os.chdir(workdir)
        return {"address": own_address()}

    def clock(self) -> Answer:
        """The time."""
        return {"time": time.time()}

    def look(self, wanted: Mapping[str, Any]) -> Answer:
        """Everything that a node can see by itself."""
        from launch.installed import versions

        found = [finding.as_json() for finding in _findings(Wanted.from_json(wanted))]
        return {"findings": found, "versions": versions()}

    def listen(self, address: str) -> Answer:
        """Listen on a free port until the end."""
        from launch.doctor.links import Listener

        return asdict(self._until_the_end.enter_context(Listener(address)).peer)

    def reach(self, peers: Mapping[str, Mapping[str, Any]]) -> Answer:
        """Seconds to each peer and back, or why there is no way."""
        from launch.doctor.links import Peer, latency

        return _tried(peers, lambda peer: latency(Peer(**peer)))

    def send(self, peers: Mapping[str, Mapping[str, Any]]) -> Answer:
        """Bytes in a second to each peer, or why there is no way."""
        from launch.doctor.links import Peer, bandwidth

        return _tried(peers, lambda peer: bandwidth(Peer(**peer)))

    def port(self, address: str) -> Answer:
        """A port that is free."""
        from launch.node import free_port

        return {"port": free_port(address)}

    def train(self, wanted: Mapping[str, Any], node: int, address: str, port: int) -> Answer:
        """Carry out what this node has to do in the training."""
        from launch.doctor.training import train_share

        return train_share(Wanted.from_json(wanted), node, address, port)


def _tried(peers: Mapping[str, Mapping[str, Any]], call: Callable[[Mapping[str, Any]], float]) -> Answer:
    found: dict[str, float | str] = {}
    for name, peer in peers.items():
        try:
            found[name] = call(peer)
        except OSError as no_way:
            found[name] = no_way.strerror or str(no_way)
    return found


def _findings(wanted: Wanted) -> Iterator[Finding]:
    """Every check, each with its own time, none in the way of the next."""
    from launch.doctor.devices import look_at_cores, look_at_device, look_at_memory
    from launch.doctor.limits import look_at_compiler, look_at_disks, look_at_open_files, look_at_shared_memory
    from launch.doctor.services import look_at_configuration, look_at_dataset, look_at_mirror, look_at_tracker
    from launch.doctor.versions import look_at_versions

    checks: Sequence[tuple[str, Callable[[], Finding | Iterable[Finding]]]] = (
        ("versions", look_at_versions),
        ("device", lambda: look_at_device(wanted)),
        ("cores", lambda: look_at_cores(wanted)),
        ("memory", lambda: look_at_memory(wanted)),
        ("shared memory", lambda: look_at_shared_memory(wanted)),
        ("open files", lambda: look_at_open_files(wanted)),
        ("disk", lambda: look_at_disks(wanted)),
        ("compiler", lambda: look_at_compiler(wanted)),
        ("configuration", lambda: look_at_configuration(wanted)),
        ("dataset", lambda: look_at_dataset(wanted)),
        ("mirror", lambda: look_at_mirror(wanted)),
        ("tracker", look_at_tracker),
    )
    for name, check in checks:
        yield from _within_its_time(name, check)


def _within_its_time(
    name: str, check: Callable[[], Finding | Iterable[Finding]], seconds: float = CHECK_SECONDS
) -> list[Finding]:
    """What a check finds, or that it failed or found nothing in its time."""
    done: queue.SimpleQueue[list[Finding]] = queue.SimpleQueue()

    def carry_out() -> None:
        try:
            found = check()
            done.put([found] if isinstance(found, Finding) else list(found))
        except Exception as failed:
            told = f"{type(failed).__name__}: {failed}"
            done.put([Finding(name, "failed", told, "see what is wrong with this part of the host")])

    threading.Thread(target=carry_out, name=name, daemon=True).start()
    try:
        return done.get(timeout=seconds)
    except queue.Empty:
        return [
            Finding(name, "failed", f"no answer after {seconds:g} s", f"see why it hangs on {socket.gethostname()}")
        ]


if __name__ == "__main__":
    main()
