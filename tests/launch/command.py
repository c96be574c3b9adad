"""A call of the command `sonotrain`, how it ended, and scans to call it on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data_pipeline.phantom import phantom


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


def write_scans(folder: Path, count: int) -> Path:
    """Scans of as many patients as BUS-BRA lays them out, without its tables; the folder, which is made."""
    folder.mkdir()
    for number in range(count):
        scan = phantom(number, (48, 64))
        Image.fromarray(scan.image).save(folder / f"bus_{number:04d}-l.png")
        Image.fromarray(scan.mask).save(folder / f"mask_{number:04d}-l.png")
    return folder
