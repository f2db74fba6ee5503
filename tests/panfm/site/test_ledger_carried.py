"""A ledger under a new key: nothing begins at zero, nobody is forgotten, and only a whole ledger is carried over."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from panfm.errors import AuditError, ConfigError
from panfm.privacy.accounting import Budget, NoisySteps, epsilon_rdp
from panfm.signing import public_hex
from panfm.site.audit_chain import Head
from panfm.site.audit_log import STATE, AuditLog, inspect_folder
from panfm.site.ledger import LEDGER, Ledger, OverBudget, Reserved, read_earlier, read_ledger
from panfm.site.ledger_book import Book, Fate, Purpose
from panfm.site.ledger_roll import ROLL, first_roll_key, sealed, unsealed

OLD, NEW, NEWEST = (Ed25519PrivateKey.generate() for _ in range(3))
ROUND = NoisySteps(noise_multiplier=1.2524, sampling_rate=0.05, steps=25)
OTHER = NoisySteps(noise_multiplier=2.0, sampling_rate=0.1, steps=10)
DELTA = 1e-5
AMPLE = Budget(epsilon=1000.0, delta=DELTA)
FIRST, SECOND = frozenset({"sub-001", "sub-002"}), frozenset({"sub-101"})


def opened(folder: Path, key: Ed25519PrivateKey, *witnesses: Head) -> Ledger:
    return Ledger.open(folder, key, AuditLog.open(folder, key), witnesses)


def charge(ledger: Ledger, steps: NoisySteps, subjects: frozenset[str], number: int = 1) -> Reserved:
    purpose = Purpose(run=f"study-{number}", round=number, task_digest="ab" * 32)
    reserved = ledger.reserve(steps, purpose, subjects, AMPLE)
    assert isinstance(reserved, Reserved)
    return reserved


def begun(folder: Path, key: Ed25519PrivateKey) -> Path:
    """A site that has a key and an audit log, and no ledger yet."""
    AuditLog.create(folder, key, {"site": "north"})
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Two cohorts, different recipes, and every fate that a charge can have."""
    ledger = opened(begun(tmp_path / "old", OLD), OLD)
    ledger.release(charge(ledger, ROUND, FIRST, 1))
    ledger.void(charge(ledger, OTHER, FIRST, 2))
    assert ledger.open_cohort(SECOND) == 2
    charge(ledger, OTHER, SECOND, 3)
    ledger.release(charge(ledger, OTHER, FIRST | SECOND, 4))
    return tmp_path / "old"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return begun(tmp_path / "new", NEW)


def carry(old: Path, new: Path, old_key: Ed25519PrivateKey | None = OLD, *witnesses: Head) -> Ledger:
    earlier = read_earlier(old, public_hex(OLD), old_key, witnesses)
    return Ledger.carry_over(new, NEW, AuditLog.open(new, NEW), earlier)


def facts(book: Book) -> list[object]:
    """All that a charge says but for the number of its line."""
    return [replace(found, line=0) for found in book.charges]


def test_every_charge_and_cohort_goes_on_to_the_last_digit(old: Path, new: Path) -> None:
    before, after = read_ledger(old, public_hex(OLD)), carry(old, new).book()
    assert facts(after) == facts(before)
    assert [found.fate for found in after.charges] == [Fate.released, Fate.voided, Fate.reserved, Fate.released]
    assert after.newest_cohort == 2
    for cohort in (1, 2):
        assert after.history(cohort) == before.history(cohort)
        assert after.spent(cohort, DELTA) == before.spent(cohort, DELTA) > 0
    assert after.carried is not None
    assert (after.carried.public_key, after.carried.head) == (public_hex(OLD), before.head)
    assert read_ledger(new, public_hex(NEW)) == after


