"""The curves of a record: each number once, under a name that says what and whose, and nothing that is no number."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable

from panfm.reporting.record import (
    Event,
    ProbeTable,
    RoundEvaluated,
    RoundFinished,
    RoundStarted,
    SiteAnswered,
    SiteEvaluated,
)
from panfm.reporting.scalars import Scalar, scalars_of

Run = Callable[..., list[Event]]


def _named(event: Event, last_round: int = 0) -> dict[str, float]:
    scalars = scalars_of(event, last_round)
    named = {scalar.name: scalar.value for scalar in scalars}
    assert len(named) == len(scalars)
    return named


def test_an_answer_tells_its_metrics_by_site_and_organ() -> None:
    metrics = {"loss": 0.5, "loss_organ": None, "share": {"brain": 0.25, "heart": math.nan}}
    event = SiteAnswered(round=3, site="north", outcome="accepted", seconds=2.0, num_subjects=7, metrics=metrics)
    assert _named(event) == {
        "answer_seconds/north": 2.0,
        "answer_bytes_down/north": 0.0,
        "answer_bytes_up/north": 0.0,
        "subjects/north": 7.0,
        "loss/north": 0.5,
        "share_brain/north": 0.25,
    }
    assert {scalar.step for scalar in scalars_of(event, 9)} == {3}


def test_what_did_not_count_tells_what_it_cost_and_no_more() -> None:
    late = SiteAnswered(round=3, site="north", outcome="late", metrics={"loss": 0.5})
    assert [name.partition("/")[0] for name in _named(late)] == [
        "answer_seconds",
        "answer_bytes_down",
        "answer_bytes_up",
    ]


def test_evaluations_stand_apart_from_training() -> None:
    metrics = {"loss": 0.5, "share": {"brain": 1.0}, "probes": {"age": 0.1}}
    site = _named(SiteEvaluated(round=1, site="north", outcome="accepted", metrics=metrics))
    assert site["held_out_loss/north"] == 0.5
    assert (site["held_out_share_brain/north"], site["held_out_probes_age/north"]) == (1.0, 0.1)
    told = RoundEvaluated(round=1, sites=[], metrics=metrics, score=0.4, best_round=None, model_digest="", seconds=1.0)
    assert _named(told) == {
        "evaluation/score": 0.4,
        "evaluation/loss": 0.5,
        "evaluation_share/brain": 1.0,
        "evaluation_probes/age": 0.1,
    }


def test_probes_belong_to_the_last_round() -> None:
    table = ProbeTable(
        title="t", num_train=1, num_test=1, rows=[{"embedding": "PCA", "target": "age", "metric": "R2", "value": 0.5}]
    )
    assert scalars_of(table, 5) == [Scalar("probe_R2/age: PCA", 5, 0.5)]
    assert scalars_of(RoundStarted(round=1, sites=["north"]), 0) == []


def test_a_whole_run_gives_each_point_once(pretend_run: Run) -> None:
    points = [(s.name, s.step) for event in pretend_run(4, 4) for s in scalars_of(event, 4)]
    assert len(set(points)) == len(points)
    rounds = [event for event in pretend_run(4, 4) if isinstance(event, RoundFinished)]
    assert {("delta_norm/trunk", event.round) for event in rounds} <= set(points)
