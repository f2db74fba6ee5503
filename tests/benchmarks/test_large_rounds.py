"""Where a round's time went, from a record and a site's audit log; and what the page says of it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmarks.deployed import Deployed
from benchmarks.large_rounds import Measured, Round, page, round_of
from panfm.reporting.follow import RecordTail
from panfm.reporting.record import RoundFinished, RoundStarted, SiteAnswered, to_line

BEGUN = datetime(2026, 11, 22, 12, tzinfo=UTC)


def _after(seconds: float) -> datetime:
    return BEGUN + timedelta(seconds=seconds)


def _study(folder: Path) -> Deployed:
    """Two sites; `south` answers last, its task came 3 s after the beginning and its answer left at 13 s, in two parts."""
    up = Deployed(coordinator=folder, sites={"north": folder / "north", "south": folder / "south"}, processes={})
    run = up.run_folder("round")
    run.mkdir(parents=True)
    finished = RoundFinished(round=1, seconds=18, weights={}, unchanged_groups={}, delta_norm={}, model_digest="")
    answers = {"north": 6.0, "south": 17.0}
    lines = [to_line(RoundStarted(round=1, sites=list(answers)), BEGUN)]
    lines += [
        to_line(SiteAnswered(round=1, site=site, outcome="accepted", metrics={"seconds": 8.0}), _after(seconds))
        for site, seconds in answers.items()
    ]
    (run / "record.jsonl").write_text("\n".join([*lines, to_line(finished, _after(18)), ""]))
    log = folder / "south" / "state" / "audit.log"
    log.parent.mkdir(parents=True)
    told = [("parcel_received", 1.0, 1), ("answer_sent", 1.5, 1), ("task_received", 3.0, 1), ("answer_sent", 13.0, 1)]
    told += [("parcel_asked", 14.0, 1), ("answer_sent", 14.5, 1), ("task_received", 20.0, 2)]
    log.write_text("".join(_entry(event, seconds, number) for event, seconds, number in told))
    return up


def _entry(event: str, seconds: float, number: int) -> str:
    time = _after(seconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"event": event, "time": time, "about": {"round": number}}) + "\n"


def test_round_is_parted_by_record_and_audit_log(tmp_path: Path) -> None:
    up = _study(tmp_path)
    found = round_of(RecordTail(up.run_folder("round")).new_entries(), up, 1)
    assert found == Round(to_site=3.0, work=10.0, training=8.0, back=4.0, closing=1.0)
    assert found.overhead == 10.0, "18 s of which 8 s training"


def _measured(case: str, largest_mb: float, *overheads: float) -> Measured:
    rounds = [Round(to_site=seconds, work=2.0, training=2.0, back=0.0, closing=0.0) for seconds in overheads]
    return Measured(
        case=case,
        provenance="a machine",
        sites=2,
        model_mb=350.0,
        down_mb=600.0,
        up_mb=300.0,
        largest_message_mb=largest_mb,
        peaks_mb=[("site: ClientApp", 3000.0)],
        rounds=rounds,
    )


@pytest.mark.parametrize(("largest_mb", "seconds", "wrong"), [(64.0, 14.0, 0), (64.2, 14.0, 1), (10.0, 16.0, 1)])
def test_page_says_what_does_not_hold(largest_mb: float, seconds: float, wrong: int) -> None:
    text = page([_measured("small", largest_mb, 90.0, seconds, seconds)])
    assert text.count("**NO**") == wrong
    assert f"| **overhead**: all but training | {seconds:.1f} |" in text, "the first round of several is left out"
