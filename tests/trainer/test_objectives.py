import math

import pytest
import torch
from torch import Tensor

from trainer.objectives import (
    adversarial_losses,
    dice_losses,
    discriminator_accuracies,
    discriminator_losses,
    judged_inputs,
    overall_loss,
    stage_maps,
    stage_truths,
)


def scan(*rows: list[float]) -> Tensor:
    """A batch of one map, [1, 1, H, W]."""
    return torch.tensor(rows).view(1, 1, len(rows), -1)


class TestDice:
    def test_equals_the_value_by_hand(self):
        # Both: .5 + 1 = 1.5. Either: (.5 + 1 + .25) + 2 = 3.75. One pixel of smoothing above and below.
        loss = dice_losses([scan([0.5, 1.0], [0.25, 0.0])], [scan([1.0, 1.0], [0.0, 0.0])])
        assert loss.tolist() == pytest.approx([1 - (2 * 1.5 + 1) / (3.75 + 1)])

    def test_is_zero_for_a_perfect_map(self):
        truth = scan([1.0, 0.0], [1.0, 1.0])
        assert dice_losses([truth], [truth]).tolist() == [0.0]

    def test_is_the_mean_over_scans_and_not_over_all_pixels(self):
        large, small = torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
        small[..., 0, 0] = 1
        maps = torch.cat((large, torch.zeros_like(small)))
        loss = dice_losses([maps], [torch.cat((large, small))])
        assert loss.tolist() == pytest.approx([(0 + (1 - 1 / 2)) / 2])

    def test_pushes_the_map_of_a_normal_scan_towards_nothing(self):
        seen = torch.full((1, 1, 4, 4), 0.3, requires_grad=True)
        dice_losses([seen], [torch.zeros(1, 1, 4, 4)]).sum().backward()
        assert seen.grad is not None
        assert bool((seen.grad > 0).all())


class TestAdversarial:
    def test_equals_the_value_by_hand(self):
        # A critic that says .8 and .2 "real" of predicted maps: the mean of log .2 and log .8.
        logits = scan([math.log(0.8 / 0.2), math.log(0.2 / 0.8)])
        assert adversarial_losses([logits]).tolist() == pytest.approx([(math.log(0.2) + math.log(0.8)) / 2])

    def test_falls_when_the_critic_takes_the_map_for_real(self):
        doubted, believed = adversarial_losses([scan([-2.0]), scan([2.0])]).tolist()
        assert believed < doubted

    def test_is_finite_for_a_critic_that_is_sure(self):
        assert torch.isfinite(adversarial_losses([scan([200.0]), scan([-200.0])])).all()


class TestDiscriminator:
    def test_equals_the_value_by_hand(self):
        real, predicted = scan([math.log(0.9 / 0.1)]), scan([math.log(0.3 / 0.7)])
        expected = -math.log(0.9) - math.log(1 - 0.3)
        assert discriminator_losses([real], [predicted]).tolist() == pytest.approx([expected])

    def test_of_a_guess_is_twice_the_logarithm_of_two(self):
        assert discriminator_losses([scan([0.0])], [scan([0.0])]).tolist() == pytest.approx([2 * math.log(2)])


def test_the_overall_loss_weighs_each_stage_by_the_papers_weights():
    dice, adversarial = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([-1.0, -2.0, -3.0, -4.0])
    loss = overall_loss(dice, adversarial, (1.0, 0.1, 0.1, 0.1), (0.05, 0.05, 0.05, 0.05))
    assert float(loss) == pytest.approx(0.4 + 0.1 * 0.6 - 0.05 * 10)


