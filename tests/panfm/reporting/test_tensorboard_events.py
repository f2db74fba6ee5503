"""TensorBoard reads from our files what the record says, once, and forgets what became void."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from panfm.reporting.followers import follow_once, open_followers
from panfm.reporting.record import Event, RoundFinished, RunResumed, SiteAnswered, to_line
from panfm.reporting.scalars import scalars_of

Run = Callable[..., list[Event]]
WriteRecord = Callable[..., Path]


def _read(folder: Path) -> EventAccumulator:
    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return read


def _follow(folder: Path) -> EventAccumulator:
    follow_once(folder, open_followers(folder, tensorboard=True, mlflow=""))
    return _read(folder)


def test_every_point_of_the_record_is_there(pretend_run: Run, save_run: WriteRecord, tmp_path: Path) -> None:
    events = pretend_run(3, 4)
    folder = save_run(tmp_path, events)
    read = _follow(folder)
    expected = {(s.name, s.step): s.value for event in events for s in scalars_of(event, 4)}
    found = {(tag, point.step): point.value for tag in read.Tags()["scalars"] for point in read.Scalars(tag)}
    assert found == {point: pytest.approx(value, rel=1e-6) for point, value in expected.items()}


def test_following_again_writes_nothing_twice(pretend_run: Run, save_run: WriteRecord, tmp_path: Path) -> None:
    folder = save_run(tmp_path, pretend_run(3, 2))
    for _ in range(2):
        read = _follow(folder)
    assert [point.step for point in read.Scalars("delta_norm/trunk")] == [1, 2]
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_points_that_became_void_are_forgotten(tmp_path: Path) -> None:
    def finished(number: int, norm: float) -> RoundFinished:
        return RoundFinished(
            round=number, seconds=1.0, weights={}, unchanged_groups={}, delta_norm={"trunk": norm}, model_digest=""
        )

    resumed = RunResumed(run="r", rounds_done=1, panfm_version="", torch_version="", flower_version="")
    odd = SiteAnswered(round=1, site="a b", outcome="accepted", metrics={"loss": float("nan")})
    events: list[Event] = [odd, finished(1, 0.5), finished(2, 9.0), finished(3, 9.0), resumed, finished(2, 0.25)]
    (tmp_path / "record.jsonl").write_text("".join(to_line(event) + "\n" for event in events))
    points = _follow(tmp_path).Scalars("delta_norm/trunk")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.25)]