def test_the_new_ledger_is_charged_on_top_of_it(old: Path, new: Path) -> None:
    ledger = carry(old, new)
    settled = charge(ledger, ROUND, FIRST, 5)
    assert settled.cohorts == (1,)
    assert settled.epsilon_after == epsilon_rdp([ROUND, OTHER, ROUND], DELTA)
    ledger.release(settled)
    budget = Budget(epsilon=settled.epsilon_after, delta=DELTA)
    again = ledger.reserve(ROUND, Purpose(run="r", round=6, task_digest=""), FIRST, budget)
    assert isinstance(again, OverBudget)
    assert opened(new, NEW).book().history(1) == (ROUND.times(2), OTHER)


def test_subjects_are_known_again_and_so_are_their_cohorts(old: Path, new: Path) -> None:
    """Also those who are in no store any more: they may come back."""
    ledger = carry(old, new)
    assert [ledger.cohorts({subject}) for subject in ("sub-001", "sub-101", "sub-900")] == [(1,), (2,), (2,)]
    with pytest.raises(ConfigError, match="of these 2, 1 were"):
        ledger.open_cohort({"sub-002", "sub-901"})
    assert ledger.open_cohort({"sub-901"}) == 3
    assert opened(new, NEW).cohorts({"sub-002"}) == (1,)


def test_without_the_earlier_key_everything_counts_for_everybody(old: Path, new: Path) -> None:
    ledger = carry(old, new, None)
    book, everything = ledger.book(), [ROUND, OTHER, OTHER]
    assert book.newest_cohort == 1
    assert book.spent(1, DELTA) == epsilon_rdp(everything, DELTA)
    assert not (new / STATE / ROLL).exists()
    for subjects in (FIRST, SECOND, frozenset({"sub-900"})):
        assert ledger.cohorts(subjects) == (1,)
    with pytest.raises(ConfigError, match="cannot be told"):
        ledger.open_cohort({"sub-901"})
    assert charge(ledger, ROUND, SECOND, 5).epsilon_after == epsilon_rdp([*everything, ROUND], DELTA)


@pytest.mark.parametrize("is_lost", [False, True])
def test_ledger_is_carried_over_again(old: Path, new: Path, tmp_path: Path, is_lost: bool) -> None:
    ledger = carry(old, new, None if is_lost else OLD)
    charge(ledger, ROUND, SECOND, 5)
    newest, audit_key = begun(tmp_path / "newest", NEWEST), NEWEST
    earlier = read_earlier(new, public_hex(NEW), NEW)
    third = Ledger.carry_over(newest, audit_key, AuditLog.open(newest, audit_key), earlier)
    assert facts(third.book()) == facts(ledger.book())
    assert third.cohorts({"sub-001"}) == (1,)
    assert third.cohorts({"sub-101"}) == ((1,) if is_lost else (2,))
    if is_lost:
        with pytest.raises(ConfigError, match="cannot be told"):
            third.open_cohort({"sub-901"})


def test_heads_of_the_earlier_ledger_still_bear_witness(old: Path, new: Path) -> None:
    lines = inspect_folder(old, public_hex(OLD), kind=LEDGER)
    heads = [Head(entry.line - 1, entry.previous) for entry in lines.entries[1:]] + [lines.head]
    ledger = carry(old, new, OLD, *heads)
    told = ledger.release(charge(ledger, ROUND, FIRST, 5))
    for head in (*heads, told):
        assert opened(new, NEW, head).book().head == told
        assert read_ledger(new, public_hex(NEW), [head]).head == told
    for strange in (Head(heads[-1].length + 1, "c" * 64), Head(3, "c" * 64)):
        with pytest.raises(AuditError):
            opened(new, NEW, strange)


def _cut(folder: Path) -> None:
    path = folder / STATE / "ledger.log"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _edit(folder: Path) -> None:
    path = folder / STATE / "ledger.log"
    path.write_bytes(path.read_bytes().replace(b'"steps":25', b'"steps":20', 1))


def _strike_a_subject(folder: Path) -> None:
    path = folder / STATE / ROLL
    path.write_bytes(path.read_bytes()[40:])


def _take_the_ledger_away(folder: Path) -> None:
    for name in ("ledger.log", "ledger.anchor"):
        (folder / STATE / name).unlink()


