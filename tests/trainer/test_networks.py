import re

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as F

from data_pipeline import WrongCall
from trainer.config import load_config
from trainer.networks import NETWORKS, Discriminators, UNet, build, logit_map_side

NARROW = (4, 6, 8, 10, 12)
PAPER_WIDTHS = (64, 128, 256, 512)
PAPER_STRIDES = (2, 2, 2, 2, 2)


def parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def seasoned(network, *inputs):
    """The network after it has seen something, so that its batch norms do something in evaluation."""
    with torch.no_grad():
        for _ in range(3):
            network(*inputs)
    return network.eval()


# UNet ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "channels", "count"), [(1, 1, 31_042_369), (1, 3, 31_043_521), (4, 1, 31_043_268)])
def test_the_unet_has_the_papers_size(heads, channels, count):
    with torch.device("meta"):
        assert parameters(UNet(channels, heads=heads)) == count


def test_heads_on_the_coarser_stages_add_899_parameters():
    with torch.device("meta"):
        one, two, three, four = (parameters(UNet(heads=heads)) for heads in (1, 2, 3, 4))
    assert (two - one, three - two, four - three) == (128 + 1, 256 + 1, 512 + 1)
    assert four - one == 899


@pytest.mark.parametrize(("size", "channels"), [((32, 48), 1), ((64, 16), 3), ((16, 16), 1)])
def test_each_stage_has_half_the_side_of_the_finer_one(size, channels):
    logits = UNet(channels, NARROW)(torch.rand(2, channels, *size))
    assert [tuple(stage.shape) for stage in logits] == [(2, 1, size[0] >> n, size[1] >> n) for n in range(4)]


def test_fewer_heads_give_the_finest_stages():
    torch.manual_seed(0)
    network = seasoned(UNet(widths=NARROW), torch.rand(4, 1, 32, 32))
    fewer = UNet(widths=NARROW, heads=2).eval()
    fewer.load_state_dict(
        {name: value for name, value in network.state_dict().items() if not name.startswith("heads.")}, strict=False
    )
    fewer.heads.load_state_dict({name: value for name, value in network.heads.state_dict().items() if name[0] in "01"})
    scans = torch.rand(2, 1, 32, 32)
    for one, other in zip(fewer(scans), network(scans)[:2], strict=True):
        assert torch.equal(one, other)


