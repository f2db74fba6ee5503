"""The ledger on disk: a charge that was promised survives everything, none is ever forgotten, and tampering stops the site."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from panfm.errors import AuditError, ConfigError
from panfm.privacy.accounting import Budget, NoisySteps, epsilon_prv, epsilon_rdp
from panfm.privacy.planning import rounds_within
from panfm.signing import public_hex
from panfm.site.audit_chain import Head
from panfm.site.audit_log import ANCHOR, LOG, STATE, AuditLog, inspect_folder
from panfm.site.ledger import LEDGER_ANCHORED, LOCK, Ledger, OverBudget, Reserved, has_ledger, read_ledger
from panfm.site.ledger_book import Book, Fate, Purpose
from panfm.site.ledger_roll import ROLL
from tests.panfm.privacy.second_opinion import epsilon_by_pld, epsilon_by_rdp

KEY = Ed25519PrivateKey.generate()
ROUND = NoisySteps(noise_multiplier=1.2524, sampling_rate=0.05, steps=25)
AMPLE, TIGHT = Budget(epsilon=1000.0, delta=1e-5), Budget(epsilon=4.0, delta=1e-5)
SUBJECTS = frozenset(f"sub-{number:03d}" for number in range(30))
FILES = ("ledger.log", "ledger.anchor", ROLL)


def purpose(number: int = 1, run: str = "study-1") -> Purpose:
    return Purpose(run=run, round=number, task_digest="ab" * 32)


def opened(folder: Path, *witnesses: Head) -> Ledger:
    return Ledger.open(folder, KEY, AuditLog.open(folder, KEY), witnesses)


def charge(ledger: Ledger, number: int = 1, subjects: frozenset[str] = SUBJECTS, budget: Budget = AMPLE) -> Reserved:
    reserved = ledger.reserve(ROUND, purpose(number), subjects, budget)
    assert isinstance(reserved, Reserved)
    return reserved


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site that has an audit log and was never asked for privacy."""
    AuditLog.create(tmp_path, KEY, {"site": "north"})
    return tmp_path


@pytest.fixture
def ledger(folder: Path) -> Ledger:
    """A ledger of three charges."""
    ledger = opened(folder)
    for number in (1, 2, 3):
        charge(ledger, number)
    return ledger


# ---- what it does ---------------------------------------------------------------------------------------------------


def test_charge_is_on_disk_and_anchored_before_it_is_promised(ledger: Ledger, folder: Path) -> None:
    reserved = charge(ledger, 4)
    book = read_ledger(folder, public_hex(KEY))
    assert reserved.head == book.head == Head(5, book.head.digest)
    assert reserved.epsilon_after == epsilon_rdp([ROUND] * 4, 1e-5) == book.spent(1, 1e-5)
    assert [c.purpose for c in book.charges] == [purpose(number) for number in (1, 2, 3, 4)]
    about = inspect_folder(folder, public_hex(KEY)).entries[-1].about
    assert about == {"ledger_length": 5, "ledger_digest": book.head.digest}
    for name in (*FILES, LOCK):
        assert (folder / STATE / name).stat().st_mode & 0o777 == 0o600


def test_release_that_would_pass_the_budget_is_not_charged(folder: Path) -> None:
    ledger, fitting = opened(folder), rounds_within(TIGHT, ROUND, 100)
    for number in range(fitting):
        charge(ledger, number, budget=TIGHT)
    before = ledger.book()
    refused = ledger.reserve(ROUND, purpose(fitting + 1), SUBJECTS, TIGHT)
    assert isinstance(refused, OverBudget)
    assert refused.epsilon_after == epsilon_rdp([ROUND.times(fitting + 1)], 1e-5) > TIGHT.epsilon
    assert ledger.book() == before
    small = NoisySteps(noise_multiplier=200.0, sampling_rate=0.01, steps=1)
    assert isinstance(ledger.reserve(small, purpose(99), SUBJECTS, TIGHT), Reserved), "a cheaper one may still fit"


