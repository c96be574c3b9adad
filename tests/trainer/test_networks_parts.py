"""What is unusual about each network of Table 1, beside the same written with functions of torch."""

from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainer.networks.attunet import AttentionGate
from trainer.networks.deepres import DeepRes, ResidualUnit
from trainer.networks.msunet import MultiScaleBlock
from trainer.networks.segnet import SegNet
from trainer.networks.u2net import U2Net, dilated_block, shrinking_block
from trainer.networks.unet3p import UNet3Plus
from trainer.networks.unetpp import UNetPlusPlus


@pytest.fixture(autouse=True)
def _same_weights():
    torch.manual_seed(0)


def normed(features, norm):
    return F.batch_norm(features, None, None, norm.weight, norm.bias, training=True)


def unit(features, convolution, dilation=1):
    """Convolution of any odd kernel, batch norm, ReLU, with the weights of one of ours."""
    layer, norm, _ = convolution
    padding = dilation * (layer.kernel_size[0] // 2)
    return normed(F.conv2d(features, layer.weight, layer.bias, padding=padding, dilation=dilation), norm).relu()


def halved(features, factor=2):
    batch, channels, height, width = features.shape
    return features.reshape(batch, channels, height // factor, factor, width // factor, factor).amax(dim=(3, 5))


def enlarged(features, factor=2):
    return F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)


def together(*features):
    return torch.cat(features, dim=1)


def assert_equal(found, wanted):
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9)


