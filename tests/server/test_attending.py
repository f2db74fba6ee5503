"""Whole runs whose sites come, leave, rest and return: what the record says of it, and whether the end is honest."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from flwr.app import Context, Message

from panfm.config import FederationConfig, ParticipationConfig
from panfm.errors import RunError
from panfm.protocol import Refusal
from panfm.reporting.record import RoundFinished, RoundStarted, RunFinished, SiteAnswered, SiteJoined, SiteLeft
from server.study import conduct
from tests.client.small_study import HELD, SmallStudy, SpyGrid, app_that_trains, quick_train, reply_with, site_of


def _long(study: SmallStudy, rounds: int, *overrides: str, **coverage: int) -> SmallStudy:
    changed = study.with_settings(f"rounds={rounds}", "federation.join_timeout_s=5", *overrides)
    federation: FederationConfig = changed.config.federation
    participation: ParticipationConfig = replace(federation.participation, coverage=coverage)
    federation = replace(federation, participation=participation)
    return replace(changed, config=replace(changed.config, federation=federation))


def _asked(study: SmallStudy) -> list[list[str]]:
    return [event.sites for event in study.events(RoundStarted)]


def test_with_one_seat_every_organ_is_covered_in_its_window(study: SmallStudy) -> None:
    """Neuro and abdominal hold all three organs between them: a window of four rounds is enough for one seat."""
    few = _long(study, 8, "federation.participation.sites_per_round=1", "federation.participation.window=4")
    few.conduct(app_that_trains(quick_train))
    asked = _asked(few)
    assert [len(sites) for sites in asked] == [1] * 8
    for start in range(5):
        window = {organ for sites in asked[start : start + 4] for site in sites for organ in HELD[site]}
        assert window == {"brain", "heart", "liver"}
    for event in few.events(RoundStarted):
        assert sorted([*event.sites, *event.passed_over]) == list(HELD)
        assert event.deadline_s is not None
        assert 0 < event.deadline_s <= few.config.federation.round_deadline_s
    (end,) = few.events(RunFinished)
    assert (end.status, end.reason) == ("complete", "")
    assert all(row["fewest"] >= row["needed"] == 1 for row in end.coverage)
    last = few.events(RoundFinished)[-1].coverage
    assert set(last) == {"brain", "heart", "liver"}
    assert min(last.values()) >= 1


def test_two_runs_of_a_seed_ask_the_same_sites(study: SmallStudy) -> None:
    asked = []
    for name in ("one", "two"):
        few = _long(study, 4, "federation.participation.sites_per_round=1")
        few = replace(few, config=replace(few.config, name=name))
        few.conduct(app_that_trains(quick_train))
        asked.append(_asked(few))
    assert asked[0] == asked[1]


def test_a_run_below_its_declared_coverage_is_incomplete(study: SmallStudy) -> None:
    declared = _long(study, 2, brain=1, liver=2)

    def reluctant(message: Message, context: Context) -> Message:
        if site_of(context) != "abdominal":
            return quick_train(message, context)
        return reply_with(Refusal(run="small", round=1, site="abdominal", code="hours", reason="not now"), message)

    with pytest.raises(RunError, match="liver was covered by 1 of 2 sites in the run") as caught:
        declared.conduct(app_that_trains(reluctant))
    assert caught.value.exit_code != 0
    (end,) = declared.events(RunFinished)
    assert end.status == "incomplete"
    assert {row["organ"]: (row["needed"], row["fewest"]) for row in end.coverage} == {
        "brain": (1, 1),
        "heart": (1, 2),
        "liver": (2, 1),
    }


def test_a_run_in_which_nobody_trained_is_incomplete(study: SmallStudy) -> None:
    def refuses(message: Message, context: Context) -> Message:
        refusal = Refusal(run="small", round=1, site=site_of(context), code="hours", reason="not now")
        return reply_with(refusal, message)

    with pytest.raises(RunError, match="nobody's training counted in any round"):
        study.conduct(app_that_trains(refuses))
    assert [end.status for end in study.events(RunFinished)] == ["incomplete"]


class _RestlessGrid(SpyGrid):
    """The first node leaves before the second round and is back before the fourth, under another number."""

    looks = 0

    def get_node_ids(self) -> Iterable[int]:
        nodes = list(super().get_node_ids())
        if self.looks == 0:  # while the grid is made
            return nodes
        return {1: nodes[:3], 2: nodes[:3], 3: nodes[1:3], 4: nodes[1:3]}.get(self.looks, nodes[1:])


def test_a_site_that_left_comes_back_under_another_number_to_its_old_place(study: SmallStudy) -> None:
    study = _long(study, 5)
    folders = [*study.hospitals.values(), study.hospitals["abdominal"]]
    grid = _RestlessGrid(app_that_trains(quick_train), folders, {}, study.runs)

    class Counted(_RestlessGrid):
        def get_node_ids(self) -> Iterable[int]:
            self.looks += 1  # at the start, and before each round
            return super().get_node_ids()

    grid.__class__ = Counted
    conduct(study.settings(), grid)
    everybody, others = list(HELD), ["cardiac", "neuro"]
    assert _asked(study) == [everybody, others, others, everybody, everybody]
    assert study.events(SiteLeft) == [SiteLeft(site="abdominal", round=2)]
    assert [event.returned for event in study.events(SiteJoined) if event.site == "abdominal"] == [False, True]
    assert [answer.outcome for answer in study.events(SiteAnswered)] == ["accepted"] * 13
    assert [end.status for end in study.events(RunFinished)] == ["complete"]