def _edit_the_audit_log(folder: Path) -> None:
    path = folder / STATE / "audit.log"
    path.write_bytes(path.read_bytes().replace(b"north", b"south", 1))


@pytest.mark.parametrize("tamper", [_cut, _edit, _strike_a_subject, _take_the_ledger_away, _edit_the_audit_log])
def test_ledger_that_is_not_whole_is_not_carried_over(old: Path, new: Path, tamper: Callable[[Path], None]) -> None:
    tamper(old)
    before = {path: path.read_bytes() for path in (new / STATE).iterdir()}
    with pytest.raises(AuditError):
        carry(old, new)
    assert {path: path.read_bytes() for path in (new / STATE).iterdir()} == before


def test_older_copy_of_all_is_found_by_a_witness(old: Path, new: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(old, tmp_path / "copy")
    told = charge(opened(old, OLD), ROUND, FIRST, 5).head
    with pytest.raises(AuditError, match="cut"):
        carry(copy, new, OLD, told)


def test_keys_that_are_no_pair_and_ledgers_that_are_in_use_are_refused(old: Path, new: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the other half"):
        carry(old, new, NEW)
    used = begun(tmp_path / "used", NEW)
    charge(opened(used, NEW), ROUND, FIRST)
    with pytest.raises(ConfigError, match="has charges of its own"):
        carry(old, used)
    carry(old, new)
    carried = read_ledger(new, public_hex(NEW))
    assert carry(old, new).book() == carried, "asked again, it is there already"
    charge(opened(old, OLD), ROUND, FIRST, 5)
    with pytest.raises(ConfigError, match="carried over from another one"):
        carry(old, new)


def test_cut_short_at_any_line_it_charges_nobody_and_goes_on(old: Path, tmp_path: Path) -> None:
    """Power goes at each write to the disk, in the middle of what is written."""
    before, stopped = read_ledger(old, public_hex(OLD)), 0
    whole, total = facts(before), before.head.length
    for step in range(2, 200, 7):
        new = begun(tmp_path / f"new-{step}", NEW)
        with pytest.MonkeyPatch.context() as patch:
            is_done = _carried_until(step, patch, old, new)
        if 0 < _lines_carried(new) < total:
            with pytest.raises(AuditError):
                read_ledger(new, public_hex(NEW))
            with pytest.raises(AuditError):
                charge(opened(new, NEW), ROUND, FIRST)
            stopped += 1
        ledger = carry(old, new)
        assert facts(ledger.book()) == whole
        assert ledger.cohorts({"sub-101"}) == (2,)
        if is_done:
            assert stopped > 3, "it was cut off where lines were missing"
            return
    raise AssertionError("it never ended")


def _lines_carried(new: Path) -> int:
    path = new / STATE / "ledger.log"
    whole, _, _ = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
    return sum(b'"was_line":' in line for line in whole.splitlines())


class _PowerCut(BaseException):
    """Nothing after it happens."""


def _carried_until(step: int, patch: pytest.MonkeyPatch, old: Path, new: Path) -> bool:
    """Whether it was done before the so-manieth write, half of which still happens."""
    left, write = [step], os.write

    def cut(descriptor: int, content: bytes) -> int:
        left[0] -= 1
        if left[0] < 0:
            if left[0] == -1:
                write(descriptor, content[: len(content) // 2])
            raise _PowerCut
        return write(descriptor, content)

    patch.setattr(os, "write", cut)
    try:
        carry(old, new)
    except _PowerCut:
        return False
    return True


def test_roll_key_is_sealed_for_one_key_and_never_the_same_twice() -> None:
    roll_key = first_roll_key(OLD)
    texts = {sealed(roll_key, NEW) for _ in range(3)}
    assert len(texts) == 3
    assert all(unsealed(text, NEW) == roll_key and roll_key.hex() not in text for text in texts)
    for text in (sealed(roll_key, OLD), texts.pop()[:-2] + "00", "00"):
        with pytest.raises(AuditError, match="not for the site's signing key"):
            unsealed(text, NEW)