def with_any_norms(network):
    """Norm weights that differ from one and zero, so that a norm that is left out is seen."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return network.double()


# DeepRes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_residual_unit_adds_its_projected_input_as_it_came(first, stride):
    block = with_any_norms(ResidualUnit(3, 5, stride, first))
    features = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    before = features.clone()
    lead, (one, norm, _, other) = list(block.main)[:-4], list(block.main)[-4:]
    main = features if first else normed(features, lead[0]).relu()
    main = normed(F.conv2d(main, one.weight, one.bias, stride, 1), norm).relu()
    main = F.conv2d(main, other.weight, other.bias, padding=1)
    straight = torch.einsum("oi,bihw->bohw", block.shortcut[0].weight[:, :, 0, 0], features[..., ::stride, ::stride])
    straight = normed(straight + block.shortcut[0].bias[:, None, None], block.shortcut[1])
    assert_equal(block(features), main + straight)
    assert torch.equal(features, before)


def test_deepres_halves_three_times_and_doubles_by_the_nearest():
    network = DeepRes()
    seen = []
    for unit_ in (*network.down, *reversed(network.up)):
        unit_.register_forward_hook(lambda _, given, made: seen.append((tuple(given[0].shape), tuple(made.shape))))
    with torch.no_grad():
        network(torch.rand(1, 1, 16, 24))
    assert [made[1:] for _, made in seen] == [
        (64, 16, 24), (128, 8, 12), (256, 4, 6), (512, 2, 3), (256, 4, 6), (128, 8, 12), (64, 16, 24),
    ]  # fmt: skip
    assert [given[1] for given, _ in seen[4:]] == [768, 384, 192]
    assert network.rise(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2]]]]


# MSU-Net ------------------------------------------------------------------------------------------------------------


def test_a_multi_scale_block_joins_3x3_and_7x7_without_a_norm_at_the_end():
    block = with_any_norms(MultiScaleBlock(2, 3))
    features = torch.randn(2, 2, 9, 10, dtype=torch.float64)
    fine = unit(unit(features, list(block.fine)[:3]), list(block.fine)[3:])
    coarse = unit(unit(features, list(block.coarse)[:3]), list(block.coarse)[3:])
    assert [layer.kernel_size[0] for layer in (*block.fine, *block.coarse) if isinstance(layer, nn.Conv2d)] == [
        3,
        3,
        7,
        7,
    ]
    wanted = torch.einsum("oi,bihw->bohw", block.fuse.weight[:, :, 0, 0], together(fine, coarse))
    assert_equal(block(features), wanted + block.fuse.bias[:, None, None])


# UNet++ -------------------------------------------------------------------------------------------------------------


class NarrowUNetPlusPlus(UNetPlusPlus):
    widths: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6)


def test_a_node_of_unetpp_sees_its_whole_row_and_the_node_below():
    network = NarrowUNetPlusPlus(heads=4).double().eval()
    scans = torch.rand(1, 1, 16, 32, dtype=torch.float64)
    nodes, rises = network.nodes, network.rises
    x00 = nodes["00"](scans)
    x10 = nodes["10"](halved(x00))
    x20 = nodes["20"](halved(x10))
    x30 = nodes["30"](halved(x20))
    x40 = nodes["40"](halved(x30))
    x01 = nodes["01"](together(rises["01"](x10), x00))
    x11 = nodes["11"](together(rises["11"](x20), x10))
    x21 = nodes["21"](together(rises["21"](x30), x20))
    x31 = nodes["31"](together(rises["31"](x40), x30))
    x02 = nodes["02"](together(rises["02"](x11), x00, x01))
    x12 = nodes["12"](together(rises["12"](x21), x10, x11))
    x22 = nodes["22"](together(rises["22"](x31), x20, x21))
    x03 = nodes["03"](together(rises["03"](x12), x00, x01, x02))
    x13 = nodes["13"](together(rises["13"](x22), x10, x11, x12))
    x04 = nodes["04"](together(rises["04"](x13), x00, x01, x02, x03))
    for head, found, node in zip(network.heads, network(scans), (x04, x03, x02, x01), strict=True):
        assert_equal(found, F.conv2d(node, head.weight, head.bias))


def test_unetpp_drops_half_while_it_learns_and_starts_as_published():
    network = UNetPlusPlus()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels > 1 and layer.out_channels > 1:
            assert layer.weight.std().item() == pytest.approx((2 / (9 * layer.in_channels)) ** 0.5, rel=0.03)
            assert not layer.bias.any()
    node = network.nodes["10"]
    features = torch.rand(1, 32, 64, 64)
    silent = [(node.train(training)(features) == 0).float().mean().item() for training in (True, False)]
    assert silent[0] == pytest.approx(0.5 + 0.5 * silent[1], abs=0.1)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


# SegNet -------------------------------------------------------------------------------------------------------------


class NarrowSegNet(SegNet):
    encoder = ((3, 3), (4, 4), (5, 5, 5), (6, 6, 6), (6, 6, 6))
    decoder = ((6, 6, 6), (6, 6, 5), (5, 5, 4), (4, 3), (3,))


def test_segnet_puts_features_back_where_the_same_stages_maxima_were():
    network = with_any_norms(NarrowSegNet())
    pooled, unpooled = [], []
    network.pool.register_forward_hook(lambda _, given, made: pooled.append((given[0], made[0])))
    network.unpool.register_forward_hook(lambda _, given, made: unpooled.append((given[0], made)))
    network(torch.rand(2, 1, 32, 64, dtype=torch.float64))
    assert len(pooled) == len(unpooled) == 5
    for (full, maxima), (small, put_back) in zip(pooled, reversed(unpooled), strict=True):
        assert full.shape == put_back.shape
        assert torch.equal(halved(put_back.abs()), small.abs())
        # Where several of a window are the largest (zeros, mostly), the first of them counts.
        windows = F.unfold(full.flatten(0, 1).unsqueeze(1), 2, stride=2)
        there = F.one_hot(windows.argmax(dim=1), 4).movedim(-1, 1)
        wanted = F.fold(there * small.flatten(0, 1).flatten(1).unsqueeze(1), full.shape[-2:], 2, stride=2)
        assert torch.equal(put_back, wanted.reshape(full.shape))
        assert torch.equal(maxima, halved(full))


def test_segnet_has_vggs_thirteen_convolutions_their_mirror_and_a_bare_last_one():
    with torch.device("meta"):
        network = SegNet()
    widths = [[block[n][0].out_channels for n in range(len(block))] for block in (*network.down, *network.up)]
    assert widths[:5] == [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3]
    assert widths[5:] == [[512] * 3, [512, 512, 256], [256, 256, 128], [128, 64], [64]]
    assert sum(isinstance(layer, nn.Conv2d) for layer in network.modules()) == 26
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) == 25


# AttU-Net -----------------------------------------------------------------------------------------------------------


def test_a_gate_weighs_each_pixel_of_a_skip_by_the_skip_and_the_decoder():
    gate = with_any_norms(AttentionGate(6))
    skip, decoder = torch.randn(2, 2, 6, 5, 7, dtype=torch.float64)
    _, convolution, norm, _ = gate.weight
    of_skip = normed(F.conv2d(skip, gate.of_skip[0].weight, gate.of_skip[0].bias), gate.of_skip[1])
    of_decoder = normed(F.conv2d(decoder, gate.of_decoder[0].weight, gate.of_decoder[0].bias), gate.of_decoder[1])
    both = (of_skip + of_decoder).relu()
    assert both.shape[1] == 3
    weight = torch.sigmoid(normed(F.conv2d(both, convolution.weight, convolution.bias), norm))
    assert weight.shape == (2, 1, 5, 7)
    assert_equal(gate(skip, decoder), skip * weight)


def test_a_closed_gate_lets_nothing_of_a_skip_through():
    gate = AttentionGate(6)
    skip, decoder = torch.randn(2, 2, 6, 5, 7)
    nn.init.constant_(gate.weight[2].bias, -200.0)
    assert not gate(skip, decoder).any()
    nn.init.constant_(gate.weight[2].bias, 200.0)
    assert torch.equal(gate(skip, decoder), skip)


# U2-Net -------------------------------------------------------------------------------------------------------------


def test_a_shrinking_block_is_a_small_u_net_added_to_what_it_saw():
    block = with_any_norms(shrinking_block(4, 2, 3, 5))
    features = torch.randn(2, 2, 12, 20, dtype=torch.float64)
    entered = unit(features, block.enter)
    one = unit(entered, block.down[0])
    two = unit(halved(one), block.down[1])
    three = unit(halved(two), block.down[2])
    bottom = unit(three, block.down[3], dilation=2)
    rising = unit(together(bottom, three), block.up[2])
    rising = unit(together(enlarged(rising), two), block.up[1])
    rising = unit(together(enlarged(rising), one), block.up[0])
    assert_equal(block(features), rising + entered)


def test_a_dilated_block_keeps_its_size_and_looks_further_instead():
    block = with_any_norms(dilated_block(2, 3, 5))
    features = torch.randn(2, 2, 9, 11, dtype=torch.float64)
    entered = unit(features, block.enter)
    one = unit(entered, block.down[0])
    two = unit(one, block.down[1], dilation=2)
    three = unit(two, block.down[2], dilation=4)
    bottom = unit(three, block.down[3], dilation=8)
    rising = unit(together(bottom, three), block.up[2], dilation=4)
    rising = unit(together(rising, two), block.up[1], dilation=2)
    rising = unit(together(rising, one), block.up[0])
    assert_equal(block(features), rising + entered)


def test_blocks_of_u2net_shrink_as_deep_as_the_paper_has_them():
    with torch.device("meta"):
        network = U2Net()
    assert [len(block.down) for block in network.down] == [7, 6, 5, 4, 4, 4]
    assert [len(block.down) for block in network.up] == [7, 6, 5, 4, 4]
    assert [block.shrinking for block in (*network.down, *network.up)] == [True] * 4 + [False] * 2 + [True] * 4 + [
        False
    ]


def test_the_fused_map_of_u2net_is_made_of_all_six_side_maps():
    network = U2Net(heads=4).eval()
    sides = []
    for side in network.sides:
        side.register_forward_hook(lambda _, given, made: sides.append(made))
    with torch.no_grad():
        fused, *given = network(torch.rand(1, 1, 64, 96))
        assert [tuple(side.shape[2:]) for side in sides] == [(64 >> n, 96 >> n) for n in range(6)]
        for found, side in zip(given, sides[1:4], strict=True):
            assert torch.equal(found, side)
        whole = together(sides[0], *(enlarged(side, 2**n) for n, side in enumerate(sides) if n))
        wanted = torch.einsum("i,bihw->bhw", network.fuse.weight[0, :, 0, 0], whole) + network.fuse.bias
        assert torch.allclose(fused[:, 0], wanted, atol=1e-5)


# UNet 3+ ------------------------------------------------------------------------------------------------------------


class NarrowUNet3Plus(UNet3Plus):
    widths: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6)


def test_each_stage_of_unet3p_sees_finer_encoder_maps_pooled_and_coarser_decoder_maps_enlarged():
    network = with_any_norms(NarrowUNet3Plus(heads=4))
    scans = torch.rand(1, 1, 32, 64, dtype=torch.float64)
    e1 = network.down[0](scans)
    e2 = network.down[1](halved(e1))
    e3 = network.down[2](halved(e2))
    e4 = network.down[3](halved(e3))
    e5 = network.down[4](halved(e4))

    def stage(number, *maps):
        looks = [look[1] for look in network.up[number - 1].looks]
        looked = [unit(features, look) for features, look in zip(maps, looks, strict=True)]
        assert all(features.shape[1] == 64 for features in looked)
        return unit(together(*looked), network.up[number - 1].fuse)

    d4 = stage(4, halved(e1, 8), halved(e2, 4), halved(e3), e4, enlarged(e5))
    d3 = stage(3, halved(e1, 4), halved(e2), e3, enlarged(d4), enlarged(e5, 4))
    d2 = stage(2, halved(e1), e2, enlarged(d3), enlarged(d4, 4), enlarged(e5, 8))
    d1 = stage(1, e1, enlarged(d2), enlarged(d3, 4), enlarged(d4, 8), enlarged(e5, 16))
    for head, found, features in zip(network.heads, network(scans), (d1, d2, d3, d4), strict=True):
        assert_equal(found, F.conv2d(features, head.weight, head.bias, padding=1))
