"""A process that has imported all that training needs, and forks a rank's process when it is asked to.

Each line on stdin is a job: {"argv": [script, argument, ...], "ranks": [{"environment", "out", "err"}, ...]}. It is
answered by a line with the processes' ids, and when all have ended by a line with their statuses, negative for signals.
Nothing is opened here and no thread is begun, so that a fork is as good as a start.
"""

import ctypes
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import traceback
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cuda" if Path("/dev/nvidia0").exists() else "cpu")

from trainer.tracking import import_mlflow

import_mlflow()
for name in (
    "deepspeed",
    "launch.cli",
    "matplotlib",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.tracking",
    "safetensors.torch",
    "scipy.ndimage",
    "sqlalchemy.dialects.sqlite",
    "torch._dynamo",
    "trainer.loop",
):
    importlib.import_module(name)

PR_SET_PDEATHSIG = 1


def main() -> None:
    assert threading.active_count() == 1, threading.enumerate()
    for line in sys.stdin:
        job = json.loads(line)
        pids = []
        for rank in job["ranks"]:
            pid = os.fork()
            if pid == 0:
                be_rank(job["argv"], **rank)
            pids.append(pid)
        print(json.dumps(pids), flush=True)
        for pid in pids:  # all are left unreaped until the last has ended: none's number can become another's
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


def be_rank(argv: list[str], environment: dict[str, str], out: str, err: str) -> None:
    """Run the script as `python script ...` would, and end."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        os.dup2(os.open(path, flags | (os.O_CREAT | os.O_APPEND if number else 0), 0o644), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    status = 1
    try:
        runpy.run_path(argv[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


main()
