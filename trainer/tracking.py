"""A run written down in MLflow: from rank 0 alone, and never in the way of the training.

Every call puts what it is given into memory and returns; one thread writes it, about once a second. A tracker
that cannot be reached, is locked or has a full disk makes that thread try again until it works. Nothing waits
for it but `start_run` and `finish`, each with a bound.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

from trainer.sqlite_lock import alone_at

START_SECONDS = 30.0
"""Longest wait for the run's id. A run that has none by then gets it later, in the background."""
FINISH_SECONDS = 20.0
"""Longest wait for the last values to be written."""
FAILED_SECONDS = 5.0
"""The same for a run that has failed, where others wait for this process's end."""
LARGEST_BACKLOG = 20_000
"""Calls kept in memory while the tracker does not answer; later ones are dropped and counted."""

Status = Literal["FINISHED", "FAILED", "KILLED"]

Write = Callable[[Any, str], None]
"""Takes MLflow's client and the run's id."""

_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_LONGEST_PARAM = 6000
_LONGEST_TAG = 5000
_PARAMS_OF_A_BATCH = 100
_METRICS_OF_A_BATCH = 1000
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
_THREAD = "tracking"

_log = logging.getLogger(__name__)


class Run(Protocol):
    """What a training tells about itself. None of its calls raises or blocks."""

    @property
    def id(self) -> str | None:
        """MLflow's id of the run; None where nothing is written, and until the tracker has answered once."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers as they are at this step; the time is that of the call."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file or a whole folder with the run. It is read later, so it stays as it is until `finish`."""

    def write(self, entry: Write) -> None:
        """Have this called in its turn among numbers and tags, again until the tracker has taken it or refused it."""

    def finish(self, status: Status = "FINISHED") -> None:
        """Write what is left, at most for FINISH_SECONDS (FAILED_SECONDS after a failure), and close the run."""


def start_run(
    name: str,
    experiment: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    parent: str | None = None,
    resume: str | None = None,
    rank: int = 0,
) -> Run:
    """Start one run of an MLflow experiment; on other ranks than 0, or without an experiment, one that does nothing.

    `parent` is the id of the run that this one belongs to; `resume` that of a run to go on with, which a new one
    replaces, with a warning, when the tracker does not have it any more. Where runs go is MLflow's own business:
    MLFLOW_TRACKING_URI, or else mlflow.db in the working directory. Returns after START_SECONDS at most.
    """
    if rank != 0 or not experiment:
        return _SilentRun()
    belongs = {"mlflow.parentRunId": parent} if parent else {}
    return _WrittenRun(name, experiment, params, {**tags, **belongs}, resume)


def import_mlflow() -> ModuleType:
    """MLflow, imported when it is needed (it takes seconds), quiet, without telemetry and with short time-outs.

    Values that the environment already has are left alone. By MLflow's own it waits minutes for a dead server, and
    packs a project's uv.lock that happens to lie in the working directory into every model.
    """
    for variable, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("DO_NOT_TRACK", "true"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),
        ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_LOGGING_LEVEL", "WARNING"),
        ("MLFLOW_UV_AUTO_DETECT", "false"),
    ):
        os.environ.setdefault(variable, value)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # It would print the tracking URI's password.
    import mlflow

    return mlflow


def without_credentials(text: str) -> str:
    """Text with the user and password of every URI in it, and values of secret parameters, struck out."""
    text = re.sub(r"://[^/\s'\"]+@", "://***@", text)
    return re.sub(r"(?i)\b((?:[a-z_]*(?:password|passwd|secret|token))=)[^&\s'\"]+", r"\1***", text)


def root_of(failure: BaseException) -> str:
    """The first cause of a failure in one line, without credentials: `Connection refused`, `database is locked`."""
    while (earlier := failure.__cause__ or failure.__context__) is not None:
        failure = earlier
    lines = str(failure).strip().splitlines() or [type(failure).__name__]
    return without_credentials(lines[0])[:300]


class _SilentRun:
    """The run of every other rank, and of a training that is not tracked."""

    id = None

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def artifact(self, path: Path, folder: str | None = None) -> None: ...

    def write(self, entry: Write) -> None: ...

    def finish(self, status: Status = "FINISHED") -> None: ...


_Number = tuple[str, float, int, int]
"""Key, value, milliseconds since 1970, step."""


