"""A process of a training that has everything ready and hardly anything to train: what the runtime itself takes.

    python -P -m trainer.idle

Prints the bytes of memory that it holds then, as one number.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from data_pipeline import Fault
from trainer.config import Config

TIMEOUT = 120.0
"""Seconds for such a process to say what it takes; some ten are usual, most of them for imports."""

_SMALL = Config().replace(
    data__size=(16, 16),
    network__widths=(1, 1),
    discriminators__widths=(1, 1, 1, 1),
    discriminators__strides=(1, 1, 1, 1, 1),
    training__batch=2,
)


def runtime_memory() -> int:
    """Bytes of a process of a training on this machine without networks and scans: libraries and what they keep.

    Such a process is started for it. Raises Fault where it does not come to an end.
    """
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    call = (sys.executable, "-P", "-m", "trainer.idle")
    try:
        told = subprocess.run(call, env=alone, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout
        return int(told.split()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as failed:
        errors = (getattr(failed, "stderr", None) or "").strip().splitlines()
        reason = errors[-1] if errors else failed
        raise Fault(
            f"a process of a training could not be started here to see what memory it takes: {reason}"
        ) from failed


def _main() -> None:
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401, what a run that is tracked here imports

    import trainer.crossval  # noqa: F401
    from trainer.engines import start_engines
    from trainer.loop import settle
    from trainer.processes import end_process, joined

    with joined(TIMEOUT / 60) as world:
        engines = start_engines(_SMALL, world.size, world.device)
        settle(engines, _SMALL, world)
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "VmRSS":
                print(int(value.split()[0]) * 1024)
    end_process(0)


if __name__ == "__main__":
    _main()
