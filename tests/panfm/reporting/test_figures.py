"""Figures hide nothing that went wrong, however long the run."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re

import pytest

from panfm.reporting.figures import answers_figure, loss_figure, probe_figure, weights_figure, weights_vary
from panfm.reporting.history import RunHistory, history_of
from panfm.reporting.probes import ProbeRow, best
from panfm.reporting.record import Event, RoundFinished, SiteAnswered
from panfm.reporting.svg import house_style


def words(svg: str) -> list[str]:
    return re.findall(r">([^<>]+)</text>", svg)


def long_run(late_round: int) -> RunHistory:
    return history_of(
        [SiteAnswered(round=n, site="north", outcome="late" if n == late_round else "accepted") for n in range(1, 151)],
        name="long",
    )


@pytest.mark.parametrize("late_round", [1, 2, 3, 77, 150])
def test_one_late_answer_in_a_hundred_and_fifty_is_seen(late_round: int) -> None:
    with house_style():
        assert "L" in words(answers_figure(long_run(late_round)))
        assert "L" not in words(answers_figure(long_run(0)))


def averaged(*north: float) -> RunHistory:
    events: list[Event] = [
        RoundFinished(
            round=n,
            seconds=1,
            weights={"trunk": {"north": weight, "south": 1 - weight}},
            unchanged_groups={},
            delta_norm={},
            model_digest="",
        )
        for n, weight in enumerate(north, start=1)
    ]
    answers = [SiteAnswered(round=1, site=site, outcome="accepted") for site in ("north", "south")]
    return history_of([*answers, *events], name="tried")


def test_weights_are_drawn_over_rounds_only_where_they_change() -> None:
    assert not weights_vary(averaged(0.5, 0.501), "trunk")
    assert weights_vary(averaged(0.5, 1.0, 0.5), "trunk")
    with house_style():
        assert weights_figure(averaged(0.5, 0.501)) == ""
        assert "trunk" in words(weights_figure(averaged(0.5, 1.0, 0.5)))


def test_nothing_to_draw_is_no_figure() -> None:
    empty = history_of([], name="empty")
    with house_style():
        assert [answers_figure(empty), loss_figure(empty), weights_figure(empty), probe_figure([], "p")] == [""] * 4


def row(metric: str, value: float | None, embedding: str = "trained") -> ProbeRow:
    return ProbeRow(embedding=embedding, target="age", metric=metric, value=value, low=None, high=None)


def test_the_best_answer_is_the_largest_score_or_the_smallest_error() -> None:
    for metric, wanted in (("AUC", 0.9), ("R2", 0.9), ("MAE", 0.1)):
        found = best([row(metric, 0.1), row(metric, 0.9, "PCA"), row(metric, None, "broken")])
        assert found is not None
        assert found.value == wanted
    assert best([row("AUC", None)]) is None
