"""The first moments of a child: bound to its cores, and to die with its parent; then its own program takes over.

    python -I -S begin.py PARENT CORES PROGRAM [ARGUMENT ...]

A program of its own and no `preexec_fn`, which runs in a copy of the parent where another thread's lock may be held.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """PARENT is its process id, CORES a list such as 0,1 or nothing."""
    parent, cores, *program = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the parent is gone")  # it died before the line above could bind us to it
    if cores:
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    os.execv(program[0], program)  # noqa: S606


main()
