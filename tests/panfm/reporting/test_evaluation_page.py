"""What the run report says of evaluations: the record's numbers, the best round, and who did not report."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from panfm.reporting.history import best_round, evaluation_troubles, held_out_series, history_of, relative_loss
from panfm.reporting.record import Event, RoundEvaluated, RunResumed, SiteEvaluated
from panfm.reporting.run_report import write_run_report

WriteRecord = Callable[..., Path]
ReadPage = Callable[[Path], Any]
Run = Callable[..., list[Event]]


def _metrics(ratio: float, **probes: float) -> dict[str, Any]:
    return {"loss": ratio, "loss_patch": ratio / 2, "loss_organ": None, "collapse_loss": 0.5, "probes": probes}


def _report(site: str, number: int, ratio: float, **probes: float) -> SiteEvaluated:
    return SiteEvaluated(round=number, site=site, outcome="accepted", num_subjects=5, metrics=_metrics(ratio, **probes))


def _summary(number: int, ratio: float, best: int, **probes: float) -> RoundEvaluated:
    return RoundEvaluated(
        round=number,
        sites=["a", "b"],
        metrics=_metrics(ratio, **probes),
        score=ratio,
        best_round=best,
        model_digest="",
        seconds=1.0,
    )


EVALUATIONS: list[Event] = [
    _report("a", 2, 0.8, age=0.1),
    _report("b", 2, 0.6),
    _summary(2, 0.7, 2, age=0.1),
    _report("a", 4, 0.9, age=0.25),
    SiteEvaluated(round=4, site="b", outcome="refused", reason="none_held_out: nobody"),
    _summary(4, 0.9, 2, age=0.25),
]


@pytest.fixture
def page(pretend_run: Run, save_run: WriteRecord, read_page: ReadPage, tmp_path: Path) -> Any:
    *run, finish = (event for event in pretend_run(3, 4) if type(event).__name__ != "ProbeTable")
    return read_page(write_run_report(save_run(tmp_path, [*run, *EVALUATIONS, finish])))


def test_table_holds_every_evaluation_and_marks_the_best(page: Any) -> None:
    table = page.table("Held-out subjects of all sites")
    assert list(table) == ["2, the best", "4"]
    assert table["2, the best"] == {
        "round": "2, the best",
        "sites": "2",
        "loss": "0.700",
        "patches": "0.350",
        "organs": "–",
        "constant": "0.500",
        "ratio": "0.700",
        "age": "0.100",
    }


def test_page_says_which_round_is_the_best_and_who_did_not_report(page: Any) -> None:
    assert "best/round-0002" in page.words
    table = page.table("Reports that did not count")
    assert list(table["b"].values()) == ["b", "refused", "4", "none_held_out: nobody"]


def test_series_are_those_of_reports_that_counted() -> None:
    history = history_of(EVALUATIONS, name="r")
    series = held_out_series(history, relative_loss)
    assert series == {
        "": {2: pytest.approx(0.7), 4: pytest.approx(0.9)},
        "a": {2: pytest.approx(0.8), 4: pytest.approx(0.9)},
        "b": {2: pytest.approx(0.6)},
    }
    assert held_out_series(history, lambda metrics: metrics["probes"].get("age"))["a"] == {2: 0.1, 4: 0.25}
    assert [(trouble.who, trouble.rounds) for trouble in evaluation_troubles(history)] == [("b", (4,))]
    assert best_round(history) == 2
    assert best_round(history_of([], name="r")) is None


def test_what_became_void_is_not_shown() -> None:
    resumed = RunResumed(run="r", rounds_done=2, panfm_version="", torch_version="", flower_version="")
    history = history_of([*EVALUATIONS, resumed], name="r")
    assert list(history.evaluations) == [2]
    assert {number for number, _ in history.reports} == {2}


def test_a_run_without_evaluations_has_no_such_section(
    pretend_run: Run, save_run: WriteRecord, read_page: ReadPage, tmp_path: Path
) -> None:
    page = read_page(write_run_report(save_run(tmp_path, pretend_run(2, 2))))
    assert "Held-out subjects" not in page.words
