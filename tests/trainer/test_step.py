import json

import pytest
import torch

from tests.trainer.conftest import Ranks


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def differences(request: pytest.FixtureRequest, run_ranks: Ranks) -> dict[str, dict[str, float]]:
    """By ZeRO stage and accumulation, how far the engines are from plain PyTorch after three iterations."""
    return json.loads(run_ranks("iterations.py", world=request.param)[0].splitlines()[-1])


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
class TestIteration:
    """The literal reading of the paper; the other readings all at once are below."""

    def test_weights_equal_those_of_plain_pytorch(self, differences, zero, accumulation):
        measured = differences[f"{zero} {accumulation}"]
        assert measured["generator"] < 1e-5
        assert measured["discriminators"] < 1e-5

    def test_gradients_have_the_scale_of_plain_pytorch(self, differences, zero, accumulation):
        measured = differences[f"{zero} {accumulation}"]
        assert measured["generator moments"] < 1e-4
        assert measured["discriminators moments"] < 1e-4

    def test_discriminators_hold_no_gradient_after_the_generators_step(self, differences, zero, accumulation):
        assert differences[f"{zero} {accumulation}"]["held"] is False


@pytest.mark.parametrize("zero", [0, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_other_readings_with_clipping_equal_plain_pytorch(differences, zero, accumulation):
    """Three stages, image x mask with noise, smoothing, the non-saturating form, group norm, norms clipped at 0.5."""
    measured = differences[f"{zero} {accumulation} readings"]
    assert measured["generator"] < 1e-5
    assert measured["discriminators"] < 1e-5
    assert measured["generator moments"] < 1e-4
    assert measured["discriminators moments"] < 1e-4


def test_the_loss_curve_of_two_processes_is_that_of_one_over_fifty_steps(run_ranks: Ranks):
    """The same global batches with a norm of each scan alone, at ZeRO 0 and 2."""
    one, two = (
        torch.tensor(json.loads(run_ranks("fifty_steps.py", world=world)[0].splitlines()[-1])) for world in (1, 2)
    )
    assert one.shape == (50, 2)
    assert not torch.equal(one[0], one[-1])
    torch.testing.assert_close(two, one, atol=1e-4, rtol=0)


def test_compiled_networks_learn_what_they_do_as_they_are_under_the_same_names(run_ranks: Ranks):
    assert float(run_ranks("compiled.py")[0].splitlines()[-1]) < 1e-5
