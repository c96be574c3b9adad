"""How a node learns its place from whoever started it."""

import pytest

from data_pipeline import WrongCall
from launch.node import Place, address_towards, interface_towards
from launch.place import place_by

OF_RANKS = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "node1", "MASTER_PORT": "4321"}


@pytest.mark.parametrize(
    ("way", "environment"),
    [
        ("deepspeed", OF_RANKS),
        ("kubeflow", OF_RANKS),
        (
            "trainer",
            {"PET_NODE_RANK": "1", "PET_NNODES": "3", "PET_MASTER_ADDR": "node1", "PET_MASTER_PORT": "4321"},
        ),
        (
            "slurm",
            {"SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "3", "MASTER_ADDR": "node1", "MASTER_PORT": "4321"},
        ),
    ],
)
def test_each_way_tells_the_same(way: str, environment: dict[str, str]) -> None:
    assert place_by(way, environment) == Place(node=1, nodes=3, address="node1", port=4321)
    for name in environment:
        with pytest.raises(WrongCall, match=f"--by {way}: {name} is not set"):
            place_by(way, {other: value for other, value in environment.items() if other != name})


def test_what_is_no_place_is_named() -> None:
    with pytest.raises(WrongCall, match="RANK is one, which is no number"):
        place_by("deepspeed", OF_RANKS | {"RANK": "one"})
    with pytest.raises(WrongCall, match="RANK is 3, and there are 3 nodes"):
        place_by("deepspeed", OF_RANKS | {"RANK": "3"})
    with pytest.raises(WrongCall, match="--by mpi is none of deepspeed, kubeflow, trainer, slurm"):
        place_by("mpi", OF_RANKS)


def test_the_interface_towards_this_machine_itself_is_the_loopback() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("no-such-host.invalid") is None
