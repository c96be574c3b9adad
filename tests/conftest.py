"""Set-up that tests of several rooms share."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer import networks


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
    """A narrow network that was never trained, whose batch norms have seen something, as a checkpoint has it."""
    torch.manual_seed(7)
    widths = [4, 8, 8, 8, 16]
    network = networks.build("unet", widths=widths)
    with torch.no_grad():
        network(torch.rand(4, 1, 64, 48))
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
