"""A run that is ended from outside: by a wish, with its last checkpoint for use; by a lost SuperLink, with its record open."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import httpx
import pytest
from flwr.app import Message

from client.app import app as client_app
from panfm.coordinator.stop_wish import take_back, wish_to_stop
from panfm.export.model_folder import read_model
from panfm.reporting.record import RoundFinished, RunFinished, SiteAnswered
from server.stopping import SuperLinkLostError, WatchedGrid
from server.study import StudySettings, conduct
from tests.client.small_study import SmallStudy, SpyGrid, same_bits


class _Disturbed(SpyGrid):
    """The rehearsal's grid, at which something happens before each look for replies."""

    before: Callable[[], None] = staticmethod(lambda: None)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.before()
        return super().pull_messages(message_ids)


def _grid(study: SmallStudy, before: Callable[[], None]) -> _Disturbed:
    grid = _Disturbed(client_app, list(study.hospitals.values()), {}, study.runs)
    grid.before = before  # of this object alone
    return grid


def _resumed(study: SmallStudy) -> StudySettings:
    return StudySettings(config=replace(study.config, name="", resume=study.config.name), runs=study.runs)


@pytest.mark.parametrize("done", [0, 1])
def test_wish_ends_the_run_with_its_last_checkpoint_and_it_can_go_on(study: SmallStudy, done: int) -> None:
    whole = study.with_settings(name="whole")
    whole.conduct()

    def wish_in_the_next_round() -> None:
        if len(study.events(RoundFinished)) == done and len(study.events(SiteAnswered)) == 3 * done + 1:
            wish_to_stop(study.folder, "ada")

    conduct(study.settings(), _grid(study, wish_in_the_next_round))
    (end,) = study.events(RunFinished)
    assert (end.status, end.reason, end.rounds_done) == ("stopped", "stopped by ada", done)
    assert end.model == ("model" if done else "")
    if done:
        assert same_bits(
            read_model(study.folder / "model").student, read_model(whole.folder / "checkpoints/round-0001").student
        )

    take_back(study.folder)
    conduct(_resumed(study), study.grid())
    assert [end.status for end in study.events(RunFinished)] == ["stopped", "complete"]
    assert same_bits(read_model(study.folder / "model").student, read_model(whole.folder / "model").student)


def test_wish_that_finds_nobody_is_fulfilled_by_who_comes_next(study: SmallStudy) -> None:
    """The program died in round 2, no site is there: the next one ends the run without asking any."""

    def die_in_round_2() -> None:
        if study.events(RoundFinished):
            raise SystemExit(9)

    with pytest.raises(SystemExit):
        conduct(study.settings(), _grid(study, die_in_round_2))
    assert study.events(RunFinished) == []
    wish_to_stop(study.folder, "ada")
    grid = replace(study, hospitals={}).grid()
    conduct(_resumed(study), grid)
    (end,) = study.events(RunFinished)
    assert (end.status, end.rounds_done, end.model) == ("stopped", 1, "model")
    assert grid.sent == []


def test_lost_superlink_leaves_the_record_open(study: SmallStudy) -> None:
    def lose_in_round_2() -> None:
        if study.events(RoundFinished):
            raise httpx.ConnectError("no route")

    with pytest.raises(SuperLinkLostError, match="no longer serves this run"):
        conduct(study.settings(), _grid(study, lose_in_round_2))
    assert study.events(RunFinished) == []
    conduct(_resumed(study), study.grid())
    assert [end.status for end in study.events(RunFinished)] == ["complete"]


def test_watched_grid_hands_everything_through(study: SmallStudy) -> None:
    inner = study.grid()
    outer = WatchedGrid(inner, study.folder)
    assert list(outer.get_node_ids()) == list(inner.get_node_ids())
    assert outer.run is inner.run
    outer.set_run(inner.run)
    assert list(outer.pull_messages([])) == []
