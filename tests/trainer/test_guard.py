import pytest
import torch
from torch import Tensor, nn

from trainer.guard import Guard


def stepped(gradient: list[float], clip: float = 0.0) -> tuple[Tensor, Guard, torch.optim.Adam]:
    """A parameter of ones, its guard and its Adam after one step with a gradient."""
    parameter = nn.Parameter(torch.ones(len(gradient)))
    adam = torch.optim.Adam([parameter], lr=0.1, fused=True)
    guard = Guard(adam, clip, shared=False)
    parameter.grad = torch.tensor(gradient)
    adam.step()
    return parameter.detach(), guard, adam


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(broken: float):
    parameter = nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([parameter], lr=0.1, fused=True)
    guard = Guard(adam, clip=1.0, shared=False)
    parameter.grad = torch.tensor([1.0, 2.0, 3.0])
    adam.step()
    before = [parameter.detach().clone(), *(value.clone() for value in adam.state[parameter].values())]
    parameter.grad = torch.tensor([1.0, broken, 3.0])
    adam.step()
    assert guard.refused == 1
    after = [parameter.detach(), *adam.state[parameter].values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_step_after_a_refused_one_is_taken():
    parameter = nn.Parameter(torch.ones(1))
    adam = torch.optim.Adam([parameter], lr=0.1, fused=True)
    guard = Guard(adam, clip=0.0, shared=False)
    for gradient in (float("nan"), 2.0):
        parameter.grad = torch.tensor([gradient])
        adam.step()
    assert guard.refused == 0
    assert parameter.item() == pytest.approx(0.9)  # Adam's first step is its rate
    assert adam.state[parameter]["step"] == 1


def test_a_gradient_longer_than_the_limit_is_shortened_to_it():
    _, _, adam = stepped([3.0, 4.0], clip=1.0)
    (state,) = adam.state.values()
    assert (state["exp_avg"] / 0.1).tolist() == pytest.approx([0.6, 0.8], rel=1e-5)


def test_a_shorter_gradient_and_one_without_a_limit_stay():
    for clip in (10.0, 0.0):
        _, guard, adam = stepped([3.0, 4.0], clip)
        (state,) = adam.state.values()
        assert (state["exp_avg"] / 0.1).tolist() == pytest.approx([3.0, 4.0])
        assert guard.refused == 0
