"""A trial's run in MLflow below the study's. The study's own thread writes it: no trial costs a thread or a wait.

Each write may be tried again, also by a later start of the same study: the run is looked for before one is created, and
a number that is there is not written twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from trainer.tracking import Run, Status

_LONGEST_TEXT = 1000


class Numbers:
    """Metrics of a run, which may have some from before: of each key, what is beyond the last step that is there."""

    def __init__(self, new: bool = False) -> None:
        self._new = new
        self._last: dict[str, int] = {}

    def write(self, values: Mapping[str, float], step: int, client: Any, run_id: str) -> bool:
        """Write those that are not there; whether there were any."""
        from mlflow.entities import Metric

        for key in values.keys() - self._last.keys():
            known = [] if self._new else client.get_metric_history(run_id, key)
            self._last[key] = max((point.step for point in known), default=-1)
        now = time.time_ns() // 1_000_000
        new = [Metric(key, float(value), now, step) for key, value in values.items() if step > self._last[key]]
        if new:
            client.log_batch(run_id, metrics=new, synchronous=True)
            self._last |= {metric.key: step for metric in new}
        return bool(new)


class ChildRun:
    """A run that is known by its name among those of its parent. No call raises or waits."""

    def __init__(self, parent: Run, name: str, params: Mapping[str, Any]) -> None:
        self._parent = parent
        self._name = name
        self._params = {key: str(value)[:_LONGEST_TEXT] for key, value in params.items()}
        self._numbers = Numbers()
        self._id: str | None = None
        self._status = ""
        parent.write(self._open)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers of this step that are not there yet; NaN is left out."""
        numbers = {key: value for key, value in values.items() if not math.isnan(value)}
        self._parent.write(partial(self._write_metrics, numbers, step))

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._parent.write(partial(self._write_tags, {key: value[:_LONGEST_TEXT] for key, value in values.items()}))

    def finish(self, status: Status) -> None:
        """Close the run, if it is not closed in this way already."""
        self._parent.write(partial(self._write_status, status))

    def _open(self, client: Any, parent_id: str) -> None:
        """Find the run, or create it, with its parameters. Those of a run never change."""
        from mlflow.entities import Param

        experiment = client.get_run(parent_id).info.experiment_id
        own = f"tags.`mlflow.parentRunId` = '{parent_id}' and tags.`mlflow.runName` = '{self._name}'"
        run = next(iter(client.search_runs([experiment], own, max_results=1)), None)
        if run is None:
            run = client.create_run(experiment, tags={"mlflow.parentRunId": parent_id}, run_name=self._name)
            self._numbers = Numbers(new=True)
        lacking = [Param(key, text) for key, text in self._params.items() if key not in run.data.params]
        if lacking:
            client.log_batch(run.info.run_id, params=lacking, synchronous=True)
        self._status = run.info.status
        self._id = run.info.run_id

    def _write_metrics(self, values: Mapping[str, float], step: int, client: Any, _parent_id: str) -> None:
        if self._id and self._numbers.write(values, step, client, self._id) and self._status != "RUNNING":
            client.update_run(self._id, status="RUNNING")
            self._status = "RUNNING"

    def _write_tags(self, values: Mapping[str, str], client: Any, _parent_id: str) -> None:
        from mlflow.entities import RunTag

        if self._id:
            client.log_batch(self._id, tags=[RunTag(key, value) for key, value in values.items()], synchronous=True)

    def _write_status(self, status: Status, client: Any, _parent_id: str) -> None:
        if self._id and self._status != status:
            client.set_terminated(self._id, status=status)
            self._status = status
