"""Synthetic B-mode scans of breasts, with lesions whose outlines are known: for the demo, tests and benchmarks.

Scatterers of random strength, weighted by the echo of the tissue they lie in, are blurred by the point spread of a
transducer; the envelope of that field has Rayleigh speckle (Wagner et al., IEEE Trans. Sonics Ultrason. 30, 1983).
Then come depth attenuation, lesion shadow or enhancement, and log compression, as in a scanner.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.scan import Mask, Scan

Field = NDArray[np.float32]

_LABELS = ("benign", "malignant", "normal")
_SHARES = (0.52, 0.40, 0.08)
_ANGLES = 512


@dataclass(frozen=True, slots=True)
class PhantomOwner:
    """Whose a phantom is, as of a scan."""

    key: str
    patient: str
    group: str
    label: str


def phantom_owner(number: int, seed: int = 0) -> PhantomOwner:
    """What is known of scan `number` of a seed before it is drawn: all that its fold depends on."""
    return _owner(number, _person(number, seed))


def phantom(number: int, size: tuple[int, int], seed: int = 0) -> Scan:
    """Scan `number` of the endless series of a seed, at size (height, width) in pixels, 16 or more.

    A function of its arguments only. Patient number // 2 has two scans, of one label: benign (smooth ellipses that
    enhance what lies below), malignant (irregular, blurred, with a shadow) or normal (no lesion).
    Heights stand for 35 to 55 mm of tissue, from which comes the spacing.
    """
    person = _person(number, seed)
    view = np.random.default_rng([seed, 1, number])
    owner = _owner(number, person)
    spacing = round(float(person.uniform(35.0, 55.0)) / size[0], 4)

    depth, lateral = _grid(size)
    echo, transmitted = _tissue(person, view, depth, lateral)
    mask = np.zeros(size, dtype=np.bool_)
    for lesion in _lesions(person, view, owner.label, size[1] / size[0]):
        mask |= _add(lesion, view, depth, lateral, echo, transmitted)
    image = _scanned(view, echo, transmitted, depth)
    return Scan(owner.key, image, mask, owner.patient, owner.group, owner.label, spacing=(spacing, spacing))


def _person(number: int, seed: int) -> np.random.Generator:
    """The random numbers that both scans of a patient share."""
    return np.random.default_rng([seed, 0, number // 2])


def _owner(number: int, person: np.random.Generator) -> PhantomOwner:
    """The label is the first that is drawn for a patient."""
    patient = f"phantom-{number // 2:05d}"
    return PhantomOwner(f"phantom-{number:05d}", patient, patient, label=str(person.choice(_LABELS, p=_SHARES)))


def _grid(size: tuple[int, int]) -> tuple[Field, Field]:
    """Depth [H, 1] and lateral place [1, W] of the pixels' centres, in units of the image's height."""
    height, width = size
    depth = (np.arange(height) + 0.5) / height
    lateral = (np.arange(width) + 0.5) / height
    return depth.astype(np.float32)[:, None], lateral.astype(np.float32)[None, :]


# -- tissue ----------------------------------------------------------------------------------------------------------


def _tissue(
    person: np.random.Generator, view: np.random.Generator, depth: Field, lateral: Field
) -> tuple[Field, Field]:
    """Echo and gain along the beam, both in dB [H, W]: skin, fat, gland, fat, muscle and the fasciae between."""
    size = (depth.shape[0], lateral.shape[1])
    skin, fat, gland, deep_fat = np.cumsum(person.uniform((0.03, 0.08, 0.35, 0.05), (0.06, 0.22, 0.5, 0.12)))
    levels = person.normal((0.0, -9.0, 0.0, -9.0, -7.0), (1.0, 2.0, 1.5, 2.0, 2.0))
    echo = np.full(size, levels[0], dtype=np.float32)
    for border, level in zip((skin, fat, gland, deep_fat), levels[1:], strict=True):
        below = depth - _wavy(view, lateral, float(border))
        echo += (float(level) - echo) * _step(below, 0.004)
        echo += np.float32(view.uniform(5.0, 12.0)) * np.exp(-((below / 0.006) ** 2))  # the fascia itself
    echo += _clouds(view, size, 0.12, 2.5) + _clouds(view, size, 0.03, 2.0)
    # Fibres, nearly level, strongest in muscle.
    echo += _clouds(view, size, 0.015, 2.5, stretch=9.0) * (0.6 + _step(depth - np.float32(deep_fat), 0.02))
    for _ in range(int(view.integers(6, 14))):
        _add_lobule(view, depth, lateral, echo)

    slope = view.uniform(8.0, 20.0)
    transmitted = np.float32(-slope) * depth + _clouds(view, (1, size[1]), 0.1, 1.5)
    return echo, transmitted


def _add_lobule(view: np.random.Generator, depth: Field, lateral: Field, echo: Field) -> None:
    """A fat lobule between bright septa, in place: dark as a lesion may be, yet with its neighbours' speckle."""
    across, along = view.uniform((0.02, 0.06), (0.06, 0.18))
    y, x = view.uniform((0.1, 0.0), (0.9, lateral[0, -1]))
    darkness, brightness = view.uniform((2.0, 2.0), (6.5, 8.0))
    down, aside = (depth - np.float32(y)) / np.float32(across), (lateral - np.float32(x)) / np.float32(along)
    rows, columns = _within(down[:, 0]), _within(aside[0])
    distance = np.sqrt(np.square(down[rows]) + np.square(aside[:, columns]))
    echo[rows, columns] -= np.float32(darkness) * _step(1.0 - distance, 0.15)
    echo[rows, columns] += np.float32(brightness) * np.exp(-(((distance - 1.0) / 0.1) ** 2))