def test_all_runs_and_kinds_of_release_share_one_ledger(folder: Path) -> None:
    ledger, other = opened(folder), opened(folder)
    mixed = [ROUND, NoisySteps(noise_multiplier=2.0, sampling_rate=0.1, steps=10), ROUND]
    for number, (steps, by) in enumerate(zip(mixed, (ledger, other, ledger), strict=True)):
        assert isinstance(by.reserve(steps, purpose(1, f"run-{number}"), SUBJECTS, AMPLE), Reserved)
    assert other.book().spent(1, 1e-5) == epsilon_rdp(mixed, 1e-5)


def test_voided_charge_does_not_count_and_released_one_stays(ledger: Ledger) -> None:
    kept, undone = charge(ledger, 4), charge(ledger, 5)
    assert ledger.release(kept) == ledger.book().head
    ledger.void(undone)
    assert [c.fate for c in ledger.book().charges[3:]] == [Fate.released, Fate.voided]
    assert ledger.book().history(1) == (ROUND.times(4),)
    for settle in (ledger.release, ledger.void):
        for settled in (kept, undone):
            with pytest.raises(AuditError, match="not to be"):
                settle(settled)


def test_same_round_asked_again_is_charged_again(ledger: Ledger) -> None:
    charge(ledger, 3)
    assert ledger.book().history(1) == (ROUND.times(4),)


def test_release_over_nobody_is_a_mistake(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="no subjects"):
        ledger.reserve(ROUND, purpose(), frozenset(), AMPLE)


# ---- whose it is ----------------------------------------------------------------------------------------------------


def test_spending_stays_whatever_is_edited_in_the_cohort(ledger: Ledger) -> None:
    some, more, others = frozenset(sorted(SUBJECTS)[:2]), SUBJECTS | {"sub-900"}, frozenset({"sub-901", "sub-902"})
    for number, subjects in enumerate((some, more, others), start=4):
        assert charge(ledger, number, subjects).cohorts == (1,)
        assert ledger.book().history(1) == (ROUND.times(number),)


def test_new_cohort_is_for_subjects_of_whom_none_was_charged(ledger: Ledger) -> None:
    others = frozenset({"sub-901", "sub-902"})
    for subjects in (others | {"sub-003"}, SUBJECTS, frozenset[str]()):
        with pytest.raises(ConfigError, match="none of whom was charged before"):
            ledger.open_cohort(subjects)
    assert ledger.open_cohort(others) == 2
    assert ledger.cohorts(others) == ledger.cohorts({"sub-903"}) == (2,)
    assert charge(ledger, 4, others).epsilon_after == epsilon_rdp([ROUND], 1e-5)
    mixed = charge(ledger, 5, others | {"sub-003"})
    assert mixed.cohorts == (1, 2)
    assert mixed.epsilon_after == epsilon_rdp([ROUND] * 4, 1e-5), "the worst of the two"
    assert [ledger.book().history(cohort) for cohort in (1, 2)] == [(ROUND.times(4),), (ROUND.times(2),)]
    with pytest.raises(ConfigError, match="of these 2, 1 were"):
        ledger.open_cohort({"sub-902", "sub-904"})


def test_cohort_at_its_limit_holds_back_a_mixed_release(folder: Path) -> None:
    ledger, others = opened(folder), frozenset({"sub-901"})
    for number in range(rounds_within(TIGHT, ROUND, 100)):
        charge(ledger, number, budget=TIGHT)
    ledger.open_cohort(others)
    assert isinstance(ledger.reserve(ROUND, purpose(), others | {"sub-003"}, TIGHT), OverBudget)
    assert isinstance(ledger.reserve(ROUND, purpose(), others, TIGHT), Reserved)


def test_no_pseudonym_is_kept_and_none_can_be_guessed(ledger: Ledger, folder: Path) -> None:
    import hashlib

    kept = b"".join((folder / STATE / name).read_bytes() for name in (*FILES, LOG))
    assert len((folder / STATE / ROLL).read_bytes()) == 40 * len(SUBJECTS)
    for subject in SUBJECTS:
        assert subject.encode() not in kept
        assert hashlib.sha256(subject.encode()).hexdigest()[:32].encode() not in kept, (
            "a hash without a key is a guess away"
        )


