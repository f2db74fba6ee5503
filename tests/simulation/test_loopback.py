"""Flower's own programs on this machine: the same bits as in process, and nothing left running, however a run ends."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from panfm import recipes
from panfm.errors import PortInUseError, RunError
from panfm.export.model_folder import read_model
from panfm.reporting.record import RoundFinished, RunFinished, SiteAnswered, SiteJoined, SiteRejected, read_record
from panfm.site.approvals import approvals, is_approved
from panfm.site.audit_log import inspect_folder
from panfm.site.identity import read_public_key
from server.run_folder import RECORD_FILE
from server.run_record import RunRecord
from simulation import loopback
from simulation.local_grid import run_in_process
from simulation.loopback import check_port, run_on_loopback
from tests.client.small_study import Finished, SmallStudy, same_bits

proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found by /proc")


def _processes_of(home: Path) -> list[str]:
    """Command lines of the living processes that work for this home of Flower's."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if f"FLWR_HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # gone meanwhile, or not ours
            continue
    return found


def _left(home: Path) -> list[str]:
    """Those that are still there after the system had time to bury the killed."""
    deadline = time.monotonic() + 10
    while (found := _processes_of(home)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


# ---- without Flower's programs -----------------------------------------------------------------------------------------


def test_taken_port_is_named_and_a_free_one_is_not(taken_port: int) -> None:
    with pytest.raises(PortInUseError, match=f"port {taken_port} on 127.0.0.1 is in use") as caught:
        check_port(taken_port)
    assert caught.value.exit_code == 7
    check_port(0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        free = int(other.getsockname()[1])
    check_port(free)


def test_joining_gets_the_time_that_starting_programs_takes() -> None:
    config = recipes.load(["recipe=smoke"])
    assert loopback.patient(config).federation.join_timeout_s == loopback.START_TIMEOUT_S
    longer = recipes.load(["recipe=smoke", "federation.join_timeout_s=900"])
    assert loopback.patient(longer) == longer


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pretend programs in place of Flower's."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setattr(loopback, "PROGRAMS", folder)
    return folder


def _program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def _flower(tmp_path: Path) -> loopback._Flower:
    flower = loopback._Flower(home=tmp_path / "home", runs=tmp_path, port=1)
    flower.prepare()
    return flower


@proc
@pytest.mark.parametrize("error", [None, RunError("it failed"), KeyboardInterrupt()])
def test_program_ends_with_everything_that_it_started(
    tmp_path: Path, programs: Path, error: BaseException | None
) -> None:
    _program(programs, "flower-supernode", "sleep 1000 & sleep 1000")
    flower = _flower(tmp_path)

    def run() -> None:
        with flower.supernode("a", tmp_path, 1):
            while len(_processes_of(flower.home)) < 3:
                time.sleep(0.01)
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    assert _left(flower.home) == []


@proc
def test_program_that_does_not_end_politely_is_killed(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback, "PATIENCE_S", 0.2)
    _program(programs, "flower-supernode", "trap '' TERM; touch deaf; while true; do sleep 0.1; done")
    flower = _flower(tmp_path)
    with flower.supernode("a", tmp_path, 1):
        while not (flower.home / "deaf").exists():
            time.sleep(0.01)
    assert _left(flower.home) == []


def test_superlink_that_never_opens_its_port(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback, "START_TIMEOUT_S", 0.3)
    _program(programs, "flower-superlink", "sleep 1000")
    with (
        pytest.raises(RunError, match=r"did not open port 1 within 0 s; see .*superlink\.log"),
        _flower(tmp_path).superlink(),
    ):
        pytest.fail("it is not up")


def test_run_that_ends_while_flower_is_asked_is_complete(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking takes seconds, in which the coordinator may write the last line and go."""
    monkeypatch.setattr(loopback, "STATUS_EVERY_S", 0.0)
    RunRecord(tmp_path / "late").write(_finished("complete"))
    place, late = tmp_path / RECORD_FILE, tmp_path / "late" / RECORD_FILE
    _program(
        programs,
        "flwr",
        f"""mv {late} {place}; echo '{{"runs": [{{"run-id": "1", "status": "finished:completed"}}]}}'""",
    )
    loopback._follow(place, _flower(tmp_path), "1")


def test_sites_approve_the_bundle_of_this_checkout_and_no_other(study: SmallStudy) -> None:
    digest = loopback.approve_own_bundle(study.hospitals.values())
    for folder in study.hospitals.values():
        public_key = read_public_key(folder)
        assert [given.bundle for given in approvals(folder, public_key)] == [digest]
        assert is_approved(folder, digest, (), public_key)


def test_secret_of_the_tasks_is_for_its_owner_alone(tmp_path: Path) -> None:
    secrets = []
    for name in ("one", "two"):
        flower = loopback._Flower(home=tmp_path / name, runs=tmp_path, port=1)
        flower.prepare()
        secret = flower.home / "superexec.secret"
        assert secret.stat().st_mode & 0o777 == 0o600
        secrets.append(secret.read_bytes())
    assert secrets[0] != secrets[1]
    assert len(secrets[0]) == 48


def _answered(outcome: str, reason: str = "") -> SiteAnswered:
    return SiteAnswered(round=1, site="neuro", outcome=outcome, reason=reason)


def _averaged(number: int) -> RoundFinished:
    return RoundFinished(round=number, seconds=2.0, weights={}, unchanged_groups={}, delta_norm={}, model_digest="")


def _finished(status: str) -> RunFinished:
    return RunFinished(status=status, reason="the reason", rounds_done=1, seconds=1.0)


def test_record_is_told_as_it_grows(tmp_path: Path, programs: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = RunRecord(tmp_path)
    for event in (
        SiteJoined(site="neuro", organs=["brain"], panfm_version="0"),
        SiteRejected(site="old", reason="it speaks protocol 0"),
        _answered("accepted"),
        _answered("failed", "site_data: damaged"),
        _averaged(1),
        _finished("complete"),
    ):
        record.write(event)
    caplog.set_level("INFO")
    loopback._follow(tmp_path / RECORD_FILE, _flower(tmp_path), "1")
    assert caplog.messages == [
        "neuro joined with brain",
        "old does not take part: it speaks protocol 0",
        "round 1: neuro failed: site_data: damaged",
        "round 1 finished after 2 s",
    ]


def test_incomplete_run_is_an_error_here_too(tmp_path: Path, programs: Path) -> None:
    RunRecord(tmp_path).write(_finished("incomplete"))
    with pytest.raises(RunError, match="the run is incomplete: the reason"):
        loopback._follow(tmp_path / RECORD_FILE, _flower(tmp_path), "1")


def test_run_that_flower_ends_early_is_not_waited_for(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback, "STATUS_EVERY_S", 0.0)
    _program(programs, "flwr", """echo '{"runs": [{"run-id": "1", "status": "finished:failed"}]}'""")
    with pytest.raises(RunError, match=r"Flower ended the run \(finished:failed\) before its record did; see the logs"):
        loopback._follow(tmp_path / RECORD_FILE, _flower(tmp_path), "1")


def test_end_that_the_coordinator_could_not_write_is_written(finished: Finished, study: SmallStudy) -> None:
    """Its program is ended with the others; the last checkpoint becomes the exported model."""
    source = finished[0].folder
    study.folder.mkdir()
    (study.folder / "checkpoints").symlink_to(source / "checkpoints")
    lines = (source / RECORD_FILE).read_text().splitlines(keepends=True)
    (study.folder / RECORD_FILE).write_text("".join(lines[:-1]))

    for _ in range(2):  # once is enough
        loopback._end_record(study.folder, "stopped", "stopped by a person", 5.0)

    (end,) = study.events(RunFinished)
    assert end == RunFinished(status="stopped", reason="stopped by a person", rounds_done=2, seconds=5.0, model="model")
    assert read_model(study.folder / "model").card == read_model(source / "model").card


def test_run_without_a_record_gets_none(tmp_path: Path) -> None:
    loopback._end_record(tmp_path, "stopped", "stopped by a person", 1.0)
    assert list(tmp_path.iterdir()) == []


# ---- with them ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_sites(study: SmallStudy) -> SmallStudy:
    hospitals = {site: study.hospitals[site] for site in ("cardiac", "neuro")}
    return SmallStudy(runs=study.runs, config=study.config, hospitals=hospitals)


@pytest.fixture
def nothing_left(two_sites: SmallStudy) -> Iterator[None]:
    """After the test, no process of its Flower lives, whatever happened."""
    yield
    left = {name: _left(two_sites.runs / name / "flower") for name in ("loopback", "small")}
    assert left == {"loopback": [], "small": []}


def _logs(folder: Path) -> str:
    """The ends of Flower's logs: what a person needs when this fails on a machine that is not here."""
    return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted((folder / "flower").glob("*.log")))


@proc
@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_in_process_and_loopback_give_the_same_bits(two_sites: SmallStudy) -> None:
    here = two_sites.with_settings(name="here")
    run_in_process(here.config, here.runs, here.hospitals)

    there = two_sites.with_settings(name="loopback")
    try:
        run_on_loopback(there.config, there.runs, there.hospitals)
    except RunError as error:
        pytest.fail(f"{error}\n{_logs(there.folder)}")

    for place in ("checkpoints/round-0001", "checkpoints/round-0002", "model"):
        first, second = read_model(here.folder / place), read_model(there.folder / place)
        assert same_bits(first.student, second.student), place
        assert same_bits(first.teacher, second.teacher), place
        for part in ("student", "teacher"):
            files = [run.folder / place / f"{part}.safetensors" for run in (here, there)]
            assert files[0].read_bytes() == files[1].read_bytes(), (place, part)
    assert [a.outcome for a in there.events(SiteAnswered)] == ["accepted"] * 4
    for folder in there.hospitals.values():  # join and two rounds, each by a program of its own
        entries = inspect_folder(folder, read_public_key(folder)).entries
        assert sum(entry.event == "bundle_started" for entry in entries) == 3
    for one, other in zip(here.events(SiteAnswered), sorted(there.events(SiteAnswered), key=_by_round), strict=True):
        assert _timeless(one) == _timeless(other)


def _by_round(answer: SiteAnswered) -> tuple[int, str]:
    return answer.round, answer.site


def _timeless(answer: SiteAnswered) -> tuple[object, ...]:
    figures = {name: value for name, value in answer.metrics.items() if name != "seconds"}
    return answer.round, answer.site, answer.num_steps, answer.organ_subjects, figures


@proc
@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_failing_run_says_why_and_leaves_no_process(two_sites: SmallStudy) -> None:
    for volume in two_sites.runs.parent.glob("hospitals/*/store/*/*.npy"):
        volume.write_bytes(b"damaged")
    there = two_sites.with_settings("rounds=1", name="loopback")
    with pytest.raises(RunError, match="nobody's training counted in any round"):
        run_on_loopback(there.config, there.runs, there.hospitals)
    assert {a.reason.partition(":")[0] for a in there.events(SiteAnswered)} == {"site_data"}
    assert [end.status for end in there.events(RunFinished)] == ["incomplete"]
    assert "has changed since it was prepared" in (two_sites.hospitals["neuro"] / "site.log").read_text()


@proc
@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_person_who_stops_a_loopback_run_leaves_no_process(
    two_sites: SmallStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = two_sites.with_settings("rounds=100", name="loopback")
    tell = loopback._tell

    def stop_after_a_round(event: object) -> None:
        tell(event)  # type: ignore[arg-type]  # handed through
        if isinstance(event, RoundFinished):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loopback, "_tell", stop_after_a_round)
    with pytest.raises(KeyboardInterrupt):
        run_on_loopback(there.config, there.runs, there.hospitals)
    events = list(read_record(there.folder / RECORD_FILE))
    assert isinstance(events[-1], RunFinished)
    assert (events[-1].status, events[-1].model) == ("stopped", "model")
    assert read_model(there.folder / "model").card.round >= 1
