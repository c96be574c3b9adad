"""The nodes of a batch job, as its supervisor starts something on them: by srun, which needs no ssh between nodes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline import Fault, WrongCall
from launch.cluster import NotReady
from launch.control import Control
from launch.installed import require_equal
from launch.job import Host, Meeting, sonotrain
from launch.member import CONTROL
from launch.node import free_port
from launch.probe import JOB, PROGRAM
from launch.slurm.partition import ask, last_words

PROBING = 60.0
"""Seconds in which a node has to tell its versions."""

# --overlap: a step that Slurm has not yet cleaned up must not keep the next one waiting.
_SRUN = ("srun", "--export=ALL", "--overlap", "--ntasks-per-node=1")


class Srun:
    """Starts nodes of a job by srun, within the batch job that this process runs in."""

    def __init__(self, output: Path, workdir: Path) -> None:
        """`output` is where what srun says is kept, `workdir` a folder that every node has to have."""
        self._output, self._workdir = output, workdir
        self._number = os.environ["SLURM_JOB_ID"]
        self._name = f"slurm-{self._number}"

    def ready(self, sizes: range) -> list[Host]:
        """The job's nodes on which something can be started now, at most sizes[-1]; each is asked.

        Raises NotReady where they are too few, naming those that are missing and what srun says, and WrongCall where
        they have unequal versions of what sonotrain needs.
        """
        names = ask("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()
        with ThreadPoolExecutor(len(names)) as at_once:
            answers = dict(zip(names, at_once.map(self._probed, names), strict=True))
        usable = {name: answer for name, answer in answers.items() if not isinstance(answer, str)}
        if len(usable) < sizes[0]:
            missing = "; ".join(f"{name}: {answer}" for name, answer in answers.items() if name not in usable)
            raise NotReady(f"{len(usable)} nodes of {len(names)} can be used and {sizes[0]} are needed; {missing}")
        require_equal({name: answer["versions"] for name, answer in usable.items()})
        return [Host(name, _address(name), answer["cores"]) for name, answer in usable.items()][: sizes[-1]]

    def meeting(self, hosts: Sequence[Host]) -> Meeting:
        """A port of this machine, which is the first of a batch job's nodes."""
        return Meeting(hosts[0].address, free_port(hosts[0].address))

    def start(
        self, hosts: Sequence[Host], meeting: Meeting, control: Control, processes: int, verb: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        """Run `sonotrain launch node` on each host. What it needs to know travels in its environment, by Slurm."""
        place = {
            "MASTER_ADDR": meeting.address,
            "MASTER_PORT": str(meeting.port),
            CONTROL: control.to_json(),
            JOB: self._name,
        }
        node = sonotrain("launch", "node", "--by", "slurm", "--procs", str(processes), "--", *verb)
        # A node that has stopped or failed is no reason for srun to kill the others: the supervisor ends them.
        options = ("--kill-on-bad-exit=0", "--wait=0")
        self._output.parent.mkdir(parents=True, exist_ok=True)
        with self._output.open("ab") as sink:
            return subprocess.Popen(
                [*_on([host.name for host in hosts]), *options, *node],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=os.environ | place,
                start_new_session=True,
            )

    def clean(self, _hosts: Sequence[Host]) -> None:
        """Cancel the job's steps, of which one may hang on a node that does not answer."""
        with suppress(WrongCall):
            steps = ask("squeue", "--steps", "--noheader", "--format=%i", f"--jobs={self._number}").split()
            for step in steps:
                if re.fullmatch(rf"{self._number}\.\d+", step):
                    ask("scancel", step)

    def _probed(self, name: str) -> dict[str, Any] | str:
        """What a node tells of itself, or why it does not. What an earlier attempt has left there is ended."""
        request = {"do": "look", "job": self._name, "workdir": str(self._workdir)}
        try:
            done = subprocess.run(
                [*_on([name]), "--immediate", *PROGRAM],
                input=json.dumps(request),
                capture_output=True,
                text=True,
                timeout=PROBING,
                check=False,
            )
            told: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        except subprocess.TimeoutExpired:
            return f"no answer within {PROBING:g} s"
        except ValueError:
            return "its answer cannot be read"
        if told and not told["workdir"]:
            return f"it has no folder {self._workdir}"
        return told or last_words(done.stderr) or f"srun ended with status {done.returncode}"


def _on(names: Sequence[str]) -> list[str]:
    """srun with one task on each of these nodes, and all the cores that the job has there."""
    command = [*_SRUN, f"--nodes={len(names)}", f"--ntasks={len(names)}", f"--nodelist={','.join(names)}"]
    # srun does not take this over from the job by itself.
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    return [*command, f"--cpus-per-task={cores}"] if cores else command


def _address(name: str) -> str:
    """The address under which the other nodes reach one."""
    found = re.search(r"\bNodeAddr=(\S+)", ask("scontrol", "show", "node", "--oneliner", name))
    if found is None:
        raise Fault(f"Slurm has no address of {name}")
    return found[1]
