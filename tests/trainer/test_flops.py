import pytest

from trainer.config import load_config
from trainer.flops import flops_of_a_scan

SMALL = ["network.widths=[1, 1]", "discriminators.widths=[1, 1, 1, 1]", "discriminators.strides=[1, 1, 1, 1, 1]"]


def test_a_generator_alone_is_what_its_convolutions_come_to_by_hand():
    config = load_config("quick", [*SMALL, "data.size=[4, 4]", "objective.beta=[0, 0, 0, 0]"])
    # Multiplications: at 4x4 the first convolution 9 a pixel, then 9, after the rise 18, 9 and the head's 1; at 2x2
    # twice 9, and the transposed convolution one for each of 16 pixels above.
    first = 16 * 9
    others = 16 * (9 + 18 + 9 + 1) + 4 * (9 + 9) + 16
    # Backward costs as much again for the weights and once more for the inputs, which the scan needs not.
    assert flops_of_a_scan(config) == 2 * (2 * first + 3 * others)


def test_discriminators_judge_three_times_and_learn_from_two():
    """Truth and map forward and backward, then the map through weights that do not learn."""
    alone, both = (
        load_config("quick", [*SMALL, "data.size=[16, 16]", "objective.stages=1", f"objective.beta=[{beta}, 0, 0, 0]"])
        for beta in (0, 1)
    )
    # Sides of 16, 16, 15, 14, 13 pixels behind kernels of 7, 5, 4, 4, 4.
    layers = [16 * 16 * 49, 16 * 16 * 25, 15 * 15 * 16, 14 * 14 * 16, 13 * 13 * 16]
    forward = sum(layers)
    learning = 2 * (2 * forward + forward - layers[0])  # the weights' part, and the inputs' but for the first layer
    judging = 2 * forward
    assert flops_of_a_scan(both) - flops_of_a_scan(alone) == pytest.approx(2 * (learning + judging))