class _WrittenRun:
    """A run and the thread that writes it. Numbers and tags keep their order; files come after them."""

    def __init__(
        self, name: str, experiment: str, params: Mapping[str, Any], tags: Mapping[str, str], resume: str | None
    ) -> None:
        self._name = name
        self._experiment = experiment
        self._tags = {key: _shortened(value, _LONGEST_TAG) for key, value in tags.items()}
        self._resume = resume
        self._id = resume
        self._client: Any = None
        self._place = "the tracker"
        self._values: deque[list[_Number] | Write] = deque([_params_writer(params)])
        self._files: deque[tuple[Path, str | None]] = deque()
        self._status: Status | None = None
        self._failures = 0
        self._failures_in_a_row = 0
        self._dropped = 0
        self._tried = threading.Event()
        self._finishing = threading.Event()
        self._thread = threading.Thread(target=self._write_until_finished, name=_THREAD, daemon=True)
        self._thread.start()
        if not self._tried.wait(START_SECONDS):
            _log.warning(
                "tracking: no answer from the tracker after %.0f s; training goes on, the run is written as soon "
                "as there is one",
                START_SECONDS,
            )

    @property
    def id(self) -> str | None:
        return self._id

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        now = time.time_ns() // 1_000_000
        numbers = [(key, float(value), now, step) for key, value in values.items()]
        for start in range(0, len(numbers), _METRICS_OF_A_BATCH):
            self._keep(numbers[start : start + _METRICS_OF_A_BATCH])

    def tags(self, values: Mapping[str, str]) -> None:
        self._keep(_tags_writer(dict(values)))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        if len(self._files) < LARGEST_BACKLOG:
            self._files.append((path.absolute(), folder))
        else:
            self._dropped += 1

    def write(self, entry: Write) -> None:
        self._keep(entry)

    def finish(self, status: Status = "FINISHED") -> None:
        if self._finishing.is_set():
            return
        self._status = status
        self._finishing.set()
        self._thread.join(FAILED_SECONDS if status == "FAILED" else FINISH_SECONDS)
        left = len(self._values) + len(self._files) + self._dropped
        if self._thread.is_alive() or left:
            _log.warning(
                "tracking: the run ended with %d entries not written after %d failures; every value is in its "
                "metrics.jsonl, and writing is tried on as long as this process lives",
                left,
                self._failures,
            )

    def _keep(self, entry: list[_Number] | Write) -> None:
        if len(self._values) < LARGEST_BACKLOG:
            self._values.append(entry)
        else:
            self._dropped += 1

    def _write_until_finished(self) -> None:
        closed = False
        while True:
            last = self._finishing.is_set()
            try:
                if self._client is None:
                    self._open()
                self._write_values()
                if last and not closed:
                    self._client.set_terminated(self._id, status=self._status)
                    closed = True
                self._write_files()
            except Exception as failure:
                self._note(failure)
            else:
                self._note_success()
                if closed:
                    return
            self._tried.set()
            self._pause()

    def _pause(self) -> None:
        if not self._failures_in_a_row:
            self._finishing.wait(_PAUSE_SECONDS)
        elif self._finishing.is_set():
            time.sleep(_PAUSE_SECONDS)
        else:
            self._finishing.wait(min(2.0**self._failures_in_a_row, _LONGEST_PAUSE_SECONDS))

    def _open(self) -> None:
        """Find the run to go on with, or create one. The client is set last, when there is a run to write to."""
        mlflow = import_mlflow()
        for noisy in ("urllib3.connectionpool", "mlflow.store.db.utils"):
            logging.getLogger(noisy).addFilter(_of_another_thread)
        self._place = without_credentials(mlflow.get_tracking_uri())
        with alone_at(mlflow.get_tracking_uri(), START_SECONDS):
            client = mlflow.MlflowClient()
            if self._resume is not None and not self._reopened(client):
                _log.warning("tracking: run %s is gone from the tracker; a new one is started", self._resume)
                self._resume = self._id = None
            if self._id is None:
                experiment = _experiment_id(client, self._experiment)
                self._id = client.create_run(experiment, tags=self._tags, run_name=self._name).info.run_id
        self._client = client

    def _reopened(self, client: Any) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(self._resume)
        except MlflowException as failure:
            if failure.error_code in _REFUSALS:
                return False
            raise
        if run.info.lifecycle_stage != "active":
            return False
        client.update_run(self._resume, status="RUNNING")
        _tags_writer(self._tags)(client, run.info.run_id)
        return True

    def _write_values(self) -> None:
        while self._values:
            numbers = list(_first_numbers(self._values))
            first = self._values[0]
            write = _numbers_writer(numbers) if isinstance(first, list) else first
            self._unless_refused(write)
            for _ in range(max(1, len(numbers))):
                self._values.popleft()

    def _write_files(self) -> None:
        while self._files:
            self._unless_refused(_file_writer(*self._files[0]))
            self._files.popleft()

    def _unless_refused(self, write: Write) -> None:
        """Write; what the tracker will never take is dropped with a warning, and anything else is raised."""
        from mlflow.exceptions import MlflowException

        assert self._id is not None
        try:
            write(self._client, self._id)
        except (MlflowException, FileNotFoundError) as failure:
            if getattr(failure, "error_code", _REFUSALS[0]) not in _REFUSALS:
                raise
            self._dropped += 1
            _log.warning("tracking: left out of the run: %s", without_credentials(str(failure).splitlines()[0][:300]))

    def _note(self, failure: Exception) -> None:
        self._failures += 1
        self._failures_in_a_row += 1
        if self._failures == 1:
            _log.warning(
                "tracking: %s cannot be written to: %s. Training goes on, and what it tells is kept and written when "
                "that works again (is MLFLOW_TRACKING_URI right, and its server up?); every value is also in "
                "metrics.jsonl in the run's folder",
                self._place,
                root_of(failure),
            )

    def _note_success(self) -> None:
        if self._failures_in_a_row:
            _log.info("tracking: written again after %d failures", self._failures_in_a_row)
        self._failures_in_a_row = 0