# ---- tampering ------------------------------------------------------------------------------------------------------


def _copy(folder: Path, *names: str) -> dict[Path, bytes]:
    return {folder / STATE / name: (folder / STATE / name).read_bytes() for name in names}


def _put_back(copy: dict[Path, bytes]) -> None:
    for path, content in copy.items():
        path.write_bytes(content)


def _cut_last_line(folder: Path) -> None:
    path = folder / STATE / "ledger.log"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _cut_last_byte(folder: Path) -> None:
    path = folder / STATE / "ledger.log"
    path.write_bytes(path.read_bytes()[:-1])


def _edit_a_line(folder: Path) -> None:
    path = folder / STATE / "ledger.log"
    path.write_bytes(path.read_bytes().replace(b'"steps":25', b'"steps":20', 1))


def _remove_a_line(folder: Path) -> None:
    path = folder / STATE / "ledger.log"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))


def _add_a_line(folder: Path) -> None:
    with (folder / STATE / "ledger.log").open("ab") as stream:
        stream.write(b'{"event":"voided"}\n')


def _take_the_ledger_away(folder: Path) -> None:
    for name in FILES:
        (folder / STATE / name).unlink()


def _take_the_anchor_away(folder: Path) -> None:
    (folder / STATE / "ledger.anchor").unlink()


def _take_the_roll_away(folder: Path) -> None:
    (folder / STATE / ROLL).unlink()


def _strike_a_subject(folder: Path) -> None:
    path = folder / STATE / ROLL
    path.write_bytes(path.read_bytes()[40:])


def _exchange_a_subject(folder: Path) -> None:
    path = folder / STATE / ROLL
    path.write_bytes(b"000001 " + b"0" * 32 + b"\n" + path.read_bytes()[40:])


def _lay_the_audit_log_over_it(folder: Path) -> None:
    shutil.copy(folder / STATE / LOG, folder / STATE / "ledger.log")
    shutil.copy(folder / STATE / ANCHOR, folder / STATE / "ledger.anchor")


@pytest.mark.parametrize(
    "tamper",
    [
        _cut_last_line,
        _cut_last_byte,
        _edit_a_line,
        _remove_a_line,
        _add_a_line,
        _take_the_ledger_away,
        _take_the_anchor_away,
        _take_the_roll_away,
        _strike_a_subject,
        _exchange_a_subject,
        _lay_the_audit_log_over_it,
    ],
)
def test_tampering_stops_the_site_and_is_not_healed(
    ledger: Ledger, folder: Path, tamper: Callable[[Path], None]
) -> None:
    tamper(folder)
    before = {path: path.read_bytes() for path in (folder / STATE).iterdir()}
    for _ in range(2):
        with pytest.raises(AuditError):
            ledger.reserve(ROUND, purpose(4), SUBJECTS, AMPLE)
    with pytest.raises(AuditError):
        opened(folder).reserve(ROUND, purpose(4), SUBJECTS, AMPLE)
    assert {path: path.read_bytes() for path in (folder / STATE).iterdir()} == before


def test_restored_backup_of_the_ledger_stops_the_site(ledger: Ledger, folder: Path) -> None:
    backup = _copy(folder, *FILES)
    charge(ledger, 4)
    _put_back(backup)
    for attempt in (lambda: charge(ledger, 5), lambda: opened(folder), lambda: read_ledger(folder, public_hex(KEY))):
        with pytest.raises(AuditError, match="cut"):
            attempt()


def test_restored_backup_continued_elsewhere_is_seen(ledger: Ledger, folder: Path, tmp_path_factory: Any) -> None:
    """A copy of the whole site was continued on another machine, and its ledger brought back."""
    twin = tmp_path_factory.mktemp("twin")
    shutil.copytree(folder, twin, dirs_exist_ok=True)
    charge(ledger, 4)
    charge(opened(twin), 9)
    _put_back({folder / STATE / name: (twin / STATE / name).read_bytes() for name in FILES})
    with pytest.raises(AuditError, match="rewritten"):
        opened(folder)


