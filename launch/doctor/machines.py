"""Which machines are examined, and how the doctor's process is started on each."""

from __future__ import annotations

import socket

import torch

from launch.cores import usable_cores
from launch.doctor.conversation import PROGRAM
from launch.doctor.examine import Machine


def this_machine() -> tuple[list[Machine], int]:
    """The machine that the call was made on, and the processes that it has room for: one a GPU, or 2 without any."""
    room = torch.cuda.device_count() or min(2, usable_cores().count)
    return [Machine(socket.gethostname(), PROGRAM, remote=False)], room