def _first_numbers(entries: deque[list[_Number] | Write]) -> Iterator[list[_Number]]:
    """The lists of numbers at the front that go into one batch, at least one if the first entry is one."""
    room = _METRICS_OF_A_BATCH
    for position in range(len(entries)):
        entry = entries[position]
        if not isinstance(entry, list) or len(entry) > room:
            return
        room -= len(entry)
        yield entry


def _numbers_writer(lists: Sequence[list[_Number]]) -> Write:
    def write(client: Any, run_id: str) -> None:
        from mlflow.entities import Metric

        client.log_batch(run_id, metrics=[Metric(*number) for numbers in lists for number in numbers], synchronous=True)

    return write


def _params_writer(params: Mapping[str, Any]) -> Write:
    """Writes what the run does not have yet. A run's parameters cannot change in MLflow: those that did, since it
    was last started, are told in a tag.
    """
    texts = {key: _shortened(str(value), _LONGEST_PARAM) for key, value in params.items()}

    def write(client: Any, run_id: str) -> None:
        from mlflow.entities import Param

        known = client.get_run(run_id).data.params
        new = [Param(key, text) for key, text in texts.items() if key not in known]
        for start in range(0, len(new), _PARAMS_OF_A_BATCH):
            client.log_batch(run_id, params=new[start : start + _PARAMS_OF_A_BATCH], synchronous=True)
        changed = [f"{key}: {known[key]} -> {text}" for key, text in texts.items() if known.get(key, text) != text]
        if changed:
            _tags_writer({"changed_on_resume": "; ".join(changed)})(client, run_id)

    return write


def _tags_writer(tags: Mapping[str, str]) -> Write:
    def write(client: Any, run_id: str) -> None:
        from mlflow.entities import RunTag

        all_tags = [RunTag(key, _shortened(str(value), _LONGEST_TAG)) for key, value in tags.items()]
        for start in range(0, len(all_tags), _PARAMS_OF_A_BATCH):
            client.log_batch(run_id, tags=all_tags[start : start + _PARAMS_OF_A_BATCH], synchronous=True)

    return write


def _file_writer(path: Path, folder: str | None) -> Write:
    def write(client: Any, run_id: str) -> None:
        if path.is_dir():
            client.log_artifacts(run_id, str(path), folder)
        elif path.is_file():
            client.log_artifact(run_id, str(path), folder)
        else:
            raise FileNotFoundError(f"{path} does not exist any more")

    return write


def _experiment_id(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another job was quicker
            if experiment is None:
                raise
    return str(experiment.experiment_id)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _of_another_thread(record: logging.LogRecord) -> bool:
    """MLflow and urllib3 log each failure of our thread at length; it is told once, in one line."""
    return record.threadName != _THREAD
