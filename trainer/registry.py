"""Trained networks in MLflow's model registry: put there, listed, and taken from there as data, without their code."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_pipeline import Fault, WrongCall
from trainer import networks
from trainer.run_folder import RunFolder
from trainer.serving.opening import DESCRIPTION, WEIGHTS, load_segmenter, member_folders, read_description
from trainer.serving.package import INSIDE, package_model
from trainer.tracking import import_mlflow, root_of, without_credentials

_LOGGED_NAME = "segmenter"
_SHA256_TAG = "weights_sha256"
_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")
_RUN_URI = re.compile(r"runs:/(?P<run>[^/]+)/(?P<name>[^/]+)")
_FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN/NAME"


@dataclass(frozen=True)
class RegisteredModel:
    """A version just registered, and the URI under which others find it."""

    name: str
    version: int
    alias: str
    uri: str


@dataclass(frozen=True)
class ModelVersion:
    """What the registry tells about a version. What was not told when it was registered is None."""

    version: int
    aliases: tuple[str, ...]
    dsc: float | None
    dataset_digest: str | None
    created: datetime


def register(
    model_folder: Path, name: str, alias: str, run_id: str | None, metrics: Mapping[str, float], tags: Mapping[str, str]
) -> RegisteredModel:
    """Make a model folder's network, or ensemble, the newest version of `name`, and let `alias` point to it.

    Metrics become tags of the version beside `tags`, and with a run_id metrics of its logged model. `list_models`
    shows those called `dsc` and `dataset_digest`. The alias is set last, so that it never points to a half. Raises
    WrongCall for a folder that holds no sound model, and Fault when the tracker does not take it.
    """
    _check(model_folder)
    sha256 = _fingerprint(model_folder)
    told = {**tags, **{key: f"{value:.6g}" for key, value in metrics.items()}, _SHA256_TAG: sha256}
    with _tracker(f"{model_folder} was not registered as {name} and stays where it is") as client:
        model_id = _log_model(client, model_folder, run_id, metrics, told)
        _create_name(client, name)
        version = client.create_model_version(
            name, source=f"models:/{model_id}", run_id=run_id, tags=told, model_id=model_id
        ).version
        client.set_registered_model_alias(name, alias, version)
    return RegisteredModel(name, int(version), alias, f"models:/{name}@{alias}")


def list_models(name: str) -> list[ModelVersion]:
    """The versions of a registered model, newest first. Raises WrongCall, naming those there are, if it is none."""
    with _tracker(f"the versions of {name} cannot be listed") as client:
        aliases = _known(client, name)
        found = client.search_model_versions(f"name = '{name}'", order_by=["version_number DESC"])
    return [
        ModelVersion(
            version=int(entry.version),
            aliases=tuple(sorted(alias for alias, version in aliases.items() if version == int(entry.version))),
            dsc=float(entry.tags["dsc"]) if "dsc" in entry.tags else None,
            dataset_digest=entry.tags.get("dataset_digest"),
            created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        )
        for entry in found
    ]


def model_folder(model: str, cache: Path) -> Path:
    """The model folder that a person means: a checkpoint, an ensemble, or a registered model pulled into `cache`.

    A finished training's output folder stands for its last checkpoint. Raises WrongCall for what is none of these.
    """
    if model.startswith(("models:", "runs:")):
        return pull(model, cache)
    folder = Path(model)
    if RunFolder(folder).result.is_file():
        folder = Path(RunFolder(folder).read_result().checkpoint)
    if (folder / DESCRIPTION).is_file():
        return folder
    raise WrongCall(
        f"{model}: no model; expected a checkpoint folder, an ensemble's, a finished training's output, or {_FORMS}"
    )


def pull(uri: str, into: Path) -> Path:
    """Download a registered model's weights and description to a folder of its own below `into`; its path.

    The model's code is neither downloaded nor run. The folder appears when it is whole; one that is there already,
    with the weights that were registered, is used as it is. Raises WrongCall, naming what exists, for a model that
    does not, and Fault when the tracker cannot be reached or the weights are not those that were registered.
    """
    with _tracker(f"{uri} cannot be pulled") as client:
        source = _resolve(client, uri)
        folder = into / source.folder
        if not folder.exists():
            into.mkdir(parents=True, exist_ok=True)
            _download(source, folder)
        if _fingerprint(folder) != source.sha256:
            raise Fault(f"{folder}: {WEIGHTS} is not what was registered as {uri}; delete the folder and pull again")
    return folder


@dataclass(frozen=True)
class _Source:
    uri: str
    """Of the packaged model's data, without its code."""
    folder: str
    sha256: str


def _check(folder: Path) -> None:
    try:
        load_segmenter(folder, networks.build)
    except ValueError as broken:
        raise WrongCall(str(broken)) from broken