def test_restored_backup_of_the_audit_log_stops_the_site(ledger: Ledger, folder: Path) -> None:
    backup = _copy(folder, LOG, ANCHOR)
    for number in (4, 5):
        charge(ledger, number)
    _put_back(backup)
    for attempt in (lambda: opened(folder), lambda: read_ledger(folder, public_hex(KEY))):
        with pytest.raises(AuditError, match="the audit log knows 4 of the privacy ledger's 6 lines"):
            attempt()


def test_both_put_back_together_are_found_by_a_witness(ledger: Ledger, folder: Path) -> None:
    backup = _copy(folder, *FILES, LOG, ANCHOR)
    told = charge(ledger, 4).head
    _put_back(backup)
    assert opened(folder).book().head.length == 4, "nobody here can know"
    with pytest.raises(AuditError, match="cut"):
        opened(folder, told)
    with pytest.raises(AuditError, match="cut"):
        read_ledger(folder, public_hex(KEY), [told])


def test_another_key_cannot_continue_it(ledger: Ledger, folder: Path) -> None:
    with pytest.raises(AuditError, match="another key"):
        Ledger.open(folder, Ed25519PrivateKey.generate(), AuditLog.open(folder, KEY))


# ---- crashes --------------------------------------------------------------------------------------------------------


class _PowerCut(BaseException):
    """Nothing after it happens."""


