"""Keep what a measurement came to: results in JSON, joined with the versions and the machine that made them.

    python benchmarks/record.py OUT --command "sonotrain ..." NAME=RESULT.json [NAME=RESULT.json ...]

Absolute paths of the machine are left out; nothing but numbers, names and commands belongs here.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from launch.machine import machine

PACKAGES = (
    "sonotrain",
    "torch",
    "deepspeed",
    "webdataset",
    "ray",
    "optuna",
    "mlflow",
    "numpy",
    "pillow",
    "opencv-python-headless",
)


def main() -> None:
    """Write the joined record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--command", action="append", required=True, help="a command that made the results")
    parser.add_argument("results", nargs="+", metavar="NAME=FILE")
    wanted = parser.parse_args()
    results = {}
    for entry in wanted.results:
        name, _, file = entry.partition("=")
        results[name] = _without_paths(json.loads(Path(file).read_text(encoding="utf-8")))
    record = {
        "commands": wanted.command,
        "machine": machine(),
        "versions": {package: version(package) for package in PACKAGES},
        "results": results,
    }
    wanted.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _without_paths(value: Any) -> Any:
    """The same result; of an absolute path only its last part."""
    if isinstance(value, dict):
        return {key: _without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_paths(entry) for entry in value]
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return value


if __name__ == "__main__":
    main()
