import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from trainer import networks
from trainer.serving import Segmenter, load_segmenter, read_safetensors


class Brightness(nn.Module):
    """`gain` times what a pixel is above middle gray as logit, a coarser stage behind it, and notes of how it was run.

    A lean adds its amount to the logits of the left half.
    """

    def __init__(self, gain=10.0, lean=0.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.lean = lean
        self.batches = []
        self.modes = []

    def forward(self, scans):
        self.batches.append(scans)
        self.modes.append((self.training, torch.is_grad_enabled()))
        finest = self.gain * (scans[:, :1] - 0.5)
        finest[..., : scans.shape[-1] // 2] += self.lean
        return [finest, torch.full_like(F.avg_pool2d(finest, 2), 100.0)]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def test_probabilities_are_the_finest_logits_of_the_image_in_0_to_1():
    image = noise(16, 24)
    (probability,) = Segmenter(Brightness(), (16, 24)).probabilities([image])
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-10 * (image / 255 - 0.5))), rtol=1e-5)


def test_each_image_of_a_mixture_comes_back_at_its_own_size():
    images = [noise(30, 41), noise(16, 24), noise(200, 7), noise(1, 1)]
    segmenter = Segmenter(Brightness(), (16, 24))
    assert [map.shape for map in segmenter.probabilities(images)] == [image.shape for image in images]
    assert [mask.shape for mask in segmenter.masks(images)] == [image.shape for image in images]
    assert segmenter.members[0].network.batches[0].shape == (4, 1, 16, 24)


