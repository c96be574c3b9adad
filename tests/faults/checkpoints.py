"""What checkpoints of a run in tests hold."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def checkpoints(output: Path) -> list[str]:
    """Their names, oldest first."""
    return sorted(path.name for path in (output / "checkpoints").glob("step-*"))


def tensors(output: Path, step: int) -> dict[str, np.ndarray]:
    """Everything that training goes on from, by its file and name."""
    folder = output / "checkpoints" / f"step-{step:08d}"
    return {
        f"{path.name}/{name}": values
        for path in sorted(folder.glob("*.safetensors"))
        for name, values in load_file(path).items()
    }


def same_to_the_bit(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether both hold the same bytes."""
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)
