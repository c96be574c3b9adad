"""Set-up that tests of several rooms share."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

from data_pipeline import Dataset, Scan, open_dataset, write_dataset
from tests.ranks import ForkServer
from trainer import networks

# How long an example takes says nothing on a machine that is shared.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Where ranks come from that need not import everything first."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def mlflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where MLflow keeps what is trained in tests: once for all, since it takes seconds to make a new database."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty working directory with MLflow's default in it: mlflow.db and mlruns."""
    folder = tmp_path_factory.mktemp("tracker")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A narrow network that was never trained but finds half of a noisy scan to be lesion, as a checkpoint has it."""
    torch.manual_seed(7)
    widths = [4, 8, 8, 8, 16]
    network = networks.UNet(widths=widths)
    with torch.no_grad():
        scans = torch.rand(4, 1, 64, 48)
        network(scans)
        finest = network.heads[0]
        finest.get_parameter("bias").sub_(network.eval()(scans)[0].median())
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(network.state_dict(), folder / "generator.safetensors")
    described = {
        "network": "unet",
        "settings": {"in_channels": 1, "widths": widths},
        "size": [64, 48],
        "threshold": 0.5,
    }
    (folder / "network.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="session")
def scans() -> Callable[..., list[Scan]]:
    """A factory of small scans of many sizes: noise, an ellipse for a lesion (every fifth has none), two a patient."""

    def make(count: int, seed: int = 0, smallest: int = 24, largest: int = 64) -> list[Scan]:
        random = np.random.default_rng(seed)
        made = []
        for number in range(count):
            height, width = (int(side) for side in random.integers(smallest, largest + 1, 2))
            image = random.integers(0, 256, (height, width), dtype=np.uint8)
            rows, columns = np.mgrid[:height, :width]
            y, x = random.uniform(0.3, 0.7, 2) * (height, width)
            inside = ((rows - y) / (0.2 * height)) ** 2 + ((columns - x) / (0.25 * width)) ** 2 < 1
            normal = number % 5 == 4
            patient = f"patient-{number // 2}"
            made.append(
                Scan(
                    key=f"scan-{number:03d}",
                    image=image,
                    mask=inside & (not normal),
                    patient=patient,
                    group=patient,
                    label="normal" if normal else "benign",
                    spacing=None if number % 3 == 0 else (0.1, 0.1 + number / 1000),
                )
            )
        return made

    return make


@pytest.fixture(scope="session")
def packed(scans: Callable[..., list[Scan]], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Dataset]:
    """A factory of datasets, each in a new folder: shards of about a megabyte, three folds in order."""

    def pack(made: list[Scan] | int, codec: str = "png") -> Dataset:
        if isinstance(made, int):
            made = scans(made)
        folder = tmp_path_factory.mktemp("dataset")
        patients = -(-len(made) // 2)
        folds = {scan.key: number // 2 * 3 // patients + 1 for number, scan in enumerate(made)}
        write_dataset(str(folder), "noise", made, folds, {}, codec, shard_mb=1)
        return open_dataset(str(folder))

    return pack
