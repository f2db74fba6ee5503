"""A run told at a terminal: what a person waits for, and nothing else."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from panfm.reporting.record import Event, RoundStarted, RunResumed, SiteAnswered, SiteLeft, SiteRejected
from panfm.reporting.telling import Line, line_about


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (RoundStarted(round=1, sites=["a"]), None),
        (SiteAnswered(round=1, site="a", outcome="accepted", reason=""), None),
        (SiteAnswered(round=2, site="a", outcome="left_out", reason="nan"), Line("round 2: a left out: nan", True)),
        (SiteLeft(site="a", round=2), Line("a is no longer connected", True)),
        (SiteRejected(site="a", reason="old"), Line("a does not take part: old", True)),
        (
            RunResumed(run="r", rounds_done=3, panfm_version="", torch_version="", flower_version=""),
            Line("the run goes on after round 3"),
        ),
    ],
)
def test_lines(event: Event, line: Line | None) -> None:
    assert line_about(event) == line
