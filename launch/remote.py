"""A program on other machines, over ssh: asked for no password, and given up soon where nobody answers."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from data_pipeline import WrongCall
from launch.job import bound

SSH_OPTIONS = (
    *("-o", "BatchMode=yes"),
    *("-o", "ConnectTimeout=10"),
    # A machine that is gone while it is talked to is noticed after 15 s.
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
)

_UNREACHED = 255
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a program on a host."""

    status: int
    """Its exit status, or ssh's own 255."""
    text: str
    """What it wrote to stdout."""
    why: str
    """The last line that it or ssh wrote to stderr, or that it took too long."""

    @property
    def reached(self) -> bool:
        """Whether ssh came through to the host."""
        return self.status != _UNREACHED


def over_ssh(host: str, program: Sequence[str], port: int | None = None) -> list[str]:
    """The command that runs a program on a host, its words kept apart there as they are here.

    Raises WrongCall where ssh is not installed.
    """
    ssh = shutil.which("ssh")
    if ssh is None:
        raise WrongCall("ssh is not installed here; install the Debian package openssh-client")
    own_port = ("-p", str(port)) if port else ()
    return [ssh, "-T", *SSH_OPTIONS, *own_port, host, shlex.join(program)]


def ask_all(
    texts: Mapping[str, str], program: Sequence[str], seconds: float, port: int | None = None
) -> dict[str, Answer]:
    """Run a program on each of some hosts at the same time, given the host's text on stdin."""
    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(texts)))) as pool:
        asked = {host: pool.submit(_ask, over_ssh(host, program, port), text, seconds) for host, text in texts.items()}
        return {host: answer.result() for host, answer in asked.items()}


def _ask(command: Sequence[str], text: str, seconds: float) -> Answer:
    try:
        # Bound to this thread, which waits for it.
        done = subprocess.run(
            bound(command), input=text, capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return Answer(_UNREACHED, "", f"no answer within {seconds:g} s")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    why = lines[-1].removeprefix("ssh: ") if lines else f"it ended with status {done.returncode}"
    return Answer(done.returncode, done.stdout, why)