@contextlib.contextmanager
def _power_cut_at(step: int, patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let the so-manieth call that touches the disk not happen; a write happens by half."""
    left = [step]

    def cut(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                if name == "write" and left[0] == -1:
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise _PowerCut
            return real(*arguments, **settings)

        return call

    with patch.context() as inner:
        for name in ("write", "fsync", "ftruncate"):
            inner.setattr(os, name, cut(name, getattr(os, name)))
        inner.setattr(Path, "replace", cut("replace", Path.replace))
        with contextlib.suppress(_PowerCut):
            yield left


def _steps_until_done(
    act: Callable[[Path], object], prepared: Path, patch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, bool]]:
    """A fresh copy of the prepared folder for each step at which power can go, and at last one where it did not."""
    for step in range(200):
        place = prepared.with_name(f"{prepared.name}-{step}")
        shutil.copytree(prepared, place)
        done = False
        with _power_cut_at(step, patch):
            act(place)
            done = True
        yield place, done
        if done:
            assert step > 10, "the steps were cut one by one"
            return
    raise AssertionError("it never ended")


def test_power_cut_at_any_step_of_a_charge_forgets_nothing(
    ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = SUBJECTS | {"sub-777"}
    for place, promised in _steps_until_done(lambda at: charge(opened(at), 4, new), folder, monkeypatch):
        with contextlib.suppress(AuditError):
            read_ledger(place, public_hex(KEY))
        again = opened(place)
        rounds = [c.purpose.round for c in again.book().charges]
        assert rounds in ([1, 2, 3], [1, 2, 3, 4])
        assert len(rounds) == 4 or not promised
        charge(again, 5, new)
        assert again.book().history(1) == (ROUND.times(len(rounds) + 1),)
        assert read_ledger(place, public_hex(KEY)).head == again.book().head


def test_power_cut_while_a_ledger_begins_lets_it_begin_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, _ in _steps_until_done(opened, folder, monkeypatch):
        charge(opened(place))
        assert opened(place).book().history(1) == (ROUND,)


def test_power_cut_while_a_charge_is_undone_leaves_it_or_not(
    ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undone = charge(ledger, 4)
    for place, promised in _steps_until_done(lambda at: opened(at).void(undone), folder, monkeypatch):
        count = sum(entry.steps for entry in opened(place).book().history(1)) // ROUND.steps
        assert count == 3 if promised else count in (3, 4)


def test_power_cut_while_a_cohort_is_opened_forgets_nobody(
    ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = frozenset({"sub-901", "sub-902"})
    for place, promised in _steps_until_done(lambda at: opened(at).open_cohort(others), folder, monkeypatch):
        again = opened(place)
        newest = again.book().newest_cohort
        assert newest == 2 if promised else newest in (1, 2)
        assert again.cohorts(SUBJECTS) == (1,)
        assert again.cohorts(others) == (newest,)


def test_disk_that_is_full_charges_nothing(ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(AuditError, match="No space left on device"):
            charge(ledger, 4)
    assert ledger.book().history(1) == (ROUND.times(3),)
    charge(ledger, 4)


# ---- processes ------------------------------------------------------------------------------------------------------


def _say(write: int, word: object) -> None:
    os.write(write, f"{word}\n".encode())


def _forked(work: Callable[[Callable[[object], None]], object]) -> tuple[int, int]:
    """A process that does some work and tells lines; its id, and where to read. Forked, to begin in milliseconds."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            work(lambda word: _say(write, word))
        finally:
            os._exit(0)
    os.close(write)
    return child, read


def _told(child: int, read: int, kill_after: int | None = None, wait_s: float = 0.0) -> list[str]:
    """The lines that a process told; killed, if so wished, after so many of them."""
    with os.fdopen(read) as stream:
        lines: list[str] = []
        if kill_after is not None:
            lines = [stream.readline().strip() for _ in range(kill_after)]
            time.sleep(wait_s)
            os.kill(child, signal.SIGKILL)
        lines += stream.read().split()
        os.waitpid(child, 0)
    return lines


def _charging(folder: Path, times: int, run: str = "forked", budget: Budget = AMPLE) -> tuple[int, int]:
    def work(tell: Callable[[object], None]) -> None:
        ledger = opened(folder)
        for number in range(1, times + 1):
            reserved = ledger.reserve(ROUND, purpose(number, run), SUBJECTS | {f"{run}-{number}"}, budget)
            if isinstance(reserved, Reserved):
                tell(reserved.line)

    return _forked(work)


def test_two_processes_charge_and_every_charge_counts(ledger: Ledger, folder: Path) -> None:
    lines = [int(line) for process in [_charging(folder, 15, run) for run in "ab"] for line in _told(*process)]
    assert len(set(lines)) == 30
    assert {c.line for c in ledger.book().charges} >= set(lines)
    assert ledger.book().history(1) == (ROUND.times(33),)
    assert ledger.cohorts({"a-15", "b-15"}) == (1,)


def test_two_processes_cannot_pass_the_budget_together(ledger: Ledger, folder: Path) -> None:
    fitting = rounds_within(TIGHT, ROUND, 100)
    assert 3 < fitting < 23
    told = [line for process in [_charging(folder, 20, run, TIGHT) for run in "ab"] for line in _told(*process)]
    assert len(told) == fitting - 3
    assert ledger.book().spent(1, 1e-5) <= TIGHT.epsilon


def _kill_many_times(folder: Path, kills: int) -> None:
    """SIGKILL at random moments of a process that does nothing but charge."""
    moments, promised, most = random.Random(5), set[int](), 0
    for number in range(kills):
        lines = _told(*_charging(folder, 10**6, f"killed-{number}"), moments.randrange(4), 0.03 * moments.random())
        promised |= {int(line) for line in lines}
        most += len(lines) + 1
        book = opened(folder).book()
        assert promised <= {c.line for c in book.charges}
        assert len(promised) <= len(book.charges) <= most
        assert book.spent(1, 1e-5) == epsilon_rdp([c.steps for c in book.charges], 1e-5)
        assert read_ledger(folder, public_hex(KEY)).head == book.head


def test_killed_process_leaves_every_charge_that_it_promised(folder: Path) -> None:
    _kill_many_times(folder, 8)


@pytest.mark.slow
def test_a_hundred_kills_leave_every_charge_that_was_promised(folder: Path) -> None:
    _kill_many_times(folder, 100)


OTHER_ROUND = NoisySteps(noise_multiplier=2.0, sampling_rate=0.1, steps=10)


def _forty_rounds(folder: Path, steps_of: Callable[[int], NoisySteps]) -> Book:
    """As a client does it: charge, compute, settle, answer. Two processes die within rounds 11 and 30; who comes after a crash
    does the unanswered round again."""

    def take_part(first: int, dies_in: int | None) -> Callable[[Callable[[object], None]], None]:
        def work(tell: Callable[[object], None]) -> None:
            ledger = opened(folder)
            for number in range(first, 41):
                reserved = ledger.reserve(steps_of(number), purpose(number), SUBJECTS, AMPLE)
                assert isinstance(reserved, Reserved)
                if number == dies_in:
                    os.kill(os.getpid(), signal.SIGKILL)
                ledger.release(reserved)
                tell(number)

        return work

    answered: list[int] = []
    for dies_in in (11, 30, None):
        answered += map(int, _told(*_forked(take_part(len(answered) + 1, dies_in))))
    assert answered == list(range(1, 41))
    book = opened(folder).book()
    assert [sum(c.fate is fate for c in book.charges) for fate in (Fate.released, Fate.reserved)] == [40, 2]
    return book


def test_forty_rounds_in_three_processes_with_two_crashes_cost_at_least_as_much(folder: Path) -> None:
    uninterrupted, book = epsilon_rdp([ROUND.times(40)], 1e-5), _forty_rounds(folder, lambda number: ROUND)
    assert book.spent(1, 1e-5) > uninterrupted == pytest.approx(8.0, abs=0.01)
    assert book.spent(1, 1e-5) == epsilon_rdp([ROUND.times(42)], 1e-5)
    by_prv = [epsilon_prv(history, 1e-5) for history in (book.history(1), [ROUND.times(40)])]
    assert by_prv[0] is not None
    assert by_prv[1] is not None
    assert by_prv[0] > by_prv[1] == pytest.approx(7.36, abs=0.02)


def _charged_by_the_file(folder: Path) -> list[NoisySteps]:
    """Every reservation in the file, read without the ledger's own reader."""
    lines = map(json.loads, (folder / STATE / "ledger.log").read_text().splitlines())
    names = ("noise_multiplier", "sampling_rate", "steps")
    return [NoisySteps(**{n: line["about"][n] for n in names}) for line in lines if line["event"] == "reserved"]


def test_forty_rounds_of_two_recipes_with_two_crashes_cost_what_dp_accounting_finds(folder: Path) -> None:
    """Another recipe from round 21 on; both crashes fall on different recipes, so each is charged once more. Measured: 6.399 by
    PLD, 6.409 reported, 6.970 decided by; 6.227 by PLD without the crashes."""
    plan = {number: ROUND if number <= 20 else OTHER_ROUND for number in range(1, 41)}
    book = _forty_rounds(folder, plan.__getitem__)
    charged = _charged_by_the_file(folder)
    assert sorted(charged, key=repr) == sorted([*plan.values(), ROUND, OTHER_ROUND], key=repr)
    (exact,), (uninterrupted,) = epsilon_by_pld(charged, 1e-5), epsilon_by_pld(plan.values(), 1e-5)
    (by_rdp,) = epsilon_by_rdp(charged, 1e-5)
    decided, reported = book.spent(1, 1e-5), epsilon_prv(book.history(1), 1e-5)
    assert reported is not None
    assert uninterrupted < exact <= reported <= exact + 0.015
    assert exact <= decided <= 1.1 * exact
    assert decided == pytest.approx(by_rdp, rel=1e-3)


def test_ledger_that_was_never_begun_is_told_from_one_that_is_gone(folder: Path) -> None:
    assert not has_ledger(folder)
    assert AuditLog.open(folder, KEY).last(LEDGER_ANCHORED) is None
    with pytest.raises(AuditError, match="there is no"):
        read_ledger(folder, public_hex(KEY))
    opened(folder)
    assert has_ledger(folder)
    assert not (folder / STATE / ROLL).exists(), "nobody was charged yet"
    for name in ("ledger.log", "ledger.anchor"):
        (folder / STATE / name).unlink()
    with pytest.raises(AuditError, match="it is gone"):
        opened(folder)
