"""Chores are done again and again, whatever becomes of one turn."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import threading

import pytest

from deploy.chores import OVERDUE_S, Chore, doing
from panfm.errors import RunError


def test_chore_tells_what_it_did_and_is_alive_once_it_succeeded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="panfm.deploy")
    chore = Chore("sites", 5.0, lambda: ["north let in", "south let out"])
    assert not chore.is_alive()
    chore.turn()
    assert caplog.messages == ["north let in", "south let out"]
    assert chore.is_alive()
    chore._succeeded_s -= OVERDUE_S + 1
    assert not chore.is_alive()


def test_same_failure_is_told_once_in_a_row_and_another_again(caplog: pytest.LogCaptureFixture) -> None:
    failures = iter(
        [RunError("away"), RunError("away"), RunError("locked"), None, RunError("locked"), KeyError("defect")]
    )

    def do() -> list[str]:
        if error := next(failures):
            raise error
        return []

    chore = Chore("sites", 5.0, do)
    for _ in range(6):
        chore.turn()
    assert caplog.messages == ["sites: away", "sites: locked", "sites: locked", "sites failed"]
    assert "KeyError" in caplog.text, "a defect shows where it is"


def test_chores_go_on_side_by_side_until_the_event() -> None:
    turns = threading.Semaphore(0)

    def do() -> list[str]:
        turns.release()
        return []

    chores = [Chore(name, 0.0, do) for name in ("one", "two")]
    with doing(chores):
        assert all(chore.succeeded.wait(60) for chore in chores)
        for _ in range(10):
            assert turns.acquire(timeout=60), "again and again"
    assert all(chore.is_alive() for chore in chores)
