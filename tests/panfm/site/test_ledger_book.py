"""What a ledger's entries mean, without a disk; and that no edit of a cohort makes a subject's spending forgotten."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.errors import AuditError
from panfm.privacy.accounting import Budget, NoisySteps, epsilon_rdp
from panfm.site.audit_chain import Entry, Head, JsonScalar
from panfm.site.ledger_book import (
    Book,
    Fate,
    Purpose,
    Roll,
    about_charge,
    about_roll,
    cohorts_of,
    read_book,
    statement_of,
)

STEPS = NoisySteps(noise_multiplier=1.5, sampling_rate=0.05, steps=25)
BUDGET = Budget(epsilon=8.0, delta=1e-5)
ROLL = about_roll(Roll(subjects=3, sha256="ab" * 32))


def reserved(cohorts: tuple[int, ...] = (1,), number: int = 1, steps: NoisySteps = STEPS) -> dict[str, JsonScalar]:
    return about_charge(steps, Purpose(run="r", round=number, task_digest="cd"), cohorts, BUDGET, 0.5) | ROLL


def book(*said: tuple[str, dict[str, JsonScalar]]) -> Book:
    events = [("log_opened", {}), *said]
    entries = [
        Entry(line=line, previous="", time="t", event=event, about=about)
        for line, (event, about) in enumerate(events, start=1)
    ]
    return read_book(entries, Head(len(entries), "ef" * 32))


OPENED: dict[str, JsonScalar] = {"cohort": 2, **ROLL}


def test_reserved_and_released_count_and_voided_does_not() -> None:
    found = book(
        ("reserved", reserved(number=1)),
        ("reserved", reserved(number=2)),
        ("released", {"reservation": 2}),
        ("torn_tail", {}),
        ("reserved", reserved(number=3)),
        ("voided", {"reservation": 6}),
    )
    assert [charge.fate for charge in found.charges] == [Fate.released, Fate.reserved, Fate.voided]
    assert [charge.purpose.round for charge in found.charges] == [1, 2, 3]
    assert found.history(1) == (STEPS.times(2),)
    assert found.spent(1, 1e-5) == epsilon_rdp([STEPS, STEPS], 1e-5)
    assert found.roll == Roll(subjects=3, sha256="ab" * 32)
    assert statement_of(found, 1, "north", BUDGET).history == (STEPS.times(2),)


def test_charge_is_read_to_the_last_digit() -> None:
    odd = NoisySteps(noise_multiplier=0.1 + 0.2, sampling_rate=1 / 3, steps=10**12)
    assert book(("reserved", reserved(steps=odd))).charges[0].steps == odd


def test_question_charges_nothing() -> None:
    found = book(("reserved", reserved()))
    after = found.spent_after([1], STEPS, 1e-5)
    assert after == book(("reserved", reserved()), ("reserved", reserved())).spent(1, 1e-5) > found.spent(1, 1e-5)


def test_new_cohort_begins_at_zero_and_a_mixed_release_counts_for_both() -> None:
    found = book(("reserved", reserved()), ("cohort_opened", OPENED), ("reserved", reserved((1, 2))))
    assert found.newest_cohort == 2
    assert found.history(1) == (STEPS.times(2),)
    assert found.history(2) == (STEPS,)
    assert found.spent_after([1, 2], STEPS, 1e-5) == epsilon_rdp([STEPS.times(3)], 1e-5)


@pytest.mark.parametrize(
    "said",
    [
        [("answer_sent", {})],
        [("log_opened", {})],
        [("reserved", {})],
        [("reserved", reserved((2,)))],
        [("reserved", reserved((0,)))],
        [("reserved", reserved() | {"steps": -25})],
        [("reserved", reserved() | {"steps": 25.0})],
        [("reserved", reserved() | {"steps": True})],
        [("reserved", reserved() | {"noise_multiplier": "inf"})],
        [("reserved", reserved() | {"cohorts": ""})],
        [("voided", {"reservation": 2})],
        [("reserved", reserved()), ("voided", {"reservation": 3})],
        [("reserved", reserved()), ("released", {"reservation": 2}), ("voided", {"reservation": 2})],
        [("reserved", reserved()), ("voided", {"reservation": 2}), ("voided", {"reservation": 2})],
        [("reserved", reserved()), ("voided", {"reservation": 2}), ("released", {"reservation": 2})],
        [("cohort_opened", OPENED | {"cohort": 3})],
        [("cohort_opened", OPENED | {"cohort": 1})],
    ],
)
def test_entry_without_a_place_in_a_ledger_stops_the_site(said: list[tuple[str, dict[str, JsonScalar]]]) -> None:
    with pytest.raises(AuditError, match="privacy ledger"):
        book(*said)


def test_ledger_of_nothing_has_spent_nothing() -> None:
    assert book().spent(1, 1e-5) == 0.0
    assert read_book([], Head(0, "0" * 64)).charges == ()


subjects = st.frozensets(st.sampled_from("abcdefgh"), min_size=1)


@given(st.lists(st.tuples(subjects, st.booleans()), max_size=12))
def test_no_edit_of_a_cohort_forgets_what_a_subject_spent(plan: list[tuple[frozenset[str], bool]]) -> None:
    """Releases over any sets of subjects, and cohorts opened in between wherever that is allowed."""
    members: dict[str, int] = {}
    newest, true_spent, charged = 1, dict.fromkeys("abcdefgh", 0), {1: 0}
    for release_over, wants_new in plan:
        if wants_new and not release_over & members.keys():
            newest += 1
            charged[newest] = 0
            members |= dict.fromkeys(release_over, newest)
        cohorts = cohorts_of(members, release_over, newest)
        members = dict.fromkeys(release_over, cohorts[-1]) | members
        for cohort in cohorts:
            charged[cohort] += 1
        for subject in release_over:
            true_spent[subject] += 1
        assert all(true_spent[subject] <= charged[cohort] for subject, cohort in members.items())
