"""The machine that a measurement was made on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from launch.cores import usable_cores


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory in GiB, and Python's version."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": usable_cores().count,
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
    }