def _within(distances: Field) -> slice:
    """The run of places where a lobule changes anything; distances ascend, in its radii."""
    return slice(*np.searchsorted(distances, (-1.6, 1.6)).tolist())


def _wavy(view: np.random.Generator, lateral: Field, mean: float) -> Field:
    """The depth [1, W] of a tissue border that rises and falls slowly."""
    waves = np.arange(1, 4, dtype=np.float32)[:, None]
    phases, heights = view.uniform(0, 2 * np.pi, (3, 1)), view.normal(0, 0.025, (3, 1)) / waves
    border = mean + (heights * np.sin(waves * 2.5 * lateral + phases)).sum(axis=0, keepdims=True)
    return np.asarray(border, dtype=np.float32)


def _clouds(
    view: np.random.Generator, size: tuple[int, int], scale: float, deviation: float, stretch: float = 1.6
) -> Field:
    """Smooth noise [H, W] of this deviation in dB; scale in units of the image's height, longer laterally."""
    height, width = size
    unit = scale * (height if height > 1 else width)
    coarse = (round(height / unit) + 2 if height > 1 else 1, round(width / unit / stretch) + 2)
    noise = view.standard_normal(coarse, dtype=np.float32) * np.float32(1.4 * deviation)
    return np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32).reshape(size)


# -- lesions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Lesion:
    """Lengths in units of the image's height, levels in dB. radii is relative, by angle from 0 to 2 pi."""

    y: float
    x: float
    across: float
    along: float
    radii: Field
    echo: float
    blur: float
    gain_below: float
    halo: float


def _lesions(person: np.random.Generator, view: np.random.Generator, label: str, width: float) -> list[_Lesion]:
    """None, one or two lesions of one patient, seen slightly differently in each view."""
    if label == "normal":
        return []
    radius = person.uniform(0.09, 0.2) * min(width, 1.0)
    contrast = person.uniform(6.0, 8.0) if person.random() < 0.2 else person.uniform(10.0, 18.0)
    y, x = person.uniform((0.3, 0.25 * width), (0.6, 0.75 * width))
    lesions = [_lesion(view, label, y, x, radius, contrast)]
    if view.random() < 0.15:
        other = x + (0.35 if x < 0.5 * width else -0.35) * width
        lesions.append(_lesion(view, label, view.uniform(0.3, 0.6), other, 0.6 * radius, contrast))
    return lesions


def _lesion(view: np.random.Generator, label: str, y: float, x: float, radius: float, contrast: float) -> _Lesion:
    y, x = view.normal((y, x), 0.02)
    radius *= view.uniform(0.85, 1.15)
    if label == "benign":
        flat = view.uniform(1.2, 1.9)
        radii = _outline(view, waves=(2, 4), roughness=0.05, spicules=0)
        return _Lesion(
            y, x, radius / flat**0.5, radius * flat**0.5, radii, -contrast, 0.08, view.uniform(3.0, 9.0), 3.0
        )
    tall = view.uniform(0.8, 1.3)
    radii = _outline(view, waves=(2, 7), roughness=0.16, spicules=int(view.integers(0, 10)))
    return _Lesion(
        y, x, radius * tall**0.5, radius / tall**0.5, radii, -contrast - 1.5, 0.2, -view.uniform(6.0, 16.0), 1.5
    )


