"""A trained network, or an ensemble, as a folder that MLflow loads without this project: a "model from code"."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from trainer.networks import NETWORKS
from trainer.serving.bundle import bundle_source
from trainer.serving.opening import DESCRIPTION, WEIGHTS, member_folders, read_description
from trainer.tracking import import_mlflow

INSIDE = "artifacts/model"
"""Where a packaged model has the files of its model folder."""

_CODE = "model.py"
_PACKAGES = ("mlflow", "torch", "numpy", "pandas", "pillow")


def package_model(model_folder: Path, into: Path, model_id: str, run_id: str | None) -> None:
    """Write a model folder's network, or an ensemble, as an MLflow model to the folder `into`, which is made.

    It holds one Python file, the weights as safetensors, `network.json`, and MLflow's own descriptions: nothing
    pickled, and no path of this machine. model_id and run_id are what the tracker calls it and its origin.
    """
    mlflow = import_mlflow()
    described = read_description(model_folder)
    kinds = dict.fromkeys(read_description(folder)["network"] for folder in member_folders(model_folder, described))
    with TemporaryDirectory() as scratch:
        code, carried = Path(scratch) / _CODE, Path(scratch) / "model"
        code.write_text(_source(kinds), encoding="utf-8")
        copy_model(model_folder, carried)
        model = mlflow.models.Model(
            artifact_path=f"models:/{model_id}", model_id=model_id, run_id=run_id, model_uuid=model_id
        )
        mlflow.pyfunc.save_model(
            path=str(into),
            python_model=str(code),
            artifacts={"model": str(carried)},
            signature=_signature(described),
            input_example=_example(),
            pip_requirements=[f"{package}=={_public_version(package)}" for package in _PACKAGES],
            mlflow_model=model,
        )
    # MLflow notes where the files came from on this machine, which helps nobody elsewhere.
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = _CODE
    flavor["artifacts"]["model"]["uri"] = INSIDE
    model.save(str(into / "MLmodel"))


def copy_model(model_folder: Path, into: Path) -> None:
    """Copy what makes a model of a folder, and nothing that lies beside it, to the folder `into`, which is made.

    Raises ValueError for a description that cannot be read.
    """
    into.mkdir()
    shutil.copyfile(model_folder / DESCRIPTION, into / DESCRIPTION)
    for member in member_folders(model_folder, read_description(model_folder)):
        place = into / member.relative_to(model_folder)
        place.mkdir(exist_ok=True)
        for name in (WEIGHTS, DESCRIPTION):
            shutil.copyfile(member / name, place / name)


def _source(names: Iterable[str]) -> str:
    kinds = {name: NETWORKS[name] for name in names}
    source = bundle_source(*dict.fromkeys(kind.__module__ for kind in kinds.values()))
    carried = ", ".join(f'"{name}": {kind.__name__}' for name, kind in kinds.items())
    return f"{source}\n\nmlflow.models.set_model(LesionModel({{{carried}}}))\n"


def _signature(described: Mapping[str, Any]) -> Any:
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
        params=ParamSchema(
            [
                ParamSpec("threshold", "double", described["threshold"]),
                ParamSpec("flips", "boolean", described.get("flips", False)),
                ParamSpec("largest_component", "boolean", described.get("largest_component", False)),
            ]
        ),
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
