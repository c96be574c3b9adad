"""What no loader can exceed: decoding and resizing files from memory, and gathering decoded scans from memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from launch.benches.formats import encoded_in
from launch.benches.loaders import Decoder, Delivered, Epochs, Loader, Pixels, Reading


class Decode:
    """Decoding and resizing alone: each thread takes its part of the files, and hands nothing on."""

    distribution = "sonotrain"

    def ready(self) -> None:
        """Nothing that is not imported here."""

    @contextmanager
    def open(self, reading: Reading, decode: Decoder) -> Iterator[Epochs]:
        """Epochs of one batch without pixels, whose keys are those that were decoded."""
        files = list(encoded_in(reading.folder))

        def part(first: int) -> list[str]:
            return [decode(file.key, file.image, file.mask)[0] for file in files[first :: reading.readers]]

        def epoch(_: int) -> Iterator[Delivered]:
            with ThreadPoolExecutor(reading.readers) as pool:
                keys = [key for keys in pool.map(part, range(reading.readers)) for key in keys]
            yield tuple(keys), torch.empty(0), torch.empty(0)

        yield epoch


class Gather:
    """Gathering image and mask of decoded scans, in random order, into buffers that are used again."""

    distribution = "sonotrain"

    def ready(self) -> None:
        """Nothing that is not imported here."""

    @contextmanager
    def open(self, reading: Reading, decode: Decoder) -> Iterator[Epochs]:
        """Epochs of batches which are all the same two buffers."""
        scans: list[Pixels] = [decode(file.key, file.image, file.mask) for file in encoded_in(reading.folder)]
        keys = [key for key, _, _ in scans]
        images = np.stack([image for _, image, _ in scans])[:, None]
        masks = np.stack([mask for _, _, mask in scans])[:, None]
        image = np.empty((reading.batch, *images.shape[1:]), np.uint8)
        mask = np.empty_like(image)
        image_batch, mask_batch = torch.from_numpy(image), torch.from_numpy(mask)

        def epoch(number: int) -> Iterator[Delivered]:
            order = np.random.default_rng(number).permutation(len(scans))
            for start in range(0, len(order), reading.batch):
                rows = order[start : start + reading.batch]
                count = len(rows)
                # Any mode but the default, which checks first and copies through a buffer of its own.
                np.take(images, rows, axis=0, out=image[:count], mode="clip")
                np.take(masks, rows, axis=0, out=mask[:count], mode="clip")
                yield tuple([keys[row] for row in rows]), image_batch[:count], mask_batch[:count]

        yield epoch


LIMITS: Mapping[str, Loader] = {"decode": Decode(), "gather": Gather()}
