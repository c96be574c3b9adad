"""A trained network as a folder that MLflow can load without this project: an MLflow "model from code"."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from trainer.networks import NETWORKS
from trainer.serving.bundle import bundle_source
from trainer.tracking import import_mlflow

WEIGHTS = "generator.safetensors"
DESCRIPTION = "network.json"
INSIDE = "artifacts/model"
"""Where a packaged model has these two files."""

_CODE = "model.py"
_PACKAGES = ("mlflow", "torch", "numpy", "pandas", "pillow")


def package_model(model_folder: Path, into: Path, model_id: str, run_id: str | None) -> None:
    """Write a model folder's network as an MLflow model to the folder `into`, which is made.

    It holds one Python file, the weights as safetensors, `network.json`, and MLflow's own descriptions: nothing
    pickled, and no path of this machine. model_id and run_id are what the tracker calls it and its origin.
    """
    mlflow = import_mlflow()
    described = json.loads((model_folder / DESCRIPTION).read_text(encoding="utf-8"))
    with TemporaryDirectory() as scratch:
        code, carried = Path(scratch) / _CODE, Path(scratch) / "model"
        code.write_text(_source(described["network"]), encoding="utf-8")
        carried.mkdir()
        for name in (WEIGHTS, DESCRIPTION):
            shutil.copyfile(model_folder / name, carried / name)
        model = mlflow.models.Model(
            artifact_path=f"models:/{model_id}", model_id=model_id, run_id=run_id, model_uuid=model_id
        )
        mlflow.pyfunc.save_model(
            path=str(into),
            python_model=str(code),
            artifacts={"model": str(carried)},
            signature=_signature(described["threshold"]),
            input_example=_example(),
            pip_requirements=[f"{package}=={_public_version(package)}" for package in _PACKAGES],
            mlflow_model=model,
        )
    # MLflow notes where the files came from on this machine, which helps nobody elsewhere.
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = _CODE
    flavor["artifacts"]["model"]["uri"] = INSIDE
    model.save(str(into / "MLmodel"))


def _source(network: str) -> str:
    kind = NETWORKS[network]
    return f"{bundle_source(kind.__module__)}\n\nmlflow.models.set_model(LesionModel({kind.__name__}))\n"


def _signature(threshold: float) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec("binary", "image")]),
        outputs=Schema(
            [
                ColSpec("binary", "mask"),
                ColSpec("boolean", "lesion"),
                ColSpec("double", "area_fraction"),
                ColSpec("double", "probability"),
            ]
        ),
        params=ParamSchema([ParamSpec("threshold", "double", threshold)]),
    )


def _example() -> Any:
    """One even gray scan, to show the form of a request."""
    import pandas as pd

    file = BytesIO()
    Image.fromarray(np.full((64, 64), 128, dtype=np.uint8)).save(file, "PNG")
    return pd.DataFrame({"image": [file.getvalue()]})


def _public_version(package: str) -> str:
    """2.13.0 of 2.13.0+cpu: how a package index has it."""
    return importlib.metadata.version(package).split("+")[0]
