"""The first moments of a rank: bound to its cores, and to die with its launcher; then its own program takes over.

    python -I -S begin.py LAUNCHER CORES PROGRAM [ARGUMENT ...]

A program of its own and no `preexec_fn`, which runs in a copy of the launcher where another thread's lock may be held.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """LAUNCHER is its process id, CORES a list such as 0,1 or nothing."""
    launcher, cores, *program = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):
        sys.exit("the launcher is gone")  # it died before the line above could bind us to it
    if cores:
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    os.execv(program[0], program)  # noqa: S606


main()
