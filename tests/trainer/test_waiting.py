import json

import pytest
import torch.distributed as dist

from tests.trainer.conftest import Ranks
from trainer.pulse import Pulse
from trainer.waiting import Apart, apart_in_one_line


def test_every_group_waits_as_long_as_was_said_last_and_says_so_in_one_line(run_ranks: Ranks):
    here, there = (json.loads(output.splitlines()[-1]) for output in run_ranks("waiting.py", world=2))

    seconds, said = here.pop("long")
    assert seconds > 0.9
    assert said == ""
    assert set(here) == {"clone", "host", "spare", "first"}
    for name, (seconds, said) in here.items():
        assert 0.5 <= seconds < 20, (name, seconds)
        assert said.startswith("rank 0 waited 0.5 s in vain for the others after step 17; "), name
        assert "training.stall_minutes" in said
    assert there["gone"][1].startswith("rank 1 lost the connection to another rank after step 17; ")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (dist.DistStoreError("wait timeout after 600000ms, keys: /1"), "rank 3 waited 600 s in vain for the others"),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), "rank 3 lost the connection to another rank"),
        (RuntimeError("Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc] refused"), "rank 3 lost the conn"),
    ],
)
def test_an_error_of_finding_each_other_is_told_likewise(error: RuntimeError, said: str):
    with pytest.raises(Apart) as told, apart_in_one_line(3, Pulse()):
        raise error
    assert str(told.value).startswith(said)
    assert "before the first step" in str(told.value)


def test_any_other_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match=r"^shape mismatch$"), apart_in_one_line(0, Pulse()):
        raise RuntimeError("shape mismatch")
