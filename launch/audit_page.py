"""An audit as one HTML page that needs nothing beside it: pictures are in it, and nothing in it runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources

import cv2
import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from data_pipeline import Refused
from data_pipeline.audit import Audit, Spread
from data_pipeline.checks import Section
from data_pipeline.facts import ScanFacts, read_with_colours
from launch.audit import audit_in_a_line, overview_rows

PICTURES = 60
"""Most pictures of a section, so that the page of a large set stays at a few megabytes."""

PICTURES_OF_GROUP = 8
"""Most pictures of one group of duplicates."""

ROWS = 500
"""Most files named in a section that has no pictures."""

WIDEST, HIGHEST = 208, 168
"""Pixels of a picture on the page, at most."""

OUTLINE = (255, 214, 10)
RING = (255, 69, 58)
"""Red, green and blue of a mask's outline, and of the ring around a piece too small to be seen."""

Picture = tuple[str, ScanFacts]
"""A data URI, and the scan that it shows."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A finding on the page: the pictures of its scans, as far as there is room, and how many scans have none."""

    keys: tuple[str, ...]
    says: str
    pictures: list[Picture]
    left_out: int


def draw_page(audited: Audit, title: str, workers: int, watched: Callable[[Iterator[str], int], Iterable[str]]) -> str:
    """The page. Scans are read again for their pictures, on so many threads; watched is given each picture as it is
    drawn and how many there will be, and passes it on.
    """
    chosen = {section.name: list(_chosen(section, audited)) for section in audited.sections}
    keys = sorted({key for findings in chosen.values() for keys in findings for key in keys})
    pool = ThreadPoolExecutor(workers)
    try:
        drawn = watched(pool.map(lambda key: _picture(audited.scans[key]), keys), len(keys))
        pictures = dict(zip(keys, drawn, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)
    shown = {
        section.name: [
            Shown(
                finding.keys,
                finding.says,
                [(pictures[key], audited.scans[key]) for key in with_picture],
                len(finding.keys) - len(with_picture),
            )
            for finding, with_picture in zip(section.findings, chosen[section.name], strict=False)
        ]
        for section in audited.sections
    }
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("launch").joinpath("audit_page.html.j2").read_text(encoding="utf-8")
    return page.from_string(template).render(
        audited=audited,
        title=title,
        summary=audit_in_a_line(audited),
        rows=overview_rows(audited),
        plots=_plots(audited),
        shown=shown,
    )


def _chosen(section: Section, audited: Audit) -> Iterator[list[str]]:
    """Finding by finding, the scans of which a picture is shown, until there is no more room."""
    room = PICTURES
    for finding in section.findings[:ROWS]:
        readable = [key for key in finding.keys if key in audited.scans]
        if readable and room <= 0:
            return
        keys = readable[:PICTURES_OF_GROUP]
        room -= len(keys)
        yield keys


# -- pictures --------------------------------------------------------------------------------------------------------


def _picture(facts: ScanFacts) -> str:
    """A small JPEG of a scan with its mask's outline, as a data URI; empty where the scan is gone since it was read."""
    try:
        scan, colours = read_with_colours(facts.files)
    except Refused:
        return ""
    pixels = np.repeat(scan.image[:, :, None], 3, axis=2) if colours is None else colours
    scale = min(WIDEST / facts.width, HIGHEST / facts.height, 1.0)
    size = max(1, round(facts.width * scale)), max(1, round(facts.height * scale))
    small: NDArray[np.uint8] = np.array(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    _outline(small, scan.mask.view(np.uint8), scale)
    file = io.BytesIO()
    Image.fromarray(small).save(file, "JPEG", quality=80, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _outline(picture: NDArray[np.uint8], mask: NDArray[np.uint8], scale: float) -> None:
    """Draw the edges of a mask on a picture that is so many times its size."""
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    fraction = 4  # bits below the point, so that an outline is not rounded to the small picture's pixels
    for contour in contours:
        places = np.rint(((contour + 0.5) * scale - 0.5) * (1 << fraction)).astype(np.int32)
        _, _, width, height = cv2.boundingRect(contour)
        if max(width, height) * scale < 3:
            cv2.circle(picture, places[0, 0].tolist(), 6 << fraction, RING, 1, cv2.LINE_AA, fraction)
        else:
            cv2.polylines(picture, [places], True, OUTLINE, 1, cv2.LINE_AA, fraction)


def _plots(audited: Audit) -> list[tuple[str, Spread, float]]:
    """Distributions to draw: a name, the quartiles, and the end of an axis that begins at 0."""
    seen = audited.overview
    sides = [(name, side) for name, side in (("height", seen.height), ("width", seen.width)) if side is not None]
    areas = [(f"lesion area, {label}", area) for label, area in seen.lesion_area.items()]
    longest = max((side.largest for _, side in sides), default=1.0)
    widest = max((area.largest for _, area in areas), default=1.0)
    return [(name, side, longest) for name, side in sides] + [(name, area, widest) for name, area in areas]
