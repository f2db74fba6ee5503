"""The run report says what the record says, stands alone, and survives whatever a record lacks or holds."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from panfm.errors import DataError
from panfm.organs import SEVEN_ORGANS
from panfm.reporting.record import (
    Event,
    ProbeTable,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
    SiteAnswered,
    SiteJoined,
)
from panfm.reporting.run_report import write_run_report

WriteRecord = Callable[..., Path]
ReadPage = Callable[[Path], Any]
Run = Callable[..., list[Event]]


@pytest.fixture(scope="module")
def whole(pretend_run: Run) -> list[Event]:
    return pretend_run(4, 4)


@pytest.fixture(scope="module")
def page(whole: list[Event], save_run: WriteRecord, read_page: ReadPage, tmp_path_factory: Any) -> Any:
    return read_page(write_run_report(save_run(tmp_path_factory.mktemp("run"), whole)))


def assert_stands_alone(page: Any) -> None:
    """No script, nothing loaded from outside the file; links lead within the page or into the run's folder."""
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "embed", "base")]
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:image/png;base64,", "hospitals/")), attributes[name]
        assert "http" not in attributes.get("style", "")


def test_tables_hold_the_numbers_of_the_record(page: Any, whole: list[Event]) -> None:
    held = page.table("Subjects of each site")
    for joined in (event for event in whole if isinstance(event, SiteJoined)):
        for organ in SEVEN_ORGANS:
            wanted = str(joined.num_subjects[organ]) if organ in joined.num_subjects else "–"
            assert held[joined.site][organ] == wanted
    told = [event.num_subjects for event in whole if isinstance(event, SiteJoined)]
    for organ in SEVEN_ORGANS:
        assert held["all sites"][organ] == str(sum(counts.get(organ, 0) for counts in told))


def test_what_each_organ_got_stands_beside_what_it_needed(
    whole: list[Event], write_record: WriteRecord, read_page: ReadPage
) -> None:
    (finish,) = [event for event in whole if isinstance(event, RunFinished)]
    nobody = {**finish.coverage[6], "needed": 2, "fewest": 0}
    poor = replace(finish, status="incomplete", coverage=[*finish.coverage[:6], nobody])
    page = read_page(write_run_report(write_record([*whole[:-1], poor])))
    told = page.table("Sites whose training of an organ counted; needed in every 3 rounds in a row")
    assert list(told) == [row["organ"] for row in finish.coverage]
    for row in poor.coverage:
        shown = told[row["organ"]]
        numbers = [shown[name] for name in ("offered by", "needed", "fewest in a window", "in the run", "rounds")]
        assert numbers == [str(row[n]) for n in ("offered_by", "needed", "fewest", "sites", "rounds")]


def test_what_each_site_said_of_itself_is_shown(page: Any, whole: list[Event]) -> None:
    told = page.table("What each site trains with")
    for joined in (event for event in whole if isinstance(event, SiteJoined)):
        assert told[joined.site]["device"] == joined.device
        assert told[joined.site]["torch"] == joined.torch_version
        for organ, kind in joined.spacing.items():
            assert organ in told[joined.site]["spacing"]
            assert kind.replace("_", " ") in told[joined.site]["spacing"]


def test_weights_are_those_of_the_last_round_in_percent(page: Any, whole: list[Event]) -> None:
    last = [event for event in whole if isinstance(event, RoundFinished)][-1]
    shown = page.table(f"Weight of each site in each group in round {last.round}")
    for group, weights in last.weights.items():
        for site, row in shown.items():
            assert row[group] == (f"{100 * weights[site]:.1f}" if site in weights else "–")


def test_every_answer_stands_in_the_matrices(page: Any, whole: list[Event]) -> None:
    seconds, losses = page.table("Seconds to the answer per round"), page.table("Loss (weighted sum")
    answers = [event for event in whole if isinstance(event, SiteAnswered)]
    assert len(answers) == 16
    for answer in answers:
        shown = seconds[str(answer.round)][answer.site]
        assert float(shown) == pytest.approx(answer.seconds, rel=5e-3)
        loss = losses[str(answer.round)][answer.site]
        assert loss == "–" if not answer.metrics else float(loss) == pytest.approx(answer.metrics["loss"], rel=5e-3)


