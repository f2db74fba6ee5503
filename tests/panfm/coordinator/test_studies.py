"""Runs that are wanted: asked for once, taken up again when they died, and not for ever."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest

from panfm import recipes
from panfm.config import RunConfig
from panfm.coordinator import studies
from panfm.coordinator.stop_wish import stop_wished_by
from panfm.coordinator.studies import MOST_TRIES, begin, compose, keep, source_tree, stop
from panfm.coordinator.submissions import KEEPER, PERSON, submissions, was_given_up
from panfm.errors import ConfigError, LockedError, RunError
from panfm.lock import held
from panfm.reporting.record import Event, RoundFinished, RunFinished, RunResumed, RunStarted, to_line
from tests.panfm.coordinator.pretend_flower import PretendFlower

NOW = datetime(2026, 11, 22, 14, 5)


@pytest.fixture
def flower(tmp_path: Path) -> PretendFlower:
    flower = PretendFlower.at(tmp_path / "flower")
    flower.knows_runs()
    return flower


def _config(*words: str) -> RunConfig:
    return compose(["recipe=smoke", *(words or ("name=pilot",))], NOW)


def _record(coordinator: Path, events: Sequence[Event]) -> None:
    folder = coordinator / "runs" / "pilot"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "record.jsonl").open("a") as file:
        file.writelines(to_line(event) + "\n" for event in events)


def _started() -> RunStarted:
    return RunStarted(
        run="pilot-1",
        recipe="",
        seed=0,
        rounds=9,
        panfm_version="0",
        torch_version="0",
        flower_version="0",
        group_parameters={},
    )


def _round(number: int) -> RoundFinished:
    return RoundFinished(round=number, seconds=1.0, weights={}, unchanged_groups={}, delta_norm={}, model_digest="")


def _ended(status: str) -> RunFinished:
    return RunFinished(status=status, reason="", rounds_done=1, seconds=1.0)


def _resumed() -> RunResumed:
    return RunResumed(run="pilot-1", rounds_done=1, panfm_version="0", torch_version="0", flower_version="0")


def _sent(flower: PretendFlower) -> RunConfig:
    return recipes.run_from_yaml(tomllib.loads((flower.home / "run_config.toml").read_text())["composed"])


# ---- asking for a run ---------------------------------------------------------------------------------------------------


def test_run_without_a_name_is_called_by_its_recipe_and_the_time() -> None:
    assert compose(["recipe=smoke"], NOW).name == "smoke-20261122-140500"


@pytest.mark.parametrize("word", ["sites=4", "data=/scans", "engine=loopback", "cohort.voxels=8", "+faults.rate=1"])
def test_settings_of_a_rehearsal_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"is a setting of a rehearsal"):
        compose(["recipe=smoke", word], NOW)


def test_wanted_run_is_on_disk_and_with_flower(tmp_path: Path, flower: PretendFlower) -> None:
    given = begin(tmp_path, flower, _config())
    assert (given.run_id, given.by, given.events) == ("7", PERSON, 0)
    assert submissions(tmp_path / "runs" / "pilot") == [given]
    wanted = (tmp_path / "runs" / "pilot" / "wanted.yaml").read_text()
    assert recipes.run_from_yaml(wanted) == _config() == _sent(flower)
    words = flower.asked()[0].split()
    assert (words[0], Path(words[1]).name) == ("run", "panfm")
    assert Path(words[1]) != source_tree(), "a copy: a virtual environment beside the sources would be walked through"


def test_name_is_taken_once(tmp_path: Path, flower: PretendFlower) -> None:
    begin(tmp_path, flower, _config())
    with pytest.raises(ConfigError, match=r"there is a run called pilot .* go on with it: resume=pilot"):
        begin(tmp_path, flower, _config())


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "x" * 101])
def test_name_that_is_no_folders_is_refused(tmp_path: Path, flower: PretendFlower, name: str) -> None:
    with pytest.raises(ConfigError, match="a run's name"):
        begin(tmp_path, flower, _config(f"name='{name}'"))


def test_run_that_flower_refuses_is_not_wanted(tmp_path: Path, flower: PretendFlower) -> None:
    flower.answers("run", {"success": False, "error-message": "no"})
    with pytest.raises(RunError, match="Flower refused"):
        begin(tmp_path, flower, _config())
    assert keep(tmp_path, flower) == []
    flower.knows_runs()
    assert begin(tmp_path, flower, _config()).run_id == "7", "its name is free"


def test_tree_is_the_checkout_or_what_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (source_tree() / "server" / "app.py").is_file()
    monkeypatch.setenv("PANFM_TREE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"does not hold the sources .* PANFM_TREE"):
        source_tree()


# ---- resuming and stopping ----------------------------------------------------------------------------------------------


def test_resuming_takes_back_a_wish_to_stop(tmp_path: Path, flower: PretendFlower) -> None:
    begin(tmp_path, flower, _config())
    _record(tmp_path, [_started(), _round(1)])
    run_folder = stop(tmp_path, "pilot", by="ada")
    assert stop_wished_by(run_folder) == "ada"
    _record(tmp_path, [_ended("stopped")])
    given = begin(tmp_path, flower, _config("resume=pilot"))
    assert stop_wished_by(run_folder) is None
    assert (given.events, given.rounds_done) == (3, 1)
    assert (_sent(flower).resume, _sent(flower).name) == ("pilot", "")


def test_what_never_began_or_goes_on_is_not_resumed(tmp_path: Path, flower: PretendFlower) -> None:
    with pytest.raises(ConfigError, match="no run called pilot"):
        begin(tmp_path, flower, _config("resume=pilot"))
    _record(tmp_path, [_started()])
    with held(tmp_path / "runs" / "pilot" / "run.lock"), pytest.raises(RunError, match="is going on; follow it"):
        begin(tmp_path, flower, _config("resume=pilot"))


def test_what_is_not_there_or_over_is_not_stopped(tmp_path: Path, flower: PretendFlower) -> None:
    with pytest.raises(ConfigError, match=r"no run called pilot was asked for .* there are: none yet"):
        stop(tmp_path, "pilot", by="ada")
    begin(tmp_path, flower, _config())
    _record(tmp_path, [_started(), _ended("complete")])
    with pytest.raises(ConfigError, match="is over already"):
        stop(tmp_path, "pilot", by="ada")


# ---- the keeper ---------------------------------------------------------------------------------------------------------


def test_keeper_asks_nobody_while_the_run_is_held_or_over(tmp_path: Path, flower: PretendFlower) -> None:
    begin(tmp_path, flower, _config())
    asked = len(flower.asked())
    with held(tmp_path / "runs" / "pilot" / "run.lock"):
        assert keep(tmp_path, flower) == []
    _record(tmp_path, [_started(), _ended("incomplete")])
    assert keep(tmp_path, flower) == []
    assert len(flower.asked()) == asked


@pytest.mark.parametrize("status", ["pending", "starting", "running"])
def test_keeper_waits_for_what_flower_still_runs(tmp_path: Path, flower: PretendFlower, status: str) -> None:
    begin(tmp_path, flower, _config())
    flower.knows_runs(r7=status)
    assert keep(tmp_path, flower) == []


@pytest.mark.parametrize("runs", [{"r7": "finished:failed"}, {"r7": "finished:stopped"}, {}])
def test_keeper_takes_up_what_flower_ended_or_forgot(
    tmp_path: Path, flower: PretendFlower, runs: dict[str, str]
) -> None:
    begin(tmp_path, flower, _config())
    _record(tmp_path, [_started(), _round(1), _round(2)])
    flower.knows_runs(**runs)
    assert keep(tmp_path, flower) == ["run pilot was taken up again after round 2 as 7"]
    assert (_sent(flower).resume, _sent(flower).name) == ("pilot", "")
    assert submissions(tmp_path / "runs" / "pilot")[-1].by == KEEPER


def test_run_that_died_before_its_first_event_is_begun_anew(tmp_path: Path, flower: PretendFlower) -> None:
    begin(tmp_path, flower, _config())
    flower.knows_runs(r7="finished:failed")
    keep(tmp_path, flower)
    assert (_sent(flower).resume, _sent(flower).name) == ("", "pilot")


def test_resumed_run_that_died_before_it_said_so_is_taken_up(tmp_path: Path, flower: PretendFlower) -> None:
    """Its record still ends with the end of before."""
    begin(tmp_path, flower, _config())
    _record(tmp_path, [_started(), _round(1), _ended("stopped")])
    assert keep(tmp_path, flower) == []
    begin(tmp_path, flower, _config("resume=pilot"))
    flower.knows_runs(r7="finished:failed")
    assert len(keep(tmp_path, flower)) == 1
    _record(tmp_path, [_resumed(), _ended("complete")])
    assert keep(tmp_path, flower) == []


def test_keeper_gives_up_after_some_tries_in_vain_and_says_so_once(tmp_path: Path, flower: PretendFlower) -> None:
    begin(tmp_path, flower, _config())
    _record(tmp_path, [_started(), _round(1)])
    flower.knows_runs(r7="finished:failed")
    told = [keep(tmp_path, flower) for _ in range(MOST_TRIES + 3)]
    assert [len(lines) for lines in told] == [1] * (MOST_TRIES + 1) + [0, 0]
    assert told[MOST_TRIES] == [f"run pilot was taken up {MOST_TRIES} times and got no further; it is left as it is"]
    assert was_given_up(submissions(tmp_path / "runs" / "pilot"))
    assert begin(tmp_path, flower, _config("resume=pilot")).by == PERSON
    assert len(keep(tmp_path, flower)) == 1, "a person's word begins the count anew"


def test_each_round_begins_the_count_anew(tmp_path: Path, flower: PretendFlower) -> None:
    begin(tmp_path, flower, _config())
    _record(tmp_path, [_started()])
    flower.knows_runs(r7="finished:failed")
    for number in range(1, MOST_TRIES + 4):
        assert "taken up again" in keep(tmp_path, flower)[0]
        _record(tmp_path, [_resumed(), _round(number)])


def test_superlink_that_does_not_answer_is_told_and_asked_again(tmp_path: Path, flower: PretendFlower) -> None:
    begin(tmp_path, flower, _config())
    (flower.home / "answer-list").unlink()
    with pytest.raises(RunError, match="run pilot cannot be looked after: `flwr list` did not answer"):
        keep(tmp_path, flower)
    flower.knows_runs()
    assert "taken up again" in keep(tmp_path, flower)[0]


def test_keeper_stays_out_of_a_persons_way(tmp_path: Path, flower: PretendFlower) -> None:
    begin(tmp_path, flower, _config())
    _record(tmp_path, [_started()])
    with held(tmp_path / "runs" / "pilot" / studies.SUBMITTING_LOCK):
        assert keep(tmp_path, flower) == []
        with pytest.raises(LockedError):
            begin(tmp_path, flower, _config("resume=pilot"))
