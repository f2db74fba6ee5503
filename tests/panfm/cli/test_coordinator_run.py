"""`panfm coordinator run`, `follow` and `stop`: what a person reads, and that the run does not depend on who watches."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result
from typer.testing import CliRunner

from panfm.cli.main import app
from panfm.coordinator import following, registration, studies
from panfm.coordinator.stop_wish import stop_wished_by
from panfm.errors import ConfigError, RunError
from panfm.reporting.record import Event, RoundFinished, RunFinished, to_line
from tests.panfm.coordinator.pretend_flower import PretendFlower


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A coordinator's folder with a pretend SuperLink that is up."""
    flower = PretendFlower.at(tmp_path / "flower")
    flower.knows_runs()
    monkeypatch.setattr(registration, "is_up", lambda _: True)
    monkeypatch.setattr(studies, "flower_of", lambda _: flower)
    return tmp_path


def _call(coordinator: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["coordinator", *words, "--folder", str(coordinator)])


def _happens(coordinator: Path, *events: Event) -> None:
    with (coordinator / "runs" / "pilot" / "record.jsonl").open("a") as file:
        file.writelines(to_line(event) + "\n" for event in events)


def _at_each_pause(monkeypatch: pytest.MonkeyPatch, step: Callable[[float], None]) -> None:
    """What happens while the follower waits; the clock of everybody else goes on."""
    monkeypatch.setattr(following, "time", SimpleNamespace(sleep=step))


ROUND = RoundFinished(round=1, seconds=2.0, weights={}, unchanged_groups={}, delta_norm={}, model_digest="")


def _asked(coordinator: Path) -> None:
    assert _call(coordinator, "run", "recipe=smoke", "name=pilot", "--no-follow").exit_code == 0


def test_run_is_asked_for_and_watched_to_its_end(coordinator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = RunFinished(status="complete", reason="", rounds_done=1, seconds=3.0, model="model")
    _at_each_pause(monkeypatch, lambda _: _happens(coordinator, ROUND, end))
    result = _call(coordinator, "run", "recipe=smoke", "name=pilot")
    assert result.exit_code == 0, result.output
    folder = coordinator / "runs" / "pilot"
    assert result.stdout.splitlines() == [
        f"run pilot is asked for (Flower's 7); record: {folder}/record.jsonl",
        "round 1 finished after 2 s",
        "run pilot is complete after 1 rounds",
        f"model: {folder}/model",
    ]


def test_ctrl_c_ends_the_watching_only(coordinator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    _at_each_pause(monkeypatch, interrupt)
    result = _call(coordinator, "run", "recipe=smoke", "name=pilot")
    assert result.exit_code == 130
    assert (
        f"the run goes on; watch it again with `panfm coordinator follow pilot --folder {coordinator}`" in result.stderr
    )
    assert stop_wished_by(coordinator / "runs" / "pilot") is None


def test_stop_wishes_and_watches(coordinator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _asked(coordinator)
    _happens(coordinator, ROUND)

    def fulfil(_seconds: float) -> None:
        by = stop_wished_by(coordinator / "runs" / "pilot")
        end = RunFinished(status="stopped", reason=f"stopped by {by}", rounds_done=1, seconds=3.0, model="model")
        _happens(coordinator, end)

    _at_each_pause(monkeypatch, fulfil)
    result = _call(coordinator, "stop", "pilot")
    assert result.exit_code == 0, result.output
    assert "run pilot is stopped after 1 rounds: stopped by " in result.stdout
    assert "round 1 finished" not in result.stdout, "what was on record before is not told"


def test_follow_tells_from_the_beginning(coordinator: Path) -> None:
    _asked(coordinator)
    _happens(coordinator, ROUND, RunFinished(status="incomplete", reason="too few sites", rounds_done=1, seconds=3.0))
    result = _call(coordinator, "follow", "pilot")
    assert "round 1 finished" in result.stdout
    assert isinstance(result.exception, RunError)
    assert "the run pilot is incomplete: too few sites" in str(result.exception)


def test_follow_of_nothing_names_what_there_is(coordinator: Path) -> None:
    _asked(coordinator)
    result = _call(coordinator, "follow", "other")
    assert isinstance(result.exception, ConfigError)
    assert "there are: pilot" in str(result.exception)


def test_superlink_that_is_not_up_is_said_before_anything_is_wanted(
    coordinator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "is_up", lambda _: False)
    result = _call(coordinator, "run", "recipe=smoke", "name=pilot")
    assert isinstance(result.exception, RunError)
    assert "start the coordinator's service" in str(result.exception)
    assert not (coordinator / "runs").exists()
