import json

import pytest

from tests.trainer.conftest import Ranks

STAGES = {"unet": 4, "unetpp": 4, "u2net": 4, "unet3p": 4, "segnet": 1, "deepres": 1, "msunet": 1, "attunet": 1}


@pytest.fixture(scope="module")
def trained(run_ranks: Ranks) -> dict[str, dict[str, object]]:
    """What an iteration came to, by network and objective."""
    return json.loads(run_ranks("all_networks.py")[0].splitlines()[-1])


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize(
    ("objective", "wanted", "judged"),
    [("literal", 4, True), ("other readings", 3, True), ("without adversary", 2, False)],
)
def test_each_network_learns_everywhere_under_every_objective(trained, name, objective, wanted, judged):
    measured = trained[f"{name}, {objective}"]
    assert measured == {
        "stages": min(wanted, STAGES[name]),
        "judged": judged,
        "finite": True,
        "unmoved": [],
    }
