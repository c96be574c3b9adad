import torch
from torch import nn

from trainer.buffers import joined_buffers


def test_what_a_norm_writes_is_in_the_joined_tensor_and_the_other_way_round():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(3))
    flat = joined_buffers(network)
    assert flat.tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    network[0](torch.full((2, 2, 4, 4), 5.0))
    assert flat[:2].tolist() == [0.5, 0.5]  # a tenth of the way from 0 to 5
    flat.fill_(7)
    assert network[1].running_var.tolist() == [7, 7, 7]
    assert network.state_dict()["1.running_mean"].tolist() == [7, 7, 7]


def test_a_network_without_statistics_has_none():
    assert joined_buffers(nn.Conv2d(1, 1, 1)).numel() == 0