def _log_model(
    client: Any, folder: Path, run_id: str | None, metrics: Mapping[str, float], tags: dict[str, str]
) -> str:
    """A packaged model among the run's outputs; its id. `mlflow.pyfunc.log_model` does as much, for the process's
    current run only, and leaves paths of this machine in it.
    """
    from mlflow.entities import LoggedModelOutput, Metric

    experiment = client.get_run(run_id).info.experiment_id if run_id else "0"
    model_id: str = client.create_logged_model(experiment, _LOGGED_NAME, source_run_id=run_id, tags=tags).model_id
    try:
        with TemporaryDirectory() as scratch:
            package_model(folder, Path(scratch) / "packaged", model_id, run_id)
            client.log_model_artifacts(model_id, str(Path(scratch) / "packaged"))
        client.finalize_logged_model(model_id, "READY")
    except BaseException:
        with suppress(Exception):
            client.finalize_logged_model(model_id, "FAILED")
        raise
    if run_id:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        now = time.time_ns() // 1_000_000
        measured = [Metric(key, value, now, 0, model_id=model_id, run_id=run_id) for key, value in metrics.items()]
        client.log_batch(run_id, metrics=measured, synchronous=True)
    return model_id


def _create_name(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as failure:
        if failure.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _resolve(client: Any, uri: str) -> _Source:
    if match := _MODEL_URI.fullmatch(uri):
        return _resolve_version(client, uri, match["name"], match["alias"], match["version"])
    if match := _RUN_URI.fullmatch(uri):
        return _resolve_output(client, uri, match["run"], match["name"])
    raise WrongCall(f"{uri}: no model; expected {_FORMS}")


def _resolve_version(client: Any, uri: str, name: str, alias: str | None, version: str | None) -> _Source:
    aliases = _known(client, name)
    if alias is not None and alias not in aliases:
        raise WrongCall(f"{uri}: {name} has no alias {alias}; it has {_listed(aliases)}")
    number = aliases[alias] if alias is not None else int(version or 0)
    versions = {int(entry.version): entry for entry in client.search_model_versions(f"name = '{name}'")}
    if number not in versions:
        raise WrongCall(f"{uri}: {name} has no version {number}; it has {_listed(map(str, sorted(versions)))}")
    return _source(f"models:/{name}/{number}", f"{name}-{number}", versions[number].tags, uri)


def _resolve_output(client: Any, uri: str, run_id: str, name: str) -> _Source:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as failure:
        if failure.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise WrongCall(f"{uri}: the tracker has no run {run_id}") from failure
    outputs = run.outputs.model_outputs if run.outputs else []
    models = {model.name: model for model in (client.get_logged_model(output.model_id) for output in outputs)}
    if name not in models:
        raise WrongCall(f"{uri}: the run has no model {name}; it has {_listed(models)}")
    return _source(models[name].artifact_location, f"{run_id}-{name}", models[name].tags, uri)


def _source(packaged: str, folder: str, tags: Mapping[str, str], asked: str) -> _Source:
    sha256 = tags.get(_SHA256_TAG)
    if sha256 is None:
        raise WrongCall(f"{asked}: was not registered by sonotrain, which notes {_SHA256_TAG} with each model")
    return _Source(f"{packaged}/{INSIDE}", f"{folder}-{sha256[:12]}", sha256)


def _download(source: _Source, folder: Path) -> None:
    """Beside its place first, and there when it is whole and sound."""
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        fetched = Path(import_mlflow().artifacts.download_artifacts(artifact_uri=source.uri, dst_path=scratch))
        if _fingerprint(fetched) != source.sha256:
            raise Fault(f"{source.uri}: {WEIGHTS} is damaged in the tracker's artifact store; register the model again")
        with suppress(OSError):
            fetched.rename(folder)
    if not folder.exists():
        raise Fault(f"{folder}: cannot be written")


def _known(client: Any, name: str) -> dict[str, int]:
    """The aliases of a registered model and their versions."""
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as failure:
        if failure.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        others = [model.name for model in client.search_registered_models(max_results=20)]
        raise WrongCall(f"there is no registered model {name} in {_place()}; there is {_listed(others)}") from failure
    return {alias: int(version) for alias, version in aliases.items()}


@contextmanager
def _tracker(failed: str) -> Iterator[Any]:
    """MLflow's client. Whatever goes wrong with it, in any of its many stores, becomes a Fault that begins `failed`."""
    mlflow = import_mlflow()
    try:
        yield mlflow.MlflowClient()
    except Fault:
        raise
    except Exception as failure:
        raise Fault(f"{failed}: {_place()}: {root_of(failure)}") from failure


def _place() -> str:
    return without_credentials(import_mlflow().get_tracking_uri())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _fingerprint(folder: Path) -> str:
    """sha256 of a model's weights; of an ensemble's, that of its members' in order."""
    each = [_sha256(member / WEIGHTS) for member in member_folders(folder, read_description(folder))]
    return each[0] if len(each) == 1 else hashlib.sha256(" ".join(each).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
