import math

import pytest
import torch
from torch import nn

from trainer.config import Optimizer, load_config
from trainer.engines import Engines, has_adversary, rate_factor, rate_scale
from trainer.networks.settings import network_settings, supervised_stages


class TestRates:
    def test_a_constant_rate_stays_and_a_cosine_goes_down_to_zero(self):
        assert [rate_factor(Optimizer(), step, 10) for step in (0, 5, 9)] == [1, 1, 1]
        cosine = Optimizer(schedule="cosine")
        assert [rate_factor(cosine, step, 10) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0])
        assert rate_factor(cosine, 2, 10) == pytest.approx(0.5 * (1 + math.cos(0.2 * math.pi)))

    def test_a_polynomial_rate_is_a_power_of_what_is_left(self):
        polynomial = Optimizer(schedule="polynomial", power=2)
        assert [rate_factor(polynomial, step, 10) for step in (0, 5, 9)] == pytest.approx([1, 0.25, 0.01])

    def test_warm_up_rises_evenly_and_then_leaves_the_schedule_alone(self):
        warmed = Optimizer(warmup_steps=4, schedule="polynomial", power=1)
        assert [rate_factor(warmed, step, 10) for step in (0, 1, 3, 5)] == pytest.approx([0.25, 0.45, 0.7, 0.5])

    @pytest.mark.parametrize(("scaling", "scale"), [("none", 1), ("linear", 16), ("square_root", 4)])
    def test_rates_grow_with_the_global_batch_as_asked(self, scaling, scale):
        assert rate_scale(Optimizer(rate_scaling=scaling, rates_for_batch=4), 64) == scale


class TestRunningAverage:
    def test_moves_by_the_share_of_its_decay_and_faster_at_first(self):
        followed = nn.BatchNorm2d(1)
        average = nn.BatchNorm2d(1).requires_grad_(False)
        with torch.no_grad():
            followed.weight.fill_(3)
            followed.running_mean.fill_(10)
        engines = Engines([_Side(followed)], average, None)
        engines.follow(0.99, step=0)  # a tenth is kept at the first step
        assert average.weight.item() == pytest.approx(1 + 0.9 * 2)
        assert average.running_mean.item() == pytest.approx(9)
        engines.follow(0.5, step=100_000)
        assert average.weight.item() == pytest.approx((2.8 + 3) / 2)
        assert followed.weight.item() == 3
        assert engines.network_to_use() is average


class _Side:
    """A side without an engine: what follow() looks at."""

    def __init__(self, module: nn.Module) -> None:
        self.engine = self
        self.module = module


class TestStages:
    def test_a_network_is_supervised_at_the_outputs_that_it_has(self):
        for name, stages in {"unet": 4, "unetpp": 4, "u2net": 4, "unet3p": 4, "segnet": 1, "deepres": 1}.items():
            network = load_config("quick", [f"network.name={name}"]).network
            assert supervised_stages(network, 4) == stages
            assert supervised_stages(network, 1) == 1

    def test_a_shallow_unet_has_fewer_stages_than_the_paper(self):
        network = load_config("quick", ["network.widths=[4, 8, 8]"]).network
        assert supervised_stages(network, 4) == 2
        assert network_settings(network, 4)["heads"] == 2

    def test_there_is_no_adversary_where_no_supervised_stage_has_a_weight(self):
        objective = load_config("quick", ["objective.beta=[0, 0, 0, 0.1]"]).objective
        assert has_adversary(objective, 4)
        assert not has_adversary(objective, 3)
