"""The networks of the paper's Table 1: sizes, shapes, and that all of each learns."""

from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data_pipeline import WrongCall
from trainer.networks import NETWORKS, Network, build

# Trainable parameters with one map at one and at three input channels, counted on the published implementations.
PUBLISHED = {
    "unet": (31_042_369, 31_043_521),
    "deepres": (8_222_529, 8_223_809),
    "msunet": (47_084_545, 47_088_257),
    "unetpp": (9_041_601, 9_042_177),
    "segnet": (29_442_433, 29_443_585),
    "attunet": (34_877_421, 34_878_573),
    "u2net": (44_008_717, 44_009_869),
    "unet3p": (26_970_625, 26_971_777),
}
# Thousand millions of multiplications in the convolutions for one scan of 256x256, counted likewise.
COSTS = {
    "unet": 48.09,
    "deepres": 45.14,
    "msunet": 75.82,
    "unetpp": 29.75,
    "segnet": 39.94,
    "attunet": 66.35,
    "u2net": 37.43,
    "unet3p": 197.58,
}
MULTIPLES = dict.fromkeys(PUBLISHED, 16) | {"deepres": 8, "segnet": 32, "u2net": 32}
AT_FULL_SIZE = {"unetpp"}
EVERY = [(name, heads) for name, kind in NETWORKS.items() for heads in range(1, kind.stages + 1)]


def made(name: str, in_channels: int = 1, heads: int = 1) -> Network:
    return build(name, in_channels, **({"heads": heads} if NETWORKS[name].stages > 1 else {}))


def test_there_are_the_papers_eight():
    assert dict(NETWORKS).keys() == PUBLISHED.keys()
    assert {name for name, kind in NETWORKS.items() if kind.stages == 4} == {"unet", "unetpp", "u2net", "unet3p"}
    assert {kind.stages for kind in NETWORKS.values()} == {1, 4}


@pytest.mark.parametrize(("name", "counts"), PUBLISHED.items())
def test_a_network_has_the_published_number_of_parameters(name, counts):
    with torch.device("meta"):
        for channels, count in zip((1, 3), counts, strict=True):
            network = made(name, channels)
            assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == count


@pytest.mark.parametrize(("name", "cost"), COSTS.items())
def test_a_network_computes_as_much_as_the_published_one(name, cost):
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        made(name)(torch.zeros(1, 1, 256, 256))
    assert round(counted.get_total_flops() / 2e9, 2) == cost


@pytest.mark.parametrize(("name", "each"), [("unetpp", 32 + 1), ("u2net", 0), ("unet3p", 9 * 320 + 1)])
def test_each_further_head_adds_one_convolution(name, each):
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in made(name, heads=heads).parameters()) for heads in (1, 2, 3, 4)
        ]
    assert [more - fewer for fewer, more in pairwise(counts)] == [each] * 3


@pytest.mark.parametrize(("name", "heads"), EVERY)
def test_logits_come_finest_first_and_every_parameter_is_reached_by_their_gradients(name, heads):
    with torch.device("meta"):
        network = made(name, 3, heads)
        assert network.multiple == MULTIPLES[name]
        height, width = 2 * network.multiple, 3 * network.multiple
        logits = network(torch.zeros(2, 3, height, width))
        scales = [0 if name in AT_FULL_SIZE else stage for stage in range(heads)]
        assert [tuple(stage.shape) for stage in logits] == [(2, 1, height >> n, width >> n) for n in scales]
        sum(stage.sum() for stage in logits).backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_one_small_scan_moves_every_weight(name):
    torch.manual_seed(0)
    network = made(name, heads=NETWORKS[name].stages)
    side = 64 if MULTIPLES[name] == 32 else 32
    logits = network(torch.rand(1, 1, side, side))
    sum(stage.sigmoid().square().mean() for stage in logits).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), key
        # A bias in front of a norm has no effect, and the published networks have it all the same.
        assert parameter.grad.abs().max() > 0 or key.endswith("bias"), key


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_no_probabilities(name):
    torch.manual_seed(0)
    network = made(name)
    last = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d) and layer.out_channels == 1][-1]
    with torch.no_grad():
        last.bias.fill_(-50.0)
        assert (network.eval()(torch.rand(1, 1, 64, 64))[0] < -10).all()


@pytest.mark.parametrize("name", ["unet", "unetpp", "u2net", "unet3p"])
@pytest.mark.parametrize("heads", [0, 5, -1])
def test_a_number_of_heads_that_cannot_be_is_refused(name, heads):
    with (
        torch.device("meta"),
        pytest.raises(WrongCall, match=f"{name} cannot be built: heads {heads}: expected 1 to 4"),
    ):
        build(name, heads=heads)
