"""A call of the command `sonotrain`, and how it ended."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """How a call of the command ended, and what it wrote."""

    status: int
    output: str
    errors: str

    @property
    def error(self) -> str:
        """The one line that tells what is wrong; nothing else may stand on stderr but progress."""
        assert "Traceback" not in self.errors
        (line,) = (line for line in self.errors.splitlines() if line.startswith("error: "))
        return line


Command = Callable[..., Outcome]