def _outline(view: np.random.Generator, waves: tuple[int, int], roughness: float, spicules: int) -> Field:
    """Radius [_ANGLES] by angle, 1 on average: slow waves, and thin spikes as malignant borders have them."""
    angle = np.linspace(0.0, 2 * np.pi, _ANGLES, endpoint=False)
    orders = np.arange(waves[0], waves[1] + 1)[:, None]
    phases, heights = view.uniform(0, 2 * np.pi, orders.shape), view.normal(0, roughness, orders.shape) * 2 / orders
    radii = 1.0 + (heights * np.cos(orders * angle + phases)).sum(axis=0)
    for tip in view.uniform(0, 2 * np.pi, spicules):
        apart = np.abs((angle - tip + np.pi) % (2 * np.pi) - np.pi)
        radii += view.uniform(0.1, 0.4) * np.exp(-apart / 0.12)
    return np.asarray(np.clip(radii, 0.5, 1.6), dtype=np.float32)


def _add(
    lesion: _Lesion, view: np.random.Generator, depth: Field, lateral: Field, echo: Field, transmitted: Field
) -> Mask:
    """Draw a lesion into echo and gain, in place; its true mask [H, W]."""
    y, x = depth - np.float32(lesion.y), lateral - np.float32(lesion.x)
    down, aside = y / np.float32(lesion.across), x / np.float32(lesion.along)
    turn = (np.arctan2(down, aside) * (_ANGLES / (2 * np.pi))).astype(np.int32) % _ANGLES
    distance = np.sqrt(np.square(down) + np.square(aside)) / lesion.radii[turn]
    inside = _step(1.0 - distance, lesion.blur)

    texture = _clouds(view, echo.shape, 0.05, 1.5)
    surroundings = np.float32(0.7 * float(echo[distance < 1.5].mean()))
    echo += (surroundings + np.float32(lesion.echo) + texture - 0.7 * echo) * inside
    echo += np.float32(lesion.halo) * np.exp(-(((distance - 1.15) / 0.12) ** 2))
    # What the beam has gained or lost on its way through the lesion, all that below it shows.
    path = np.cumsum(inside, axis=0) / (2 * lesion.across * len(depth))
    transmitted += np.float32(lesion.gain_below) * np.asarray(cv2.blur(path, (max(1, echo.shape[1] // 40), 1)))
    return np.asarray(distance < 1.0)


# -- scanner ---------------------------------------------------------------------------------------------------------


def _scanned(view: np.random.Generator, echo: Field, transmitted: Field, depth: Field) -> NDArray[np.uint8]:
    """The gray image uint8 [H, W] that a scanner makes of echo and gain in dB."""
    height, width = echo.shape
    axial, aside = max(0.5, height * 0.0028), max(0.8, height * float(view.uniform(0.005, 0.009)))
    strength = np.exp((echo + transmitted) * np.float32(np.log(10.0) / 20.0))
    power = np.zeros_like(strength)
    for _ in range(4):  # two quadratures of two looks, averaged as scanners do
        scatterers = view.standard_normal((height, width), dtype=np.float32) * strength
        power += np.square(cv2.GaussianBlur(scatterers, (0, 0), sigmaX=aside, sigmaY=axial))
    power *= np.float32(np.pi * axial * aside)  # speckle of unit strength has a mean power near 1
    noise = view.standard_normal((height, width), dtype=np.float32) * np.float32(0.02)
    decibels = 10.0 * np.log10(power + np.square(noise) + np.float32(1e-6))
    decibels += np.float32(view.uniform(4.0, 12.0)) * depth  # the scanner's time gain makes up for a part
    dynamic_range, peak = view.uniform(42.0, 58.0), view.uniform(5.0, 15.0)
    gray = (decibels - np.float32(peak)) * np.float32(255.0 / dynamic_range) + np.float32(235.0)
    return np.asarray(np.clip(gray, 0, 255), dtype=np.uint8)


def _step(distance: Field, softness: float) -> Field:
    """From 0 to 1 where distance passes zero, over about four times the softness."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / np.float32(2 * softness)), dtype=np.float32)
