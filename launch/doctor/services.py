"""What lies outside the nodes: the dataset's store, the mirror of the checkpoints, and the tracker."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from data_pipeline import Fault, WrongCall, open_store
from launch.doctor.finding import Finding, Wanted, failure
from trainer.feasible import check, check_iteration, dataset_of
from trainer.tracking import import_mlflow, root_of, without_credentials

TRACKER_SECONDS = 5
"""Seconds of one try to reach a tracker, of which there are two."""

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def look_at_configuration(wanted: Wanted) -> Iterator[Finding]:
    """Whether so many processes can train it, whatever the dataset."""
    if not wanted.given:
        return
    try:
        check_iteration(wanted.config, wanted.world)
    except WrongCall as wrong:
        yield failure("configuration", wrong, "change that key")
    else:
        processes = f"{wanted.world} processes" if wanted.world > 1 else "one process"
        yield Finding("configuration", "ok", f"{processes} can train it in batches of {wanted.config.training.batch}")


def look_at_dataset(wanted: Wanted) -> Iterator[Finding]:
    """The index of data.uri read, and a scan of it."""
    if not wanted.config.data.uris:
        if wanted.given:
            advice = "add data.uri=PATH or data.uri=s3://BUCKET/PREFIX of an ingested dataset"
            yield Finding("dataset", "warning", "data.uri is not set: no dataset was looked at", advice)
        return
    began = time.monotonic()
    try:
        dataset = dataset_of(wanted.config)
        check(wanted.config, dataset, wanted.world)
    except Fault as fault:
        if _is_of_configuration(wanted, fault):
            return
        yield failure("dataset", fault, "make it readable from this host, or name another with data.uri=")
        return
    read = time.monotonic()
    try:
        dataset.scan(0)
    except Fault as fault:
        yield failure("dataset", fault, "see which scans are damaged with sonotrain data verify")
        return
    now = time.monotonic()
    told = f"{len(dataset.index.samples)} scans in {dataset.uri}; index read in {read - began:.2f} s, a scan in "
    values = {"scans": len(dataset.index.samples), "digest": dataset.index.digest, "seconds_of_a_scan": now - read}
    yield Finding("dataset", "ok", f"{told}{now - read:.3f} s", values=values)


def look_at_mirror(wanted: Wanted) -> Iterator[Finding]:
    """A small object written to the mirror in S3, read again and deleted."""
    uri = wanted.config.checkpoints.mirror
    if not uri.startswith("s3://"):
        return
    name, content = f".doctor/{uuid.uuid4().hex}", uuid.uuid4().bytes
    began = time.monotonic()
    try:
        store = open_store(uri)
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            store.put(name, Path(file.name))
        try:
            same = store.read(name) == content
        finally:
            store.delete(name)
    except Fault as fault:
        yield failure("mirror", fault, "give the credentials the right to write, read and delete there")
        return
    if not same:
        yield Finding("mirror", "failed", f"{uri} gives back other bytes than were written", "use another store")
        return
    took = time.monotonic() - began
    told = f"{uri}: a small object written, read and deleted in {took:.2f} s"
    yield Finding("mirror", "ok", told, values={"seconds": took})


def look_at_tracker() -> Finding:
    """MLFLOW_TRACKING_URI asked for an experiment, with short time-outs; a database is opened and not changed."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        told = f"MLFLOW_TRACKING_URI is not set: runs go to mlflow.db in {Path.cwd()}"
        if os.access(Path.cwd(), os.W_OK):
            return Finding("tracker", "ok", told)
        return Finding("tracker", "failed", f"{told}, which cannot be written to", "set it, or start elsewhere")
    shown = without_credentials(uri)
    began = time.monotonic()
    try:
        _ask_database(uri) if uri.startswith(_DATABASES) else _ask_server()
    except Exception as silent:
        advice = "start the tracker, or correct MLFLOW_TRACKING_URI and what gives it credentials"
        return Finding("tracker", "failed", f"{shown}: {root_of(silent)}", advice)
    took = time.monotonic() - began
    return Finding("tracker", "ok", f"{shown} answers in {took:.2f} s", values={"seconds": took})


def _ask_server() -> None:
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(TRACKER_SECONDS)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
    import_mlflow().MlflowClient().search_experiments(max_results=1)


def _ask_database(uri: str) -> None:
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.engine import make_url

    address = make_url(uri)
    if address.get_backend_name() == "sqlite":
        file = Path(address.database or "mlflow.db")
        if not file.exists():  # MLflow makes it
            if not os.access(file.absolute().parent, os.W_OK):
                raise PermissionError(f"{file.absolute().parent} cannot be written to")
            return
        sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", timeout=TRACKER_SECONDS, uri=True).close()
    engine = create_engine(address)
    try:
        inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _is_of_configuration(wanted: Wanted, fault: Fault) -> bool:
    """Whether the fault has been told in the line of the configuration."""
    try:
        check_iteration(wanted.config, wanted.world)
    except WrongCall as told:
        return str(told) == str(fault)
    return False