def test_images_are_resized_for_the_network_and_logits_back():
    image = noise(60, 90)
    network = Brightness()
    (probability,) = Segmenter(network, (16, 24)).probabilities([image])

    seen = np.asarray(Image.fromarray(image).resize((24, 16), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(network.batches[0][0, 0].numpy(), seen / 255, atol=1e-7)
    logits = torch.from_numpy(10 * (seen / 255 - 0.5))[None, None]
    back = F.interpolate(logits, (60, 90), mode="bilinear", align_corners=False).sigmoid()[0, 0]
    np.testing.assert_allclose(probability, back.numpy(), atol=1e-6)


def test_company_does_not_change_an_image_s_map(model_folder):
    segmenter = load_segmenter(model_folder, networks.build)
    images = [noise(50, 70, seed) for seed in range(3)]
    together = segmenter.probabilities(images)
    for image, probability in zip(images, together, strict=True):
        np.testing.assert_allclose(segmenter.probabilities([image])[0], probability, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_evaluated_without_gradient_and_keeps_its_mode(training):
    network = Brightness().train(training)
    Segmenter(network, (8, 8)).masks([noise(8, 8)])
    assert network.modes == [(False, False)]
    assert network.training is training


def test_a_network_that_fails_keeps_its_mode():
    network = nn.Conv2d(3, 1, 1)
    with pytest.raises(RuntimeError):
        Segmenter(network, (8, 8)).probabilities([noise(8, 8)])
    assert network.training


def test_batch_norm_learns_nothing_from_being_used(model_folder):
    segmenter = load_segmenter(model_folder, networks.build)
    network = segmenter.members[0].network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    segmenter.masks([noise(64, 48)])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_pixel_at_the_threshold_is_lesion():
    image = np.array([[0, 255], [0, 255]], np.uint8)
    high = float(torch.sigmoid(torch.tensor(5.0)))
    assert Segmenter(Brightness(), (2, 2), threshold=high).masks([image])[0].tolist() == [[False, True]] * 2
    assert not Segmenter(Brightness(), (2, 2), threshold=high + 1e-6).masks([image])[0].any()


def sigmoid(logit):
    return 1 / (1 + np.exp(-np.asarray(logit)))


def test_with_flips_a_probability_is_the_mean_of_those_of_the_scan_and_its_left_right_mirror():
    image = np.array([[0, 255, 255, 255], [255, 0, 0, 255]], np.uint8)
    logits = 10 * (image / 255 - 0.5)
    left, right = logits + np.array([2, 2, 0, 0]), logits + np.array([0, 0, 2, 2])
    (alone,) = Segmenter(Brightness(lean=2.0), (2, 4)).probabilities([image])
    (flipped,) = Segmenter(Brightness(lean=2.0), (2, 4), flips=True).probabilities([image])
    np.testing.assert_allclose(alone, sigmoid(left), rtol=1e-5)
    np.testing.assert_allclose(flipped, (sigmoid(left) + sigmoid(right)) / 2, rtol=1e-5)
    assert flipped.dtype == np.float32


def test_with_flips_a_mirrored_scan_has_the_mirrored_map_and_one_upside_down_has_not(model_folder):
    segmenter = load_segmenter(model_folder, networks.build)
    image = noise(64, 48)
    with_flips = segmenter.using(flips=True)
    map, mirrored, upside_down = with_flips.probabilities([image, image[:, ::-1], image[::-1]])
    np.testing.assert_allclose(mirrored, map[:, ::-1], atol=1e-6)
    assert np.abs(upside_down - map[::-1]).max() > 1e-3
    without, without_mirrored = segmenter.probabilities([image, image[:, ::-1]])
    assert np.abs(without_mirrored - without[:, ::-1]).max() > 1e-3


def test_flips_show_the_network_no_more_scans_at_once():
    network = Brightness()
    Segmenter(network, (8, 8), flips=True).probabilities([noise(8, 8), noise(9, 9)])
    assert [len(batch) for batch in network.batches] == [2, 2]


def test_with_largest_component_only_the_largest_part_of_a_mask_stays():
    image = np.zeros((6, 8), np.uint8)
    image[0:2, 0:2] = image[3:6, 4:8] = 255
    (whole,) = Segmenter(Brightness(), (6, 8)).masks([image])
    (largest,) = Segmenter(Brightness(), (6, 8), largest_component=True).masks([image])
    assert whole.sum() == 4 + 12
    assert largest.sum() == 12
    assert largest[3:6, 4:8].all()


def test_a_network_of_several_channels_sees_the_gray_scan_in_each():
    network = Brightness()
    Segmenter(network, (8, 8), in_channels=3).probabilities([noise(8, 8)])
    (batch,) = network.batches
    assert batch.shape == (1, 3, 8, 8)
    assert torch.equal(batch[:, 0], batch[:, 2])
    np.testing.assert_allclose(batch[0, 1].numpy(), noise(8, 8) / 255, atol=1e-7)


def test_the_same_network_used_otherwise_leaves_the_first_as_it_was():
    first = Segmenter(Brightness(), (8, 8), 0.25)
    other = first.using(threshold=0.75, flips=True, largest_component=True)
    assert (other.threshold, other.flips, other.largest_component) == (0.75, True, True)
    assert (first.threshold, first.flips, first.largest_component) == (0.25, False, False)
    kept = other.using(flips=False)
    assert (kept.threshold, kept.flips, kept.largest_component) == (0.75, False, True)
    with pytest.raises(ValueError, match="expected a probability"):
        first.using(threshold=1.5)


def test_an_ensemble_of_one_is_that_one_to_the_bit(model_folder):
    alone = load_segmenter(model_folder, networks.build)
    images = [noise(64, 48), noise(90, 51)]
    for one, other in zip(
        Segmenter.ensemble([alone], 0.5).probabilities(images), alone.probabilities(images), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_an_ensemble_s_probability_is_the_mean_over_networks_each_at_its_own_size():
    members = [Segmenter(Brightness(10.0), (8, 8), 0.1), Segmenter(Brightness(-4.0), (4, 6), 0.9, flips=True)]
    together = Segmenter.ensemble(members, 0.5)
    images = [noise(8, 8), noise(4, 6), noise(30, 20)]
    first, second = members[0].probabilities(images), members[1].using(flips=False).probabilities(images)
    for mean, one, other in zip(together.probabilities(images), first, second, strict=True):
        np.testing.assert_allclose(mean, (one + other) / 2, atol=1e-6)
    assert together.threshold == 0.5


def test_an_ensemble_without_members_is_refused():
    with pytest.raises(ValueError, match="without a member"):
        Segmenter.ensemble([], 0.5)


def test_no_images_give_no_maps():
    assert Segmenter(Brightness(), (8, 8)).probabilities([]) == []


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((8, 8), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8), np.uint8)],
    ids=["float", "colour", "empty"],
)
def test_an_array_that_is_no_gray_image_is_named_by_its_place(wrong):
    with pytest.raises(ValueError, match=r"image 1 is .*: expected uint8 \[height, width\]"):
        Segmenter(Brightness(), (8, 8)).probabilities([noise(8, 8), wrong])


@pytest.mark.parametrize("size", [(8,), (8, 0), (8, 8.0), (True, 8)])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match="expected height and width"):
        Segmenter(Brightness(), size)


