"""An MLflow store holds the run's curves once, however often and from wherever its record is followed."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from panfm.errors import ConfigError, DataError
from panfm.reporting.follow import RecordTail
from panfm.reporting.followers import follow_once, open_followers
from panfm.reporting.mlflow_run import EXPERIMENT, LINE_TAG, MlflowFollower
from panfm.reporting.record import Event, RoundFinished, RunFinished, RunStarted, to_line

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # of MLflow's own libraries
Run = Callable[..., list[Event]]
WriteRecord = Callable[..., Path]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all tests: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def _runs(store: str, name: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    return [run for run in found if run.info.run_name == name]


def _named(events: list[Event], name: str, status: str = "complete") -> list[Event]:
    renamed = [replace(event, run=name) if isinstance(event, RunStarted) else event for event in events]
    return [replace(event, status=status) if isinstance(event, RunFinished) else event for event in renamed]


@pytest.mark.slow
def test_the_store_has_the_run_its_settings_and_its_curves(
    store: str, pretend_run: Run, save_run: WriteRecord, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    events = _named(pretend_run(2, 3), "whole-1")
    folder = save_run(tmp_path, events)
    for _ in range(2):  # the second time there is nothing new
        follow_once(folder, open_followers(folder, tensorboard=False, mlflow=store))
    (run,) = _runs(store, "whole-1")
    assert run.info.status == "FINISHED"
    assert (run.data.params["seed"], run.data.params["rounds"]) == ("7", "3")
    norms = {event.round: event.delta_norm["trunk"] for event in events if isinstance(event, RoundFinished)}
    history = MlflowClient(tracking_uri=store).get_metric_history(run.info.run_id, "delta_norm/trunk")
    assert [(point.step, point.value) for point in history] == list(norms.items())
    assert int(run.data.tags[LINE_TAG]) == len(events)


@pytest.mark.slow
def test_a_follower_that_died_goes_on_at_the_next_line(store: str, pretend_run: Run, tmp_path: Path) -> None:
    events = _named(pretend_run(2, 2), "cut-1", status="incomplete")
    lines = [to_line(event) + "\n" for event in events]
    for end in (len(lines) // 2, len(lines)):
        (tmp_path / "record.jsonl").write_text("".join(lines[:end]))
        follower = MlflowFollower(store)
        follower.take(RecordTail(tmp_path).new_entries())
    (run,) = _runs(store, "cut-1")
    assert run.info.status == "FAILED"
    assert int(run.data.tags[LINE_TAG]) == len(events)


@pytest.mark.slow
def test_a_record_without_a_start_has_no_name_there(store: str, tmp_path: Path) -> None:
    (tmp_path / "record.jsonl").write_text(
        to_line(RunFinished(status="x", reason="", rounds_done=0, seconds=0.0)) + "\n"
    )
    with pytest.raises(DataError, match="does not begin with the start"):
        MlflowFollower(store).take(RecordTail(tmp_path).new_entries())


@pytest.mark.slow
def test_a_store_that_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        MlflowFollower("nowhere://x")


def test_without_mlflow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", None)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(ConfigError, match=r"panfm\[mlflow\]"):
        MlflowFollower("sqlite:///x.db")
