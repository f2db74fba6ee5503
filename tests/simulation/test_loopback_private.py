"""A run with privacy over Flower's own programs, killed and gone on with: nothing spent is forgotten, and it ends whole."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from panfm.export.model_folder import read_model
from panfm.privacy.accounting import NoisySteps, epsilon_rdp
from panfm.reporting.record import Event, RoundStarted, RunFinished, RunResumed
from panfm.site.audit_chain import head_from
from panfm.site.audit_log import STATE
from panfm.site.identity import read_public_key
from panfm.site.ledger import read_ledger
from panfm.site.ledger_book import FIRST_COHORT, Book, Fate
from simulation import loopback
from simulation.loopback import run_on_loopback
from tests.client.private_site import DELTA, NOISE, RATE, demand_privacy
from tests.client.small_study import SmallStudy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found by /proc"),
]

ROUNDS, STEPS, NAME = 3, 2, "private"
CHARGE_TIMEOUT_S = 280.0
"""For a hospital's program to start and to load what it needs, on a machine that may be busy."""
SETTINGS = (
    f"rounds={ROUNDS}",
    "privacy.mode=dp_adapters",
    f"privacy.noise_multiplier={NOISE}",
    f"privacy.sampling_rate={RATE}",
    f"pretrain.steps_per_round={STEPS}",
)


class PowerCut(BaseException):
    """The coordinator's machine is gone: nobody writes the end of the run."""


@pytest.fixture
def there(study: SmallStudy) -> Iterator[SmallStudy]:
    """Two hospitals whose policies let nothing leave that is not charged; no process of their Flower outlives the test."""
    hospitals = {site: study.hospitals[site] for site in ("cardiac", "neuro")}
    for folder in hospitals.values():
        demand_privacy(folder)
    yield replace(study.with_settings(*SETTINGS, name=NAME), hospitals=hospitals)
    home, deadline = study.runs / NAME / "flower", time.monotonic() + 10
    while (left := _processes_of(home)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == {}


def test_killed_coordinator_is_resumed_and_no_ledger_is_below_what_was_given_away(
    there: SmallStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ServerApp dies by kill -9 when a hospital has charged for round 2; another one goes on, under new daemons."""
    with monkeypatch.context() as patch:
        patch.setattr(loopback, "_tell", _dying_in_round_two(there))
        with pytest.raises(PowerCut):
            run_on_loopback(there.config, there.runs, there.hospitals)
    before = {site: _book(there, site) for site in there.hospitals}
    assert any(charge.purpose.round == 2 for book in before.values() for charge in book.charges)
    assert there.events(RunFinished) == []

    run_on_loopback(replace(there.config, name="", resume=NAME), there.runs, there.hospitals)

    (resumed,) = there.events(RunResumed)
    assert resumed.rounds_done in (1, 2), "2 where both answers came before the program died"
    assert [(end.status, end.rounds_done) for end in there.events(RunFinished)] == [("complete", ROUNDS)]
    for site, earlier in before.items():
        _check_ledger(there, site, earlier)
    model = read_model(there.folder / "model")
    for tensors in (model.student, model.teacher):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def _check_ledger(there: SmallStudy, site: str, earlier: Book) -> None:
    """Against the run's record, an uninterrupted run, and what the ledger itself said before the run was resumed."""
    book, answers = _book(there, site), [a for a in there.answered(site) if a.outcome == "accepted"]
    assert book.charges[: len(earlier.charges)] == _settled_as(book, earlier)
    released = {charge.purpose.round for charge in book.charges if charge.fate is Fate.released}
    assert released == {answer.round for answer in answers} == set(range(1, ROUNDS + 1))
    assert ROUNDS <= len(book.charges) <= ROUNDS + 1, "round 2 was charged again at most once"
    spent, a_round = (
        book.spent(FIRST_COHORT, DELTA),
        NoisySteps(noise_multiplier=NOISE, sampling_rate=RATE, steps=STEPS),
    )
    assert spent == epsilon_rdp([a_round.times(len(book.charges))], DELTA)
    assert spent >= max(epsilon_rdp([a_round.times(ROUNDS)], DELTA), earlier.spent(FIRST_COHORT, DELTA))
    told = [answer.epsilon for answer in answers if answer.epsilon is not None]
    assert len(told) >= ROUNDS
    assert max(told) == spent


def _settled_as(book: Book, earlier: Book) -> tuple[object, ...]:
    """The charges of an earlier book, with what became of them since."""
    return tuple(replace(charge, fate=book.charge(charge.line).fate) for charge in earlier.charges)


def _book(there: SmallStudy, site: str) -> Book:
    """The ledger, held against every head of it that the coordinator has on record."""
    folder, heads = there.hospitals[site], [head_from(a.ledger_head) for a in there.answered(site) if a.ledger_head]
    return read_ledger(folder, read_public_key(folder), heads)


def _dying_in_round_two(there: SmallStudy) -> Callable[[Event], None]:
    def tell(event: Event) -> None:
        if isinstance(event, RoundStarted) and event.round == 2:
            _wait_for_a_charge(there, 2)
            apps = [pid for pid, words in _processes_of(there.folder / "flower").items() if b"server_app.py" in words]
            assert apps, "the coordinator's program is there to be killed"
            for pid in apps:
                os.kill(pid, signal.SIGKILL)
            raise PowerCut

    return tell


def _wait_for_a_charge(there: SmallStudy, number: int) -> None:
    """Until a hospital has charged its subjects for a round, by the bytes of its ledger, which is being written."""
    mark, deadline = f'"round":{number},'.encode(), time.monotonic() + CHARGE_TIMEOUT_S
    while time.monotonic() < deadline:
        if any(mark in (folder / STATE / "ledger.log").read_bytes() for folder in there.hospitals.values()):
            return
        time.sleep(0.05)
    pytest.fail(f"nobody was charged for round {number}")


def _processes_of(home: Path) -> dict[int, bytes]:
    """Id -> command line of the living processes that work for this home of Flower's."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            if f"FLWR_HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_bytes()
        except OSError:  # gone meanwhile, or not ours
            continue
    return found
