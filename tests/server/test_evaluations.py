"""The evaluations of a run: a fold over its record, means by another route, and a best round that nobody's absence decides."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.config import EvaluationConfig, FederationConfig
from panfm.reporting.record import Event, RoundEvaluated, RunResumed, SiteEvaluated
from server.evaluations import Evaluations, evaluations_of, means

DIGEST = "ab" * 32


def _federation(min_sites: int = 1, **evaluation: Any) -> FederationConfig:
    config = EvaluationConfig(every=1, numbers=["age"], classes=["sex"], **evaluation)
    return FederationConfig(min_sites=min_sites, evaluation=config)


def _metrics(ratio: float = 1.0, **changes: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "loss": ratio,
        "loss_patch": ratio / 2,
        "loss_organ": None,
        "collapse_loss": 0.5,
        "share": {},
        "lift": {},
        "share_entropy": None,
        "probes": {},
        "seconds": 1.0,
        "dropped_scans": 0,
    }
    return told | changes


def _report(
    site: str, number: int, subjects: int = 10, organs: Mapping[str, int] | None = None, **metrics: Any
) -> SiteEvaluated:
    return SiteEvaluated(
        round=number,
        site=site,
        outcome="accepted",
        num_subjects=subjects,
        organ_subjects=dict(organs or {}),
        metrics=_metrics(**metrics),
    )


def _evaluate(past: Evaluations, number: int, *reports: SiteEvaluated) -> RoundEvaluated:
    """As the coordinator does it: each report on record, then what they come to."""
    for report in reports:
        past.note(report)
    summary = past.summary(number, reports, model_digest=DIGEST, seconds=1.0)
    past.note(summary)
    return summary


def _ratios(past: Evaluations, number: int, **ratios: float) -> RoundEvaluated:
    return _evaluate(past, number, *(_report(site, number, ratio=ratio) for site, ratio in ratios.items()))


def test_means_are_weighted_by_those_who_stand_behind_them() -> None:
    reports = [
        _report("a", 1, 10, {"brain": 10, "heart": 2}, ratio=1.0, loss_organ=0.4, share={"brain": 0.3, "heart": 0.7}),
        _report("b", 1, 30, {"heart": 30}, ratio=3.0, share={"heart": 1.0}, probes={"age": 0.5}),
    ]
    found = means(reports)
    assert found["loss"] == pytest.approx(np.average([1.0, 3.0], weights=[10, 30]))
    assert found["loss_organ"] == 0.4, "who tells nothing has no say"
    assert found["share"] == {
        "brain": pytest.approx(0.3),
        "heart": pytest.approx(np.average([0.7, 1.0], weights=[2, 30])),
    }
    assert found["relative_loss"] == pytest.approx(1.25 / 0.5)
    assert found["probes"] == {"age": 0.5}
    assert means([])["loss"] is None


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_arrival_changes_no_bit(order: list[str]) -> None:
    ratios = {"a": 0.1, "b": 0.7, "c": 0.3, "d": 1 / 3}
    summaries = [_ratios(Evaluations(_federation()), 1, **{s: ratios[s] for s in names}) for names in ("abcd", order)]
    assert summaries[0] == summaries[1]


def test_the_lowest_ratio_is_the_best_and_a_tie_stays_with_the_earlier() -> None:
    past = Evaluations(_federation())
    best = [
        _ratios(past, number, a=ratio).best_round for number, ratio in enumerate((0.9, 0.8, 0.8, 0.85, 0.7), start=1)
    ]
    assert best == [1, 2, 2, 2, 5]
    assert past.best_round == 5


@pytest.mark.parametrize(("rule", "best"), [("loss", 2), ("age", 3), ("sex", 1)])
def test_each_rule_picks_its_own(rule: str, best: int) -> None:
    past = Evaluations(_federation(best_by=rule))
    told = [(0.9, {"age": 0.1, "sex": 0.8}), (0.5, {"age": 0.2, "sex": 0.5}), (0.7, {"age": 0.3})]
    for number, (loss, probes) in enumerate(told, start=1):
        summary = _evaluate(past, number, _report("a", number, ratio=loss, probes=probes))
    assert summary.best_round == best
    assert summary.score == (0.7 if rule == "loss" else told[2][1].get(rule))


def test_rounds_are_compared_over_the_sites_that_reported_on_both() -> None:
    """Round 2 has the lower mean only because the site with hard patients is away."""
    past = Evaluations(_federation())
    first = _ratios(past, 1, easy=0.5, hard=0.9)
    second = _ratios(past, 2, easy=0.55)
    assert second.score is not None
    assert first.score is not None
    assert second.score < first.score
    assert second.best_round == 1
    assert _ratios(past, 3, other=0.1).best_round == 1, "nobody in common"
    assert _ratios(past, 4, easy=0.49, hard=0.9, other=5.0).best_round == 4


def test_too_few_reports_or_no_score_begin_nothing() -> None:
    past = Evaluations(_federation(min_sites=2))
    assert _ratios(past, 1, a=0.1).best_round is None
    assert _ratios(past, 2, a=0.5, b=0.5).best_round == 2
    assert _ratios(past, 3, a=0.1).best_round == 2
    assert _evaluate(past, 4).best_round == 2
    assert _evaluate(past, 4).score is None
    probes = Evaluations(_federation(best_by="age"))
    assert _ratios(probes, 1, a=0.1).best_round is None


def test_due_until_it_is_on_record_and_again_when_it_became_void() -> None:
    past = Evaluations(_federation())
    assert past.is_due(1, rounds=3)
    past.note(_report("a", 1))
    assert past.is_due(1, rounds=3), "one report is not the evaluation"
    for number in (1, 2):
        _ratios(past, number, a=1 / number)
    assert not past.is_due(2, rounds=3)
    past.note(_resumed(rounds_done=1))
    assert past.best_round == 1
    assert past.is_due(2, rounds=3)


def _resumed(rounds_done: int) -> RunResumed:
    return RunResumed(run="r", rounds_done=rounds_done, panfm_version="", torch_version="", flower_version="")


def test_a_site_that_never_will_is_not_asked_again_until_the_run_is_resumed() -> None:
    past = Evaluations(_federation())
    for code in ("none_held_out: nobody", "hours: later"):
        past.note(SiteEvaluated(round=1, site=code[:4], outcome="refused", reason=code))
    assert not past.can_ask("none")
    assert past.can_ask("hour")
    past.note(_resumed(rounds_done=1))
    assert past.can_ask("none")


@given(
    st.lists(
        st.tuples(st.dictionaries(st.sampled_from("abc"), st.sampled_from([0.1, 0.5, 0.9]), max_size=3), st.booleans()),
        max_size=8,
    )
)
def test_a_coordinator_that_died_goes_on_with_the_same_memory(rounds: list[tuple[dict[str, float], bool]]) -> None:
    """At every line of the record: the fold over what is written equals what the living process knows."""
    federation, events, living, number = _federation(), list[Event](), Evaluations(_federation()), 0
    for ratios, dies in rounds:
        number += 1
        reports = [_report(site, number, ratio=ratio) for site, ratio in ratios.items()]
        events += [*reports, _evaluate(living, number, *reports)]
        if dies:
            number = max(0, number - 2)
            events.append(_resumed(number))
            living.note(events[-1])
        again = evaluations_of(events, federation)
        assert again.best_round == living.best_round
        assert [again.is_due(n, 99) for n in range(1, 12)] == [living.is_due(n, 99) for n in range(1, 12)]
        trial = [_report(site, number + 1, ratio=0.3) for site in "ab"]
        told = [of.summary(number + 1, trial, model_digest=DIGEST, seconds=0.0) for of in (again, living)]
        assert told[0] == told[1]