def test_trouble_is_named_with_site_round_and_reason_before_anything_else(page: Any, whole: list[Event]) -> None:
    (shown,) = (rows for caption, rows in page.tables.items() if caption.startswith("What did not count"))
    for answer in (event for event in whole if isinstance(event, SiteAnswered) and event.reason):
        assert [answer.site, answer.outcome.replace("_", " "), str(answer.round), answer.reason] in shown
    assert next(iter(page.tables)).startswith("What did not count")


def test_probe_table_shows_value_and_interval_of_each_embedding(page: Any, whole: list[Event]) -> None:
    (probe,) = (event for event in whole if isinstance(event, ProbeTable))
    (rows,) = (rows for caption, rows in page.tables.items() if caption.startswith(probe.title))
    for row in probe.rows:
        (shown,) = (line for line in rows[1:] if line[:2] == [row["target"], row["metric"]])
        value, low, high = map(float, re.findall(r"[\d.]+", shown[rows[0].index(row["embedding"])]))
        assert (value, low, high) == pytest.approx((row["value"], row["low"], row["high"]), rel=5e-3)


def test_the_page_stands_alone_and_names_its_figures(page: Any) -> None:
    assert_stands_alone(page)
    drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawn) == 12
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawn)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {
        reference
        for _, attributes in page.tags
        for name in ("href", "clip-path")
        for reference in re.findall(r"#([\w-]+)", attributes.get(name, ""))
        if not attributes.get(name, "").startswith("data:")
    }
    assert used <= set(ids)
    assert set(page.attributes("th", "scope")) == {"row", "col"}


def test_status_versions_and_recipe_are_said(page: Any, whole: list[Event]) -> None:
    started = next(event for event in whole if isinstance(event, RunStarted))
    for word in ("demo-run", "complete", "4 of 4 rounds", started.torch_version, started.recipe, "2 min 34 s"):
        assert word in page.words
    assert "4 March 2026, 09:30 UTC" in page.words


def test_equal_records_give_equal_bytes(pretend_run: Run, write_record: WriteRecord) -> None:
    pages = [write_run_report(write_record(pretend_run(2, 2), folder)).read_bytes() for folder in ("one", "two")]
    assert pages[0] == pages[1]


def test_a_second_report_replaces_the_first_and_leaves_nothing_else(
    pretend_run: Run, write_record: WriteRecord
) -> None:
    folder = write_record(pretend_run(1, 1)[:1])
    first = write_run_report(folder).read_bytes()
    write_record(pretend_run(1, 1))
    assert write_run_report(folder).read_bytes() != first
    assert sorted(path.name for path in folder.iterdir()) == ["record.jsonl", "report.html"]


HOSTILE = "<script>alert('$x_1$')</script>"


def test_text_of_the_record_cannot_become_markup(write_record: WriteRecord, read_page: ReadPage) -> None:
    answer = SiteAnswered(
        round=1,
        site=HOSTILE,
        outcome="accepted",
        num_subjects=3,
        organ_subjects={"brain": 3},
        metrics={"loss": 1.0, "loss_patch": 1.0, "collapse_loss": 2.0, "share": {"brain": 1.0, HOSTILE: 0.5}},
    )
    events: list[Event] = [
        RunStarted(
            run=HOSTILE,
            recipe=f"recipe: |\n  {HOSTILE}\n",
            seed=0,
            rounds=1,
            panfm_version=HOSTILE,
            torch_version="2",
            flower_version="1",
            group_parameters={"trunk": 5, "brain": 2, HOSTILE: 1},
        ),
        SiteJoined(site=HOSTILE, organs=["brain", HOSTILE], panfm_version="0"),
        answer,
        replace(answer, site="silent", outcome=HOSTILE, reason=HOSTILE),
        ProbeTable(title=HOSTILE, num_train=1, num_test=1, rows=[{"embedding": HOSTILE, "target": HOSTILE}]),
        RunFinished(status=HOSTILE, reason=HOSTILE, rounds_done=1, seconds=1),
    ]
    page = read_page(write_run_report(write_record(events)))
    assert_stands_alone(page)
    assert HOSTILE in page.table("Subjects of each site")


@pytest.mark.parametrize("name", ["a\x00b\x1b", "\ud800", "名前", "../../etc", "x" * 400, ""])
def test_odd_site_names_cost_no_report(write_record: WriteRecord, read_page: ReadPage, name: str) -> None:
    asked = RoundStarted(round=1, sites=[name])
    answer = SiteAnswered(round=1, site=name, outcome="accepted", metrics={"loss_patch": 0.5})
    assert_stands_alone(read_page(write_run_report(write_record([asked, answer]))))


