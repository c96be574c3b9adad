"""Options that are handed on to sbatch, as far as they concern what sonotrain asks for itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from data_pipeline import WrongCall

# Options of sbatch that a launch has of its own, under this name.
_OURS = {
    "-N": "--nodes or --elastic",
    "-n": "--procs, which counts on each node",
    "--ntasks": "--procs, which counts on each node",
    "--ntasks-per-node": "--procs",
    "-t": "--time-limit",
    "--time": "--time-limit",
    "-D": "--workdir",
    "--chdir": "--workdir",
    "-a": "--array, which takes the folds from the configuration",
    "-W": "--wait",
    "--wrap": "the verb behind --",
    "--test-only": "--dry-run",
}

_GPUS = ("-G", "--gres", "--gpus", "--gpus-per-node", "--gpus-per-task", "--gpus-per-socket")


def require_no_clash(passed_on: Sequence[str], environment: Sequence[str]) -> None:
    """Raise WrongCall for what a launch has an option of its own for, and for a word that belongs to no option."""
    for name, _ in _options(passed_on):
        if name in _OURS:
            raise WrongCall(f"{name}: under launch slurm it is written {_OURS[name]}")
        if name == "--export" and environment:
            raise WrongCall(
                "--export and --env say the same; add to --export the names of --env, or leave out --export"
            )


def partition_names(passed_on: Sequence[str]) -> list[str]:
    """The partitions that are named, also by sbatch's own variable."""
    named = os.environ.get("SBATCH_PARTITION", "")
    for name, value in _options(passed_on):
        if name in ("-p", "--partition"):
            named = value
    return [each for each in named.split(",") if each]


def asks_for_gpus(passed_on: Sequence[str]) -> bool:
    """Whether GPUs, or none, are asked for in sbatch's own words."""
    by_variable = any(f"SBATCH_{option.strip('-').upper().replace('-', '_')}" in os.environ for option in _GPUS[1:])
    return by_variable or any(name in _GPUS for name, _ in _options(passed_on))


def _options(passed_on: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option's name and its value, which is empty for one that has none."""
    words = iter(passed_on)
    open_option = ""
    for word in words:
        if not word.startswith("-"):
            if not open_option:
                raise WrongCall(f"{word} is neither an option nor the value of one; the verb stands behind --")
            yield open_option, word
            open_option = ""
            continue
        if open_option:
            yield open_option, ""
        open_option = ""
        if word.startswith("--"):
            name, equals, value = word.partition("=")
        else:
            name, value = word[:2], word[2:]
            equals = value
        if equals:
            yield name, value
        else:
            open_option = name
    if open_option:
        yield open_option, ""
