"""What a check found, and what a node is told to look for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from data_pipeline import Fault
from trainer.config import Config

State = Literal["ok", "warning", "failed"]
"""Fit; fit with less than was asked for; not fit."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the table."""

    check: str
    """What was looked at."""
    state: State
    found: str
    advice: str = ""
    """What to do, where it is not ok."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The same in numbers, for machines: JSON values."""
    host: str = ""

    def on(self, host: str) -> Finding:
        """The same, of a host."""
        return replace(self, host=host)

    def as_json(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)


def failure(check: str, fault: Fault, advice: str) -> Finding:
    """What a fault tells; the advice is for one that has none of its own, behind its last semicolon."""
    found, semicolon, own = str(fault).rpartition("; ")
    return Finding(check, "failed", found, own) if semicolon else Finding(check, "failed", str(fault), advice)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The job that a node has to be fit for."""

    config: Config
    given: bool
    """Whether a person named the configuration, so that its dataset and its sizes mean something."""
    nodes: int
    processes: int
    """Processes of a node, at least 1."""

    @property
    def world(self) -> int:
        """All processes of the job."""
        return self.nodes * self.processes

    @property
    def shareable(self) -> Config:
        """The configuration, with the nearest smaller batch that the processes can share."""
        pieces = self.world * self.config.training.accumulation
        return self.config.replace(training__batch=max(pieces, self.config.training.batch // pieces * pieces))

    def as_json(self) -> dict[str, Any]:
        """What from_json reads."""
        return {
            "config": self.config.model_dump(mode="json"),
            "given": self.given,
            "nodes": self.nodes,
            "processes": self.processes,
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Wanted:
        """What as_json gave."""
        return cls(**{**told, "config": Config.model_validate(told["config"])})
