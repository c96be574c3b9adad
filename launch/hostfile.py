"""DeepSpeed's hostfile, which names machines and the processes that each has room for, and what of it is used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from data_pipeline import WrongCall

Slots = dict[str, tuple[int, ...]]
"""Of each host, in order, the numbers of its slots: with GPUs those of its devices. No host is without any."""

_ENTRY = re.compile(r"(\S+)\s+slots=(\S+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def read_hostfile(path: Path) -> Slots:
    """The hosts of a file of lines `NAME slots=N`; # begins a comment.

    Raises WrongCall naming the line that is something else, names a host again, or gives it no slots.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as wrong:
        reason = wrong.strerror if isinstance(wrong, OSError) else "it is not text"
        raise WrongCall(f"{path} cannot be read as a hostfile: {reason}") from wrong
    hosts: Slots = {}
    lines_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        where = f"{path}, line {number}"
        name, slots = _read_entry(entry, where)
        if name in hosts:
            raise WrongCall(f"{where}: {name} stands in line {lines_of[name]} already; name each host once")
        hosts[name], lines_of[name] = tuple(range(slots)), number
    if not hosts:
        raise WrongCall(f"{path} names no host; write a line NAME slots=N for each")
    return hosts


def chosen(hosts: Slots, include: str = "", exclude: str = "") -> Slots:
    """What is left of hosts, in their order, as DeepSpeed's --include or --exclude has it.

    Both are NAME[:SLOT,SLOT...], joined by @; a name alone means all of its slots. Raises WrongCall for a host or slot
    that is not there, for both at once, and where nothing is left.
    """
    if include and exclude:
        raise WrongCall("--include and --exclude contradict each other; give one of them")
    if not include and not exclude:
        return hosts
    option, text = ("--include", include) if include else ("--exclude", exclude)
    named = _named(hosts, text, option)
    left = {
        name: tuple(slot for slot in slots if (slot in named.get(name, ())) == bool(include))
        for name, slots in hosts.items()
    }
    left = {name: slots for name, slots in left.items() if slots}
    if not left:
        raise WrongCall(f"{option} {text} leaves no host of {', '.join(hosts)}")
    return left


def _read_entry(entry: str, where: str) -> tuple[str, int]:
    found = _ENTRY.fullmatch(entry)
    name = entry.split()[0]
    if not _NAME.fullmatch(name):
        raise WrongCall(f"{where}: {name} is no name of a host")
    if not found:
        raise WrongCall(f"{where}: {entry!r} says no slots; write {name} slots=N, the processes that it has room for")
    slots = found[2]
    if not (slots.isascii() and slots.isdecimal()):
        raise WrongCall(f"{where}: slots={slots} is no number; write how many processes {name} has room for")
    if int(slots) == 0:
        raise WrongCall(f"{where}: {name} has no slots; leave the line out, or say slots=1 or more")
    return name, int(slots)


def _named(hosts: Slots, text: str, option: str) -> Mapping[str, set[int]]:
    """The slots that an option names."""
    named: dict[str, set[int]] = {}
    for part in text.split("@"):
        name, colon, slots = part.partition(":")
        if name not in hosts:
            raise WrongCall(f"{option} {text}: {name or 'nothing'} is no host of the hostfile ({', '.join(hosts)})")
        of_host = named.setdefault(name, set())
        for slot in slots.split(",") if colon else map(str, hosts[name]):
            if not (slot.isascii() and slot.isdecimal() and int(slot) in hosts[name]):
                last = hosts[name][-1]
                raise WrongCall(f"{option} {text}: {slot or 'nothing'} is no slot of {name}, which has 0 to {last}")
            of_host.add(int(slot))
    return named
