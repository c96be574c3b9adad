"""What a study has on each node of its cluster: a process that looks whether trials can run there, and keeps scans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from data_pipeline import Fault, open_store
from trainer.config import Config
from trainer.feasible import dataset_of
from trainer.loop import memory_for

Versions = Callable[[], Mapping[str, str]]
"""Tells what is installed where it is called: versions by name."""


class Keeper:
    """Runs as a Ray actor that takes no cores."""

    def __init__(self) -> None:
        self._kept = ExitStack()

    def look(
        self,
        versions: Versions,
        expected: Mapping[str, str],
        config: Config,
        digest: str,
        shared: str,
        token: str,
        secret: bytes,
    ) -> str:
        """What is wrong with this node, and what to do about it; nothing where a trial can run.

        expected: what `versions` has to tell. digest: that of the dataset. token: a name in `shared`, where `secret`
        has been written.
        """
        here = versions()
        for name, version in expected.items():
            if here.get(name) != version:
                return f"has {name} {here.get(name, 'missing')}, the driver has {version}; install the same"
        try:
            if not open_store(shared).exists(token) or open_store(shared).read(token) != secret:
                raise Fault(shared)
        except Fault:
            return f"{shared} is not what the driver has there; share it between machines, or set tune.storage to s3://"
        try:
            found = dataset_of(config).index.digest
        except Fault as failed:
            return f"data.uri cannot be read there: {failed}"
        if found != digest:
            return f"data.uri={config.data.uri} is another dataset there ({found[:12]}, the driver's is {digest[:12]})"
        return ""

    def keep(self, config: Config) -> str:
        """Keep the node's memory for the scans of a configuration open, so that no trial is the last to leave it."""
        self._kept.enter_context(memory_for(config, dataset_of(config)))
        return ""

    def leave(self) -> None:
        """Let go of it, and remove it if no trial uses it any more."""
        self._kept.close()
