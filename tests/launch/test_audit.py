import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.phantom import phantom
from data_pipeline.scan import Mask
from tests.launch.command import Command

SIZE = (120, 160)
LESION = np.hypot(*(np.indices(SIZE) - np.array([60, 80])[:, None, None])) < 25

FOUND = {
    "broken": 3,
    "empty_masks": 1,
    "missing_masks": 0,
    "normal_with_lesion": 1,
    "full_masks": 1,
    "specks": 1,
    "odd_sizes": 1,
    "coloured": 1,
    "flat": 1,
    "identical": 1,
    "near_duplicates": 1,
    "conflicting_labels": 1,
    "shared_patients": 2,
    "split_by_folds": 1,
}
"""How many findings the messy folder has of each kind."""


def write_scans(folder: Path, count: int, mask: Mask = LESION, same: bool = False) -> Path:
    """Scans of as many patients, or of one image, in the layout of BUS-BRA; the folder, which is made."""
    folder.mkdir()
    for number in range(count):
        Image.fromarray(phantom(0 if same else 2 * number, SIZE).image).save(folder / f"bus_{number:04d}-l.png")
        Image.fromarray(mask).save(folder / f"mask_{number:04d}-l.png")
    return folder


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Scans in the layout of BUS-BRA, each with its own fault, among six that have none."""
    folder = tmp_path / "messy"
    folder.mkdir()
    images = {name: phantom(2 * number, SIZE).image for number, name in enumerate(range(1, 21))}
    masks = dict.fromkeys(images, LESION)
    labels = dict.fromkeys(images, "benign")
    folds = {name: 1 + name % 2 for name in images}

    masks[7] = np.zeros(SIZE, dtype=np.bool_)
    labels[8] = "normal"
    masks[9] = ~LESION
    masks[10] = LESION | (np.arange(LESION.size).reshape(SIZE) == 500)
    images[11] = phantom(0, (60, 170)).image
    masks[11] = np.pad(LESION[30:90], ((0, 0), (5, 5)))
    images[12] = np.dstack([images[12]] * 3)
    images[12][20:40, 20:40] = (230, 40, 10)
    images[13] = np.full(SIZE, 3, dtype=np.uint8)
    images[15] = images[14]
    images[17] = (images[16] * 0.9 + 10).astype(np.uint8)
    labels[17] = "malignant"
    folds |= {14: 1, 15: 1, 16: 1, 17: 2}

    for name, image in images.items():
        Image.fromarray(image).save(folder / f"bus_{name:04d}-l.png")
        Image.fromarray(masks[name]).save(folder / f"mask_{name:04d}-l.png")
    (folder / "mask_0018-l.png").unlink()
    whole = (folder / "bus_0019-l.png").read_bytes()
    (folder / "bus_0019-l.png").write_bytes(whole[:1000])
    (folder / "<script>alert(1)<script>.png").write_bytes(b"")
    write_tables(folder, labels, folds)
    return folder


def write_tables(folder: Path, labels: dict[int, str], folds: dict[int, int]) -> None:
    with (folder / "bus_data.csv").open("w", newline="") as text:
        csv.writer(text).writerows(
            [("ID", "Case", "Pathology"), *((f"bus_{n:04d}-l", n, label) for n, label in labels.items())]
        )
    with (folder / "5-fold-cv.csv").open("w", newline="") as text:
        csv.writer(text).writerows([("ID", "kFold"), *((f"bus_{n:04d}-l", fold) for n, fold in folds.items())])


class Page(HTMLParser):
    """What a page holds, as a browser takes it apart."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.text = page.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.links: list[str] = []
        self.pictures: list[np.ndarray] = []
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        about = dict(attributes)
        if tag == "img":
            kind, _, data = str(about["src"]).partition(";base64,")
            assert kind == "data:image/jpeg"
            self.pictures.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int))
        self.links += [str(value) for name, value in attributes if name in ("href", "src", "action")]

    def section(self, name: str) -> str:
        """From a section's heading to the next one."""
        (found,) = re.findall(rf'<h2 id="{name}">.*?(?=<h2|</body>)', self.text, re.DOTALL)
        return str(found)


def test_every_fault_of_a_messy_folder_is_told_to_people_and_machines(sonotrain: Command, messy: Path) -> None:
    outcome = sonotrain("data", "audit", "bus_bra", messy, "--json", "audit.json", "--html", "audit.html")

    assert outcome.status == 0, outcome.errors
    told = json.loads(Path("audit.json").read_text())
    assert {name: section["count"] for name, section in told["findings"].items()} == FOUND
    assert all(section["count"] == len(section["list"]) for section in told["findings"].values())
    named = {name: [finding["keys"] for finding in section["list"]] for name, section in told["findings"].items()}
    assert named["broken"] == [["<script>alert(1)<script>.png"], ["bus_0018-l.png"], ["bus_0019-l"]]
    assert named["empty_masks"] == [["bus_0007-l"]]
    assert named["near_duplicates"] == named["split_by_folds"] == [["bus_0016-l", "bus_0017-l"]]
    assert named["shared_patients"] == [["bus_0014-l", "bus_0015-l"], ["bus_0016-l", "bus_0017-l"]]
    assert told["duplicate_groups"] == [["bus_0014-l", "bus_0015-l"], ["bus_0016-l", "bus_0017-l"]]
    assert [pair[:2] for pair in told["duplicate_pairs"]] == told["duplicate_groups"]
    assert told["scans"] == 18
    assert told["labels"] == {"benign": 16, "malignant": 1, "normal": 1}
    assert told["with_spacing"] == 0

    assert "bus_0018-l.png" in outcome.output
    assert "has no mask: mask_0018-l.png is missing" in outcome.output
    last = outcome.output.splitlines()[-1]
    assert last.startswith(f"Audit of {messy}: scans or files to look at: 14 (kinds of findings: 13), scans read: 18")
    assert last.endswith("written to audit.html and audit.json")