class TestStages:
    def test_maps_stay_at_their_resolution_or_are_enlarged(self):
        logits = [torch.zeros(2, 1, 16 >> n, 32 >> n) for n in range(4)]
        assert [seen.shape[-2:] for seen in stage_maps(logits, (16, 32), "stage")] == [
            (16, 32), (8, 16), (4, 8), (2, 4)
        ]  # fmt: skip
        assert {seen.shape[-2:] for seen in stage_maps(logits, (16, 32), "full")} == {(16, 32)}

    def test_truth_is_inside_where_at_least_half_of_a_pixel_is(self):
        mask = scan([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0])
        (truth,) = stage_truths(mask, [torch.zeros(1, 1, 2, 2)])
        assert truth.tolist() == scan([1.0, 0.0], [1.0, 0.0]).tolist()

    def test_truth_at_full_resolution_is_the_mask_itself(self):
        mask = (torch.rand(2, 1, 16, 16) > 0.5).float()
        for truth in stage_truths(mask, [torch.zeros(2, 1, 16, 16)] * 4):
            assert torch.equal(truth, mask)


class TestReadings:
    def test_the_non_saturating_form_is_minus_log_d_by_hand(self):
        logits = scan([math.log(0.8 / 0.2), math.log(0.2 / 0.8)])
        by_hand = -(math.log(0.8) + math.log(0.2)) / 2
        assert adversarial_losses([logits], "non_saturating").tolist() == pytest.approx([by_hand])

    def test_the_non_saturating_gradient_does_not_fade_where_the_discriminator_is_sure(self):
        sure = {}
        for form in ("minimax", "non_saturating"):
            logits = scan([-12.0]).requires_grad_()
            adversarial_losses([logits], form).sum().backward()
            assert logits.grad is not None
            sure[form] = logits.grad.item()
        assert sure["minimax"] == pytest.approx(-6e-6, rel=0.05)
        assert sure["non_saturating"] == pytest.approx(-1, rel=1e-4)

    def test_smoothing_moves_the_target_of_truths_alone_by_hand(self):
        real, predicted = scan([math.log(0.8 / 0.2)]), scan([math.log(0.3 / 0.7)])
        by_hand = -0.9 * math.log(0.8) - 0.1 * math.log(0.2) - math.log(0.7)
        assert discriminator_losses([real], [predicted], 0.1).tolist() == pytest.approx([by_hand])

    def test_image_times_mask_is_taken_at_each_stages_resolution(self):
        image = scan([0.2, 0.4], [0.6, 0.8])
        seen = judged_inputs([scan([1.0, 0.5], [0.0, 1.0]), scan([0.5])], image, "image_x_mask")
        assert seen[0].flatten().tolist() == pytest.approx([0.2, 0.2, 0.0, 0.8])
        assert seen[1].flatten().tolist() == pytest.approx([0.25])

    def test_noise_is_added_to_what_is_seen_and_the_mask_alone_stays_as_it_is(self):
        seen = scan([1.0, 0.0], [0.0, 1.0])
        noise = scan([0.1, 0.2], [0.3, 0.4])
        fine, coarse = judged_inputs([seen, scan([0.5])], seen, "mask", noise)
        assert fine.flatten().tolist() == pytest.approx([1.1, 0.2, 0.3, 1.4])
        assert coarse.flatten().tolist() == pytest.approx([0.6])
        assert judged_inputs([seen], seen, "mask")[0] is seen

    def test_accuracies_tell_truths_from_maps(self):
        right = discriminator_accuracies([scan([1.0, 2.0, -1.0, 3.0])], [scan([-1.0, 1.0, 1.0, 1.0])])
        assert right.tolist() == [[0.75], [0.25]]

    def test_weights_of_unsupervised_stages_do_not_count(self):
        dice, adversarial = torch.tensor([0.5, 0.25]), torch.tensor([-1.0, -2.0])
        loss = overall_loss(dice, adversarial, (1.0, 0.1, 9.0, 9.0), (0.05, 0.05, 9.0, 9.0))
        assert loss.item() == pytest.approx(0.5 + 0.025 - 0.05 - 0.1)
        assert overall_loss(dice, None, (1.0, 0.1, 9.0, 9.0), (0.05,) * 4).item() == pytest.approx(0.525)
