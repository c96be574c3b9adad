"""The DeepSpeed launcher's call that starts one program on each of some hosts, by pdsh and ssh."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipeline import WrongCall
from launch.job import Job, sonotrain
from launch.probe import JOB
from launch.remote import SSH_OPTIONS

DEEPSPEED = (sys.executable, "-P", "-m", "deepspeed.launcher.runner")
"""The program `deepspeed` of this interpreter."""

_OTHERWISE = {
    "-H": "--hostfile",
    "-i": "--include",
    "-e": "--exclude",
    "--num_nodes": "--nodes",
    "--num_gpus": "--procs",
    "--num_accelerators": "--procs",
}
# These would start something else than one program of ours on each host.
_NEVER = ("--launcher", "--no_ssh", "--node_rank", "--module", "--autotuning", "--bind_cores_to_rank", "--save_pid")

# All that ssh and pdsh need; whatever else is set here, credentials among it, is not the launcher's to know.
_KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "TMPDIR", "SSH_AUTH_SOCK", "KRB5CCNAME")


def deepspeed_command(
    job: Job,
    hostfile: Path,
    slots: Mapping[str, Sequence[int]],
    meeting: tuple[str, str],
    name: str,
    control: str,
    passed_on: Sequence[str] = (),
) -> list[str]:
    """The call that starts `sonotrain launch node` once on each host of `slots`, which are of the hostfile.

    `meeting` is the address and port of the first node, `name` what the job's processes are known by, and `control` the
    path of a node's control file, in which pdsh puts the node's number for %n.
    """
    node = sonotrain("launch", "node", "--by", "deepspeed", "--procs", str(job.processes))
    before = ["env", "-C", str(job.workdir.absolute()), f"{JOB}={name}", *node, "--control"]
    line = f"{_for_pdsh(before)} {control} {_for_pdsh(['--', *job.verb])}"
    return [
        *DEEPSPEED,
        *("--hostfile", str(hostfile.absolute())),
        # One slot of each, for the one process of ours that then starts the ranks.
        *("--include", "@".join(f"{host}:{numbers[0]}" for host, numbers in slots.items())),
        *("--launcher", "pdsh", "--force_multi", "--no_ssh_check"),
        *("--master_addr", meeting[0], "--master_port", meeting[1]),
        *passed_on,
        *("--no_python", "--no_local_rank"),
        # The launcher quotes a word that has spaces, and joins all by spaces: of words without any it makes this line.
        *line.split(" "),
    ]


def deepspeed_environment(name: str) -> dict[str, str]:
    """What the launcher is started with. It puts some variables on command lines, so it gets no more than it needs."""
    kept = {key: value for key, value in os.environ.items() if key in _KEPT or key.startswith(("PDSH_", "LC_"))}
    ssh = " ".join(filter(None, (kept.get("PDSH_SSH_ARGS_APPEND"), *SSH_OPTIONS)))
    python = {"PYTHONPATH": os.environ["PYTHONPATH"]} if os.environ.get("PYTHONPATH") else {}
    # No file has that name, so none is found whose variables would go there too.
    return kept | python | {"PDSH_RCMD_TYPE": "ssh", "PDSH_SSH_ARGS_APPEND": ssh, "DS_ENV_FILE": f".{name}"}


def require_launcher() -> None:
    """Raises WrongCall where the launcher would not work."""
    if shutil.which("pdsh") is None:
        raise WrongCall("pdsh is not installed here, and the DeepSpeed launcher needs it; install the package pdsh")


def require_passable(options: Sequence[str]) -> None:
    """Raises WrongCall for an option of the launcher that has another name here, or would break what is started."""
    for option in (word.partition("=")[0] for word in options):
        if option in _OTHERWISE:
            raise WrongCall(f"{option} of the DeepSpeed launcher is {_OTHERWISE[option]} here")
        if option in _NEVER:
            raise WrongCall(f"{option} of the DeepSpeed launcher cannot be given: each host has one process of ours")


def _for_pdsh(words: Sequence[str]) -> str:
    """A line that a host's shell takes apart into these words, when pdsh has put other things for % and a letter.

    No two spaces follow each other in it, for pdsh forgets what comes after an empty word.
    """
    return re.sub(" (?= )", " ''", shlex.join(words)).replace("%", "%%")