def test_the_page_stands_alone_and_escapes_names(sonotrain: Command, messy: Path) -> None:
    sonotrain("data", "audit", "bus_bra", messy, "--html", "audit.html")

    page = Page(Path("audit.html"))

    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    assert "url(" not in page.text
    assert "&lt;script&gt;alert(1)&lt;script&gt;.png" in page.section("broken")
    assert ">none<" in page.section("missing_masks")
    assert list(Path().glob(".*partial*")) == []


def test_the_page_shows_each_finding_with_its_outline_and_duplicates_together(sonotrain: Command, messy: Path) -> None:
    sonotrain("data", "audit", "bus_bra", messy, "--html", "audit.html")

    page = Page(Path("audit.html"))

    assert len(page.pictures) == 7 + 2 * 6
    assert all(picture.shape in {(*SIZE, 3), (60, 170, 3)} for picture in page.pictures)
    double = page.section("near_duplicates")
    assert double.count("<img") == 2
    assert re.search(r"correlation (0\.99\d|1\.000), of 2 patients", double)
    (speckled,) = re.findall(r'base64,([^"]+)', page.section("specks"))
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(speckled)))).astype(int)
    yellow = (pixels[..., 0] > 130) & (pixels[..., 0] - pixels[..., 2] > 70)
    distance = np.hypot(*(np.indices(SIZE) - np.array([60, 80])[:, None, None]))
    assert yellow[np.abs(distance - 25) < 3].sum() > 2 * np.pi * 25 * 0.8  # the outline, all around
    assert not yellow[distance < 20].any()
    assert yellow[:15, 10:30].any()  # the ring around the speck in row 3, column 20


def test_a_section_of_many_findings_says_how_many_are_not_shown(sonotrain: Command, tmp_path: Path) -> None:
    folder = write_scans(tmp_path / "many", 70, mask=np.zeros(SIZE, dtype=np.bool_))

    outcome = sonotrain("data", "audit", "bus_bra", folder, "--html", "audit.html")

    section = Page(Path("audit.html")).section("empty_masks")
    assert section.count("<img") == 60
    assert "... and 10 more findings" in section
    assert "... and 60 more" in outcome.output


def test_a_large_group_of_duplicates_shows_a_few_and_counts_the_others(sonotrain: Command, tmp_path: Path) -> None:
    folder = write_scans(tmp_path / "same", 11, same=True)

    assert sonotrain("data", "audit", "bus_bra", folder, "--html", "audit.html").status == 0

    section = Page(Path("audit.html")).section("identical")
    assert section.count("<img") == 8
    assert "11 equal images, of 11 patients; 3 more scans are not shown" in section


def test_a_sound_folder_has_nothing_to_look_at(sonotrain: Command, tmp_path: Path) -> None:
    write_scans(tmp_path / "sound", 5)

    outcome = sonotrain("data", "audit", "bus_bra", "sound", "--html", "audit.html")

    assert outcome.status == 0
    assert outcome.output.splitlines()[-1] == (
        "Audit of sound: nothing to look at, scans read: 5, written to audit.html"
    )
    assert Page(Path("audit.html")).text.count('class="count">none<') == len(FOUND)


def test_an_earlier_page_is_replaced_and_the_folder_left_as_it_is(sonotrain: Command, messy: Path) -> None:
    Path("audit.html").write_text("earlier")
    before = {path: path.read_bytes() for path in messy.iterdir()}

    assert sonotrain("data", "audit", "bus_bra", messy, "--html", "audit.html").status == 0

    assert Path("audit.html").read_text().startswith("<!doctype html>")
    assert {path: path.read_bytes() for path in messy.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "tells"),
    [
        (("bus_bar", "messy"), "layout bus_bar is unknown; did you mean bus_bra?"),
        (("bus_bra", "nowhere"), "source folder nowhere does not exist"),
        (("bus_bra", "messy", "--html", "nowhere/a.html"), "there is no folder nowhere to write a.html to"),
        (("bus_bra", "messy", "--json", "nowhere/a.json"), "there is no folder nowhere to write a.json to"),
    ],
)
def test_a_wrong_call_is_told_before_anything_is_read(
    sonotrain: Command, messy: Path, arguments: tuple[str, ...], tells: str
) -> None:
    outcome = sonotrain("data", "audit", *arguments)

    assert outcome.status == 2
    assert tells in outcome.error
