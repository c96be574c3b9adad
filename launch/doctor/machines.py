"""Which machines are examined, and how the doctor's process is started on each."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

import torch

from launch.cores import usable_cores
from launch.doctor.conversation import PROGRAM
from launch.doctor.examine import Machine
from launch.hostfile import read_hostfile
from launch.remote import over_ssh


def this_machine(environment: Mapping[str, str]) -> tuple[list[Machine], int]:
    """The machine that the call was made on, and the processes that it has room for: one a GPU, or 2 without any."""
    room = torch.cuda.device_count() or min(2, usable_cores().count)
    return [Machine(socket.gethostname(), PROGRAM, environment, remote=False)], room


def of_hostfile(hostfile: Path, environment: Mapping[str, str]) -> tuple[list[Machine], int]:
    """The machines of a hostfile, reached by ssh, and the processes that each of them has room for.

    Raises WrongCall for a hostfile that is none, and where ssh is not installed.
    """
    slots = read_hostfile(hostfile)
    machines = [Machine(host, over_ssh(host, PROGRAM), environment) for host in slots]
    return machines, min(map(len, slots.values()))
