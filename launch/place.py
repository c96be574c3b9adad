"""How a node learns where it stands in its job: from variables that whoever started it has set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from data_pipeline import WrongCall
from launch.node import Place

Way = Literal["deepspeed", "kubeflow", "trainer", "slurm"]
"""Who starts nodes: the DeepSpeed launcher, Kubeflow's PyTorchJob, Kubeflow's Trainer, srun."""

# The node's number, how many there are, and the first one's address and port. DeepSpeed and PyTorchJob speak of ranks
# where we have nodes, since they start one process of ours on each.
_VARIABLES: dict[str, tuple[str, str, str, str]] = {
    "deepspeed": ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "kubeflow": ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "trainer": ("PET_NODE_RANK", "PET_NNODES", "PET_MASTER_ADDR", "PET_MASTER_PORT"),
    "slurm": ("SLURM_NODEID", "SLURM_STEP_NUM_NODES", "MASTER_ADDR", "MASTER_PORT"),
}


def place_by(way: str, environment: Mapping[str, str]) -> Place:
    """A node's place as those variables tell it. Raises WrongCall, naming the one that is missing or no number."""
    if way not in get_args(Way):
        raise WrongCall(f"--by {way} is none of {', '.join(get_args(Way))}")
    names = _VARIABLES[way]
    node, nodes, port = (_number(environment, way, names[position]) for position in (0, 1, 3))
    if node >= nodes:
        raise WrongCall(f"{names[0]} is {node}, and there are {nodes} nodes, counted from 0")
    return Place(node, nodes, _value(environment, way, names[2]), port)


def _value(environment: Mapping[str, str], way: str, name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise WrongCall(f"--by {way}: {name} is not set, which tells a node its place")
    return value


def _number(environment: Mapping[str, str], way: str, name: str) -> int:
    value = _value(environment, way, name)
    if not value.isdecimal():
        raise WrongCall(f"--by {way}: {name} is {value}, which is no number")
    return int(value)
