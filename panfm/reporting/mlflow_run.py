"""A record as a run in an MLflow tracking store (optional extra `mlflow`): parameters from its start, metrics from its rounds.

Which line was taken last stands in the MLflow run itself, written together with what it added, so following again goes on
there, from any machine.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from panfm.errors import ConfigError, DataError
from panfm.reporting.follow import Entry
from panfm.reporting.record import RunFinished, RunStarted

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

EXPERIMENT = "panfm"
RUN_TAG, LINE_TAG = "panfm.run", "panfm.record_line"

STATUS = {"complete": "FINISHED", "incomplete": "FAILED", "stopped": "KILLED"}
"""Word of the record -> MLflow's."""

_MOST_METRICS = 900
"""In one request; the store takes up to 1,000 things."""

_NOT_A_KEY = re.compile(r"[^A-Za-z0-9_\-. /]")


class MlflowFollower:
    """Writes one run into a tracking store."""

    def __init__(self, tracking_uri: str) -> None:
        """Connect.

        Args:
            tracking_uri: such as sqlite:///runs/mlflow.db or https://mlflow.example.org.
        Raises: ConfigError when MLflow is not installed, or the store cannot be used.
        """
        self._client = _client(tracking_uri)
        self._run_id = ""
        self._taken = 0

    def take(self, entries: Sequence[Entry]) -> None:
        """Add what is new. Raises: DataError when the store fails, or the record does not begin with a run's start."""
        from mlflow.exceptions import MlflowException

        try:
            for entry in entries:
                self._take(entry)
        except MlflowException as error:
            first_line = str(error).partition("\n")[0]
            raise DataError(f"the MLflow store does not take the run's metrics: {first_line:.200}") from error

    def close(self) -> None:
        """Nothing is held open."""

    def _take(self, entry: Entry) -> None:
        from mlflow.entities import Metric, RunTag

        if isinstance(entry.event, RunStarted):
            self._begin(entry.event)
        if not self._run_id:
            raise DataError("the record does not begin with the start of a run, so MLflow has no name for it")
        if entry.line <= self._taken:
            return
        milliseconds = round(1000 * entry.seconds)
        metrics = [Metric(_key(s.name), s.value, milliseconds, s.step) for s in entry.scalars]
        *most, last = _parts(metrics)
        for part in most:
            self._client.log_batch(self._run_id, metrics=part)
        self._client.log_batch(self._run_id, metrics=last, tags=[RunTag(LINE_TAG, str(entry.line))])
        if isinstance(entry.event, RunFinished):
            self._client.set_terminated(self._run_id, STATUS.get(entry.event.status, "FAILED"))

    def _begin(self, start: RunStarted) -> None:
        """The MLflow run of this run: the one that is there, or a new one."""
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        found = self._client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{_quoted(start.run)}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            self._taken = int(found[0].data.tags.get(LINE_TAG, "0"))
            return
        made = self._client.create_run(experiment_id, run_name=start.run, tags={RUN_TAG: _quoted(start.run)})
        self._run_id, self._taken = made.info.run_id, 0
        for name in ("seed", "rounds", "panfm_version", "torch_version", "flower_version", "init_from"):
            self._client.log_param(self._run_id, name, getattr(start, name))


def _client(tracking_uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # what a study does is nobody else's business
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise ConfigError("MLflow is not installed here; install panfm[mlflow], or follow without it") from error
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        client.get_experiment_by_name(EXPERIMENT)
    except MlflowException as error:
        first_line = str(error).partition("\n")[0]
        raise ConfigError(f"the MLflow store {tracking_uri!r:.120} cannot be used: {first_line:.200}") from error
    return client


def _parts(metrics: list[Metric]) -> Iterator[list[Metric]]:
    """At least one part, so that every entry is noted as taken."""
    yield from (metrics[start : start + _MOST_METRICS] for start in range(0, max(len(metrics), 1), _MOST_METRICS))


def _key(name: str) -> str:
    return _NOT_A_KEY.sub("_", name)


def _quoted(run: str) -> str:
    """The name as it can stand in a search; a run's own name always can."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", run)
