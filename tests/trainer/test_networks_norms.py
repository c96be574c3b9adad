"""The norms that the paper's UNet can have."""

import json

import pytest
import torch
from torch import nn

from data_pipeline import WrongCall
from trainer.networks import build
from trainer.networks.synchronised import SynchronisedBatchNorm

NARROW = (4, 6, 8)


def unet(norm, **settings):
    torch.manual_seed(0)
    return build("unet", **({"widths": NARROW, "heads": 2, "norm": norm} | settings))


@pytest.fixture(scope="module")
def compared(run_ranks):
    """What two processes found, each with its part of a batch, beside one process with all of it."""
    return [json.loads(printed) for printed in run_ranks("synchronised.py", world=2)]


@pytest.mark.parametrize(
    ("what", "limit"),
    [
        ("norm", 1e-5),
        ("norm in double", 1e-12),
        ("norm far from zero", 1e-3),  # where a mean in single precision itself is not exact
        ("unet in double", 1e-10),
    ],
)
def test_two_processes_normalise_as_one_with_the_joined_batch(compared, what, limit):
    assert all(rank[what] < limit for rank in compared), compared


def test_features_stay_in_their_own_precision(compared):
    assert [rank["type"] for rank in compared] == ["torch.bfloat16"] * 2


def test_in_evaluation_no_process_waits_for_another(compared):
    assert compared[0]["evaluation"] == 0
    assert "evaluation" not in compared[1]


@pytest.mark.parametrize("training", [True, False])
def test_alone_synchronised_batch_norm_is_batch_norm(training):
    ours, plain = (unet(norm).train(training) for norm in ("sync_batch", "batch"))
    assert sum(isinstance(layer, SynchronisedBatchNorm) for layer in ours.modules()) == 10
    assert list(ours.state_dict()) == list(plain.state_dict())
    scans = torch.rand(3, 1, 16, 16)
    for one, other in zip(ours(scans), plain(scans), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(ours.buffers(), plain.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_norms_without_batch_statistics_treat_each_scan_alone(norm):
    network = unet(norm)
    scans = torch.rand(3, 1, 16, 24)
    for together, alone in zip(network(scans), network(scans[1:2]), strict=True):
        assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert list(network.buffers()) == []


def test_group_norm_has_groups_of_sixteen_channels_where_they_divide():
    with torch.device("meta"):
        network = unet("group", widths=(12, 32, 64, 7))
    norms = [layer for layer in network.modules() if isinstance(layer, nn.GroupNorm)]
    assert [(layer.num_channels, layer.num_groups) for layer in norms[::2]] == [
        (12, 3), (32, 2), (64, 4), (7, 7), (12, 3), (32, 2), (64, 4),
    ]  # fmt: skip


def test_instance_norm_comes_without_the_biases_that_it_takes_away():
    with torch.device("meta"):
        network = unet("instance")
    assert all(layer.affine for layer in network.modules() if isinstance(layer, nn.InstanceNorm2d))
    kernels = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    assert len(kernels) == 10
    assert all(layer.bias is None for layer in kernels)
    network = unet("instance")
    sum(stage.square().sum() for stage in network(torch.rand(2, 1, 16, 16))).backward()
    assert all(parameter.grad.abs().max() > 1e-6 for parameter in network.parameters())


@pytest.mark.parametrize("norm", ["layer", "", None])
def test_an_unknown_norm_is_answered_with_those_there_are(norm):
    with pytest.raises(WrongCall, match=f"norm {norm}: expected one of batch, sync_batch, instance, group"):
        unet(norm)


@pytest.mark.parametrize("widths", [(4, 6), (4, 6, 8), (2, 2, 3, 3, 4, 4)])
@pytest.mark.parametrize("norm", ["batch", "sync_batch", "instance", "group"])
def test_a_unet_of_any_depth_halves_once_less_than_it_has_levels(widths, norm):
    halvings = len(widths) - 1
    heads = min(4, halvings)
    with torch.device("meta"):
        network = unet(norm, widths=widths, heads=heads, in_channels=2)
        assert network.multiple == 2**halvings
        height, width = 2 * network.multiple, 3 * network.multiple
        logits = network(torch.zeros(2, 2, height, width))
    assert [tuple(stage.shape) for stage in logits] == [(2, 1, height >> n, width >> n) for n in range(heads)]
    with pytest.raises(WrongCall, match=f"heads {heads + 1}: expected 1 to {heads}"):
        unet(norm, widths=widths, heads=heads + 1)


@pytest.mark.parametrize("widths", [(), (8,)])
def test_one_level_makes_no_unet(widths):
    with pytest.raises(WrongCall, match="expected two levels or more"):
        build("unet", widths=widths)