def test_a_threshold_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"threshold 50: expected a probability"):
        Segmenter(Brightness(), (8, 8), threshold=50)


def test_a_model_folder_gives_the_network_that_was_saved(model_folder):
    described = json.loads((model_folder / "network.json").read_text())
    network = networks.build("unet", **described["settings"]).eval()
    loaded = load_segmenter(model_folder, networks.build)
    network.load_state_dict(loaded.members[0].network.state_dict())
    image = noise(64, 48)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)[None, None] / 255)[0].sigmoid()[0, 0]
    assert (loaded.members[0].size, loaded.threshold) == ((64, 48), 0.5)
    assert (loaded.flips, loaded.largest_component) == (False, False)
    np.testing.assert_allclose(loaded.probabilities([image])[0], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["network.json", "generator.safetensors"])
def test_a_missing_file_of_a_model_is_named(model_folder, name):
    (model_folder / name).unlink()
    assert_refused(model_folder, f"{model_folder / name}: cannot be read (No such file or directory)")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "describes no network"),
        ("[]", "describes no network"),
        ("[" * 100_000, "describes no network"),
        ('{"network": "unet"}', "does not tell 'settings'"),
        ('{"network": "unet", "settings": {"depth": 3}, "size": [64, 48], "threshold": 0.5}', "describes no network"),
        ('{"network": "unet", "settings": {}, "size": [64], "threshold": 0.5}', "expected height and width"),
        ('{"network": "unet", "settings": {}, "size": [64, 48], "threshold": null}', "describes no network"),
        ('{"network": "unet", "settings": {}, "size": [64, 48], "threshold": 0.5, "flips": 1}', "flips 1: expected"),
    ],
)
def test_a_description_that_is_none_is_named(model_folder, text, reason):
    (model_folder / "network.json").write_text(text)
    assert_refused(model_folder, f"{model_folder / 'network.json'}: ", reason)


def test_weights_of_another_network_are_named_with_what_does_not_fit(model_folder):
    path = model_folder / "generator.safetensors"
    tensors = read_safetensors(path)
    save_file({**tensors, "heads.0.bias": torch.zeros(2), "spare": torch.zeros(1)}, path)
    assert_refused(model_folder, f"{path}: does not fit the network of network.json: heads.0.bias and 1 more")


def assert_refused(folder, *parts):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refusal:
        load_segmenter(folder, networks.build)
    assert all(part in str(refusal.value) for part in parts), str(refusal.value)


TENSORS = {
    "float": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
    "double": torch.tensor([1e300, -0.0], dtype=torch.float64),
    "half": torch.tensor([0.5, 2.0], dtype=torch.float16),
    "brain": torch.tensor([0.5, 3.0, -1.0], dtype=torch.bfloat16),
    "count": torch.tensor(2**40),
    "int32": torch.tensor([-5], dtype=torch.int32),
    "int16": torch.tensor([[-5]], dtype=torch.int16),
    "int8": torch.tensor([-5, 5, 7], dtype=torch.int8),
    "bytes": torch.tensor([255], dtype=torch.uint8),
    "flags": torch.tensor([True, False, True]),
    "nothing": torch.zeros(0, 4),
}


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def test_weights_are_read_as_the_format_s_own_library_wrote_them(weights):
    read = read_safetensors(weights)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


def test_weights_cut_off_anywhere_are_refused(weights):
    whole = weights.read_bytes()
    for length in range(len(whole)):
        weights.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut off, or no safetensors file|does not account"):
            read_safetensors(weights)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [0, 2**70], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0.0, 8]}},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"a": 5},
        [],
        {},
    ],
)
def test_a_header_that_lies_about_eight_bytes_is_refused(tmp_path, header):
    text = json.dumps(header).encode()
    path = tmp_path / "lying.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ValueError, match=r"lying\.safetensors: "):
        read_safetensors(path)


@given(data=st.data())
def test_damaged_weights_are_read_or_refused_and_nothing_else(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "weights.safetensors"
    save_file({"a": torch.zeros(3), "b": torch.zeros(2, 2)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        tensors = read_safetensors(path)
    except ValueError as refusal:
        assert str(path) in str(refusal)  # noqa: PT017, either outcome is right
    else:
        assert sum(tensor.nbytes for tensor in tensors.values()) == 28
