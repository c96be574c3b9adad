"""A registered model serves where nothing of this project is installed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.models import write_mixed_ensemble
from trainer import networks
from trainer.predict import predict_files
from trainer.registry import register
from trainer.serving import load_segmenter

PACKAGES = ("torch", "numpy", "mlflow", "pillow")
ABSENT = ("deepspeed", "ray", "webdataset", "safetensors", "cv2", "trainer", "data_pipeline")
PREDICT = """
import importlib.util, json, sys
from pathlib import Path
import mlflow, pandas

names, uri, folder = json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
files = sorted(folder.glob("*.image.*"))
outlined = mlflow.pyfunc.load_model(uri).predict(pandas.DataFrame({"image": [file.read_bytes() for file in files]}))
for file, mask in zip(files, outlined["mask"], strict=True):
    (folder / f"{file.name.split('.')[0]}.mask.png").write_bytes(mask)
print(json.dumps([name for name in names if importlib.util.find_spec(name)]))
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment with torch, numpy, mlflow and an image decoder, and what these need."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    wanted = [f"{package}=={version(package).split('+')[0]}" for package in PACKAGES]
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True, timeout=900)
    yield python
    shutil.rmtree(folder)  # More than a gigabyte, which pytest would keep.


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_bare_environment_predicts_the_masks_that_an_ensemble_of_several_kinds_predicts_here(
    bare_python: Path, tracker: Path, model_folder: Path, tmp_path: Path
) -> None:
    ensemble = write_mixed_ensemble(model_folder, tmp_path / "ensemble")
    made = register(ensemble, "bare", "candidate", None, {}, {})
    noise = np.random.default_rng(3)
    images = [noise.integers(0, 256, size, dtype=np.uint8) for size in ((64, 48), (151, 93), (40, 200))]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.image.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [bare_python, "-c", PREDICT, json.dumps(ABSENT), made.uri, str(tmp_path)],
        cwd=tracker,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == []
    files = [tmp_path / f"{number}.image.png" for number in range(len(images))]
    predict_files(load_segmenter(ensemble, networks.build), files, tmp_path / "here")
    for number in range(len(images)):
        there = np.array(Image.open(tmp_path / f"{number}.mask.png"))
        assert 0 < there.sum() < there.size * 255
        np.testing.assert_array_equal(there, np.array(Image.open(tmp_path / "here" / f"{number}.image.mask.png")))