def cuts() -> Sequence[int]:
    """Numbers of lines after which a run of one site and two rounds was killed."""
    return range(0, 7, 2)


@pytest.mark.parametrize("kept", cuts())
def test_a_killed_run_has_a_report_that_says_what_is_missing(
    pretend_run: Run, write_record: WriteRecord, read_page: ReadPage, kept: int
) -> None:
    folder = write_record(pretend_run(1, 2, troubled=False)[:kept])
    with (folder / "record.jsonl").open("a") as record:
        record.write('{"schema": 1, "event": "site_ans')
    page = read_page(write_run_report(folder))
    assert_stands_alone(page)
    assert "not finished" in page.words
    assert "No probe in the record" in page.words
    if kept == 0:
        assert "holds no start of a run" in page.words


def test_a_run_that_nobody_answered_says_so(pretend_run: Run, write_record: WriteRecord, read_page: ReadPage) -> None:
    started, joined, *_ = pretend_run(1, 1, troubled=False)
    asked = RoundStarted(round=1, sites=["neuro_cardiac", "never_seen"])
    ended = RunFinished(status="incomplete", reason="nobody trained", rounds_done=0, seconds=61.0)
    page = read_page(write_run_report(write_record([started, joined, asked, ended])))
    assert "incomplete" in page.words
    assert "nobody trained" in page.words
    shown = page.table("What did not count")
    assert {site: row["what"] for site, row in shown.items()} == {
        "neuro_cardiac": "no answer",
        "never_seen": "no answer",
    }


def test_numbers_that_are_none_and_further_organs_cost_no_report(
    write_record: WriteRecord, read_page: ReadPage
) -> None:
    organs = [f"organ_{i}" for i in range(11)]
    values: dict[str, Any] = {organ: (math.nan if i % 2 else 1.0) for i, organ in enumerate(organs)}
    metrics = {"loss": math.inf, "loss_patch": "broken", "share": values, "lift": 3, "share_entropy": math.nan}
    answer = SiteAnswered(
        round=1, site="a", outcome="accepted", organ_subjects=dict.fromkeys(organs, 2), metrics=metrics
    )
    average = RoundFinished(
        round=1,
        seconds=math.nan,
        weights={"trunk": {"a": math.nan}},
        unchanged_groups={},
        delta_norm={"trunk": math.nan},
        model_digest="",
    )
    page = read_page(write_run_report(write_record([answer, average])))
    assert "told no number" in page.table("What did not count")["a"]["what"]
    assert page.table("Each organ in the last round")["organ_0"]["share of attention"] == "1.00"
    assert page.table("Each organ in the last round")["organ_1"]["share of attention"] == "–"


def test_a_sites_own_report_is_linked_where_it_exists(write_record: WriteRecord, read_page: ReadPage) -> None:
    joined = [SiteJoined(site=site, organs=["brain"], panfm_version="0") for site in ("a b", "other", "..")]
    folder = write_record(joined)
    (folder / "hospitals" / "a b").mkdir(parents=True)
    for place in ("hospitals/a b", "."):
        (folder / place / "site_report.html").write_text("a page")
    page = read_page(write_run_report(folder))
    assert [link for link in page.attributes("a", "href") if link[0] != "#"] == ["hospitals/a%20b/site_report.html"]


@pytest.mark.slow
def test_a_large_run_stays_below_a_megabyte_and_a_half(pretend_run: Run, write_record: WriteRecord) -> None:
    assert write_run_report(write_record(pretend_run(20, 100))).stat().st_size < 1.5e6


def test_no_record_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="record"):
        write_run_report(tmp_path)


def test_unknown_events_are_passed_over(pretend_run: Run, write_record: WriteRecord, read_page: ReadPage) -> None:
    folder = write_record(pretend_run(1, 1, troubled=False)[:2])
    with (folder / "record.jsonl").open("a") as record:
        record.write(json.dumps({"schema": 1, "event": "comet_seen", "time": "2026-03-04T10:00:00+00:00"}) + "\n")
    assert "not finished" in read_page(write_run_report(folder)).words


@pytest.mark.parametrize("name", ["run_report.html", "site_report.html", "parts.html", "style.css"])
def test_templates_lie_in_the_package_and_hence_in_the_wheel(name: str) -> None:
    assert (files("panfm.reporting") / "templates" / name).is_file()
