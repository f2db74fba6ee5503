"""A hospital killed in the midst of training with privacy: what it spent is never less than what it gave away."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from panfm.privacy.accounting import epsilon_prv
from panfm.site.identity import read_public_key
from panfm.site.ledger import read_ledger
from panfm.site.ledger_book import Book, Fate
from tests.client.private_site import DELTA, NOISE, RATE, STEPS, Told, demand_privacy, told_by
from tests.client.small_study import SmallStudy

pytestmark = pytest.mark.slow


def by_opacus(accountant: RDPAccountant | PRVAccountant, rounds: int) -> float:
    """An accountant that is not ours, asked for an uninterrupted run."""
    accountant.history = [(NOISE, RATE, STEPS * rounds)]
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of its use of the orders
        return float(accountant.get_epsilon(delta=DELTA))


def _book(site: Path) -> Book:
    return read_ledger(site, read_public_key(site))


def _answered(folder: Path, rounds: int, kills: list[tuple[int, float]]) -> tuple[list[Told], int]:
    """What the processes said, each going on with the last round that the one before had answered; and how many were killed."""
    told: list[Told] = []
    killed = 0
    for kill_after, wait_s in kills:
        first = max(1, told[-1].round if told else 1)
        told += told_by(folder, first, rounds, kill_after, wait_s)
        killed += told[-1].round < rounds if told else 1
    first = max(1, told[-1].round if told else 1)
    return told + told_by(folder, first, rounds), killed


def _check_never_less(site: Path, told: list[Told], rounds: int, killed: int) -> None:
    book = _book(site)
    answers: dict[int, set[Told]] = {}
    for said in told:
        answers.setdefault(said.round, set()).add(said)
    assert sorted(answers) == list(range(1, rounds + 1))
    assert all(len(said) == 1 for said in answers.values()), "a round asked again got the stored answer"
    assert rounds <= len(book.charges) <= rounds + killed
    assert sum(charge.fate is Fate.released for charge in book.charges) >= rounds
    assert book.spent(1, DELTA) >= by_opacus(RDPAccountant(), rounds) * (1 - 1e-9)
    assert book.spent(1, DELTA) <= by_opacus(RDPAccountant(), len(book.charges)) * (1 + 1e-9)
    assert told[-1].epsilon == pytest.approx(book.spent(1, DELTA), rel=1e-9)


def test_forty_rounds_in_three_processes_with_two_crashes_cost_at_least_as_much(
    study: SmallStudy, tmp_path: Path
) -> None:
    site, moments = study.hospitals["neuro"], random.Random(6)
    demand_privacy(site)
    kills = [(13, 0.3 * moments.random()), (14, 0.3 * moments.random())]
    told, killed = _answered(tmp_path, 40, kills)
    assert killed == 2
    _check_never_less(site, told, 40, killed)
    reported = epsilon_prv(_book(site).history(1), DELTA)
    assert reported is not None
    assert reported >= by_opacus(PRVAccountant(), 40) * (1 - 1e-3)


def test_rounds_cost_what_other_libraries_say(study: SmallStudy, tmp_path: Path) -> None:
    """Not killed at all: the ledger's figure is that of the run, and an upper bound of the tighter accountants'."""
    site = study.hospitals["neuro"]
    demand_privacy(site)
    told, _ = _answered(tmp_path, 10, [])
    spent = _book(site).spent(1, DELTA)
    assert [said.round for said in told] == list(range(1, 11))
    assert spent == pytest.approx(by_opacus(RDPAccountant(), 10), rel=1e-6)
    assert spent >= by_opacus(PRVAccountant(), 10)


def test_kills_at_any_instruction_forget_nothing(study: SmallStudy, tmp_path: Path) -> None:
    site, moments = study.hospitals["neuro"], random.Random(7)
    demand_privacy(site)
    kills = [(1 + number % 2, 0.4 * moments.random()) for number in range(8)]
    told, killed = _answered(tmp_path, 20, kills)
    assert killed >= 5
    _check_never_less(site, told, 20, killed)
