"""What a person sees while a rehearsal runs, with a terminal and without one."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
import logging

import pytest
from flwr.app import Context, Message
from rich.console import Console

from client.progress import log_step
from panfm.errors import PanfmError
from simulation.progress import Display
from tests.client.small_study import SmallStudy, app_that_trains, quick_train, site_of


class _Screen:
    """A display and what it wrote."""

    def __init__(self, terminal: bool) -> None:
        self._file = io.StringIO()
        self.console = Console(file=self._file, force_terminal=terminal, width=100, legacy_windows=False)
        self.display = Display(self.console)

    @property
    def text(self) -> str:
        return self._file.getvalue()


def _step(site: str, number: int, step: int, num_steps: int) -> None:
    log_step(site, number, step, num_steps, 0.5)


def test_without_a_terminal_there_are_lines_and_no_bars() -> None:
    screen = _Screen(terminal=False)
    with screen.display as display:
        display.advance("making hospitals", 1, 2)
        _step("neuro", 1, 1, 2)
        logging.getLogger("panfm.server").info("round 1 of 2: 3 sites accepted, mean loss 0.5000")
        display.say("a [bold]table[/bold] :smile: 3 of 4")
    lines = [line for line in screen.text.splitlines() if line.strip()]
    assert lines == ["round 1 of 2: 3 sites accepted, mean loss 0.5000", "a [bold]table[/bold] :smile: 3 of 4"]
    assert "\x1b" not in screen.text


def test_on_a_terminal_each_site_has_a_bar_with_its_loss() -> None:
    screen = _Screen(terminal=True)
    with screen.display as display:
        _step("neuro", 1, 1, 4)
        assert [(task.description, task.completed, task.total) for task in display._progress.tasks] == [
            ("round 1 at neuro", 1, 4)
        ]
        assert display._progress.tasks[0].fields["note"] == "loss 0.500"
        _step("neuro", 1, 4, 4)
        assert display._progress.tasks == [], "a bar goes when its site is done"
        display._progress.refresh()
    assert "\x1b" in screen.text


def test_bar_of_a_round_with_privacy_tells_how_far_it_is_and_no_loss() -> None:
    with _Screen(terminal=True).display as display:
        log_step("neuro", 1, 1, 4)
        (task,) = display._progress.tasks
        assert (task.description, task.completed, task.total) == ("round 1 at neuro", 1, 4)
        assert task.fields["note"] == "with privacy"


def test_sites_that_train_side_by_side_have_a_bar_each() -> None:
    with _Screen(terminal=True).display as display:
        _step("neuro", 1, 1, 4)
        _step("cardiac", 1, 1, 4)
        _step("neuro", 1, 2, 4)
        assert [task.description for task in display._progress.tasks] == ["round 1 at neuro", "round 1 at cardiac"]


def test_bar_of_a_site_that_failed_on_the_way_goes_with_its_next_round() -> None:
    with _Screen(terminal=True).display as display:
        _step("neuro", 1, 1, 4)
        _step("neuro", 2, 1, 4)
        assert [task.description for task in display._progress.tasks] == ["round 2 at neuro"]


def test_long_line_is_not_broken() -> None:
    screen = _Screen(terminal=False)
    with screen.display as display:
        display.say("x" * 300)
    assert "x" * 300 in screen.text


def test_one_line_a_round_and_a_failed_site_with_its_reason(study: SmallStudy) -> None:
    def train(message: Message, context: Context) -> Message:
        if site_of(context) == "neuro":
            raise OSError("/srv/secret")
        return quick_train(message, context)

    screen = _Screen(terminal=False)
    with screen.display, pytest.raises(PanfmError):
        study.conduct(app_that_trains(train))
    lines = screen.text.splitlines()
    for number in (1, 2):
        assert f"round {number} of 2: 2 sites accepted, mean loss 0.5000" in lines
        assert (
            f"round {number}: neuro failed: the site's program ended without an answer; its own log says why" in lines
        )
    assert sum(line.startswith("round ") for line in lines) == 4
    assert any(line.startswith("run small is incomplete after 2 rounds") for line in lines)


def test_what_goes_wrong_at_a_site_is_not_shown_in_full(study: SmallStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study = study.with_settings("rounds=1")
    for volume in (study.hospitals["neuro"] / "store").glob("*/*.npy"):
        volume.write_bytes(b"damaged")
    screen = _Screen(terminal=False)
    with screen.display, pytest.raises(PanfmError):
        study.conduct()
    assert "round 1: neuro failed: site_data: the site's prepared scans are missing or damaged" in screen.text
    everything = screen.text + "".join(capsys.readouterr())
    assert "Traceback" not in everything
    assert "sub-0" not in everything


def test_logs_are_as_before_afterwards() -> None:
    names = ("panfm.server", "panfm.client", "panfm.client.progress")
    before = [(list(logging.getLogger(name).handlers), logging.getLogger(name).propagate) for name in names]
    with _Screen(terminal=False).display:
        pass
    assert before == [(list(logging.getLogger(name).handlers), logging.getLogger(name).propagate) for name in names]