def by_hand(weights, scans, training=False):
    """The UNet's forward, written with functions of torch on its named weights."""

    def norm(features, name):
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        if training:
            mean, variance = features.mean(dim=(0, 2, 3)), features.var(dim=(0, 2, 3), correction=0)
        scaled = (features - mean[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None]
        return scaled * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]

    def two_convolutions(features, name):
        for convolution, after in ((0, 1), (3, 4)):
            bias = weights[f"{name}.{convolution}.bias"]
            features = F.conv2d(features, weights[f"{name}.{convolution}.weight"], bias, padding=1)
            features = norm(features, f"{name}.{after}").clamp(min=0)
        return features

    def halved(features):
        return torch.stack([features[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(dim=0)

    def doubled(features, name):
        weight = weights[f"{name}.weight"]
        batch, _, height, width = features.shape
        patches = torch.einsum("bchw,cdij->bdhiwj", features, weight)
        return patches.reshape(batch, weight.shape[1], 2 * height, 2 * width) + weights[f"{name}.bias"][:, None, None]

    def head(features, stage):
        return F.conv2d(features, weights[f"heads.{stage}.weight"], weights[f"heads.{stage}.bias"])

    down1 = two_convolutions(scans, "down.0")
    down2 = two_convolutions(halved(down1), "down.1")
    down3 = two_convolutions(halved(down2), "down.2")
    down4 = two_convolutions(halved(down3), "down.3")
    bottom = two_convolutions(halved(down4), "down.4")
    up4 = two_convolutions(torch.cat([down4, doubled(bottom, "rise.3")], 1), "up.3")
    up3 = two_convolutions(torch.cat([down3, doubled(up4, "rise.2")], 1), "up.2")
    up2 = two_convolutions(torch.cat([down2, doubled(up3, "rise.1")], 1), "up.1")
    up1 = two_convolutions(torch.cat([down1, doubled(up2, "rise.0")], 1), "up.0")
    return [head(up1, 0), head(up2, 1), head(up3, 2), head(up4, 3)]


@pytest.mark.parametrize("training", [False, True])
def test_the_forward_is_that_of_a_unet_written_by_hand(training):
    torch.manual_seed(0)
    network = seasoned(UNet(3, NARROW).double(), torch.rand(4, 3, 32, 48).double()).train(training)
    scans = torch.rand(2, 3, 48, 32).double()
    expected = by_hand(dict(network.state_dict()), scans, training)
    for found, wanted in zip(network(scans), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9)


def test_every_parameter_of_the_unet_takes_part_in_each_stage_that_it_should():
    network = UNet(widths=NARROW)
    logits = network(torch.rand(2, 1, 32, 32))
    sum(stage.square().sum() for stage in logits).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


# Discriminators -----------------------------------------------------------------------------------------------------


def convolutions(discriminator) -> list[torch.nn.Conv2d]:
    return [layer for layer in discriminator if isinstance(layer, torch.nn.Conv2d)]


def test_each_stage_has_a_discriminator_with_the_papers_kernels():
    with torch.device("meta"):
        stages = Discriminators(PAPER_WIDTHS, PAPER_STRIDES).stages
    assert len(stages) == 4
    for stage in stages:
        layers = convolutions(stage)
        assert [layer.kernel_size for layer in layers] == [(7, 7), (5, 5), (4, 4), (4, 4), (4, 4)]
        assert [layer.stride for layer in layers] == [(2, 2)] * 5
        assert [layer.in_channels for layer in layers] == [1, 64, 128, 256, 512]
        assert [layer.out_channels for layer in layers] == [64, 128, 256, 512, 1]
        weights = 49 * 64 + 25 * 64 * 128 + 16 * (128 * 256 + 256 * 512 + 512)
        assert parameters(stage) == weights + 1 + 2 * (128 + 256 + 512) == 2_839_361


def test_no_weight_is_shared_between_discriminators():
    torch.manual_seed(0)
    network = Discriminators((4, 6, 8, 10), (2, 1, 1, 1, 1))
    storages = [parameter.data_ptr() for parameter in network.parameters()]
    assert len(set(storages)) == len(storages) == 4 * (5 + 1 + 2 * 3)
    firsts = [convolutions(stage)[0].weight for stage in network.stages]
    assert len({first.detach().numpy().tobytes() for first in firsts}) == 4
    network.judge([torch.rand(2, 1, 64 >> n, 64 >> n) for n in range(4)])[2].sum().backward()
    for number, stage in enumerate(network.stages):
        assert all((parameter.grad is not None) == (number == 2) for parameter in stage.parameters())


def test_discriminators_judge_each_stage_by_its_own_network():
    torch.manual_seed(0)
    network = Discriminators((4, 6, 8, 10), (2, 1, 1, 1, 1)).eval()
    truths = [torch.rand(3, 1, 64 >> n, 96 >> n) for n in range(4)]
    maps = [torch.rand(3, 1, 64 >> n, 96 >> n) for n in range(4)]
    of_truths, of_maps = network(truths, maps)
    for n, stage in enumerate(network.stages):
        assert torch.equal(of_truths[n], stage(truths[n]))
        assert torch.equal(of_maps[n], stage(maps[n]))
        sides = [logit_map_side(side >> n, (2, 1, 1, 1, 1)) for side in (64, 96)]
        assert of_maps[n].shape == (3, 1, *sides)
    for wrong in (maps[:3], [*maps, maps[0]]):
        with pytest.raises(ValueError, match="zip"):
            network.judge(wrong)


def test_a_discriminator_is_the_sequence_that_its_description_gives():
    torch.manual_seed(0)
    network = Discriminators((4, 6, 8, 10), (2, 1, 2, 1, 1)).double()
    seen = torch.rand(3, 1, 40, 56).double()
    layers = convolutions(network.stages[0])
    features = seen
    for number, (layer, stride, padding) in enumerate(zip(layers, (2, 1, 2, 1, 1), (3, 2, 1, 1, 1), strict=True)):
        assert (layer.bias is None) == (number < 4)
        features = F.conv2d(features, layer.weight, layer.bias, stride, padding)
        if number in (1, 2, 3):
            features = F.batch_norm(features, None, None, training=True)
        if number < 4:
            features = torch.where(features > 0, features, 0.2 * features)
    assert torch.allclose(network.stages[0](seen), features, rtol=1e-9, atol=1e-9)


def test_discriminators_start_as_segans_critic_does_but_for_the_logit():
    torch.manual_seed(0)
    *critic, last = convolutions(Discriminators(PAPER_WIDTHS, PAPER_STRIDES, stages=1).stages[0])
    for layer in critic:
        expected = (2 / (layer.kernel_size[0] ** 2 * layer.out_channels)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert abs(layer.weight.mean().item()) < 0.05 * expected
    bound = (16 * 512) ** -0.5
    assert 0.99 * bound < last.weight.abs().max().item() <= bound


side_strides = st.lists(st.integers(1, 3), min_size=5, max_size=5)


@given(st.integers(1, 150), side_strides)
def test_the_side_of_the_logit_map_is_that_of_the_real_networks(side, strides):
    expected = logit_map_side(side, strides)
    assume(expected >= 1)
    with torch.device("meta"):
        (logits,) = Discriminators((1, 1, 1, 1), strides, stages=1).judge([torch.zeros(2, 1, side, side)])
    assert logits.shape == (2, 1, expected, expected)


@given(st.integers(1, 60), side_strides)
def test_a_side_too_small_to_be_judged_is_told_as_below_one(side, strides):
    assume(logit_map_side(side, strides) < 1)
    network = Discriminators((1, 1, 1, 1), strides, stages=1)
    with torch.no_grad(), pytest.raises(RuntimeError):
        network.judge([torch.zeros(2, 1, side, side)])


@pytest.mark.parametrize("preset", ["paper", "quick"])
def test_the_presets_sizes_are_large_enough_for_every_stage(preset):
    config = load_config(preset)
    for stage in range(4):
        assert min(logit_map_side(side >> stage, config.discriminators.strides) for side in config.data.size) >= 1


# By name ------------------------------------------------------------------------------------------------------------


def test_a_network_is_built_by_its_name_with_its_settings():
    network = build("unet", 3, widths=NARROW, heads=2)
    assert isinstance(network, UNet)
    assert [stage.shape[1:] for stage in network(torch.rand(2, 3, 16, 16))] == [(1, 16, 16), (1, 8, 8)]
    assert isinstance(build("unet", in_channels=1, widths=list(NARROW)), UNet)


@pytest.mark.parametrize("name", ["unet++", "UNet", "resnet", ""])
def test_an_unknown_name_is_answered_with_those_there_are(name):
    there = "unet, deepres, msunet, unetpp, segnet, attunet, u2net, unet3p"
    with pytest.raises(WrongCall, match=f"^there is no network {re.escape(name)}; there are {there}$"):
        build(name)


@pytest.mark.parametrize(
    ("name", "setting", "has"),
    [
        ("unet", "depth", "in_channels, widths, heads, norm"),
        ("segnet", "widths", "in_channels"),
        ("u2net", "norm", "in_channels, heads"),
    ],
)
def test_a_setting_that_a_network_does_not_have_is_answered_with_those_it_has(name, setting, has):
    with pytest.raises(WrongCall, match=f"^the network {name} has no setting {setting}; it has {has}$"):
        build(name, **{setting: 3})


@pytest.mark.parametrize("settings", [{"widths": 5}, {"widths": ["a", "b"]}, {"heads": "two"}, {"widths": [4, -6]}])
def test_a_setting_with_a_value_that_cannot_be_is_refused_in_one_line(settings):
    with pytest.raises(WrongCall, match=r"^the network unet cannot be built: [^\n]*$"):
        build("unet", **settings)


def test_the_list_of_networks_cannot_be_changed():
    with pytest.raises(TypeError):
        NETWORKS["mine"] = UNet
