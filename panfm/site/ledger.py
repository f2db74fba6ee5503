"""The privacy ledger of one hospital: every charge to its subjects' privacy, over all runs, before it is spent.

It exists because the accountants can say what a plan would cost, but only a record on the hospital's own disk can say what has
been spent. A charge is on disk, and its head in the audit log, before anything is computed for it: a crash at any instruction
can only count too much. What its entries mean: `panfm.site.ledger_book`; how lines are chained, signed and recovered:
`panfm.site.audit_log`, which keeps both logs in the same way.

    state/ledger.log      one line an entry; only ever appended to
    state/ledger.anchor   number, digest and offset of the last finished line
    state/ledger.roll     who was ever charged: cohort and keyed hash of the pseudonym, 40 bytes a subject; only appended to
    state/ledger.lock     held (flock) while one process reads, decides and writes

After each entry the audit log gets a `ledger_anchored` with length and digest of the ledger. A ledger that is shorter than
that, or another one, was put back to an older copy: nothing is charged, so nothing is trained, until a person has looked. So
it is with an audit log that does not know of the ledger's last lines. Both put back together are found by whoever keeps a head
that the site sent: `witnesses`.

There is one ledger a site, bound to the site's signing key. A new key does not begin at zero: the ledger is carried over
(`panfm.site.ledger_carried`). The roll names nobody: `panfm.site.ledger_roll`.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from panfm.errors import AuditError, ConfigError
from panfm.privacy.accounting import Budget, NoisySteps
from panfm.signing import public_hex
from panfm.site.audit_chain import EMPTY, Entry, Head, Inspection, JsonScalar
from panfm.site.audit_log import STATE, AuditLog, LogKind, has_log, inspect_folder
from panfm.site.ledger_book import (
    CARRIED_OVER,
    COHORT_OPENED,
    FIRST_COHORT,
    RELEASED,
    RESERVED,
    VOIDED,
    Book,
    Fate,
    Purpose,
    about_charge,
    about_roll,
    cohorts_of,
    read_book,
)
from panfm.site.ledger_carried import EarlierLedger, carried_over, copied, heads_before, new_numbers
from panfm.site.ledger_roll import (
    STOP,
    SubjectRoll,
    first_roll_key,
    open_private,
    roll_content,
    sealed,
    unsealed,
    write_roll,
)

LEDGER = LogKind(
    "ledger", "privacy ledger", "run `panfm site ledger`, which names what is wrong, and ask who changed it"
)
LOCK = "ledger.lock"
LEDGER_ANCHORED = "ledger_anchored"
"""In the audit log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """A charge that counts. Who holds it may compute; it is not to be had again after the process has ended."""

    line: int
    cohorts: tuple[int, ...]
    epsilon_after: float
    """What the worst of its cohorts has spent with it, by the accountant that decides."""
    head: Head
    """Of the ledger with it, to be sent along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverBudget:
    """Nothing was charged, because it would pass the budget."""

    epsilon_after: float
    budget: Budget


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ledger below a site's folder, as one who may write it."""

    _folder: Path
    _log: AuditLog
    _audit: AuditLog
    _public_key: str
    _roll: SubjectRoll
    _witnesses: tuple[Head, ...] = ()

    @classmethod
    def open(cls, folder: Path, key: Ed25519PrivateKey, audit: AuditLog, witnesses: Sequence[Head] = ()) -> Ledger:
        """The ledger of a site, begun if it never had one; what a crash left of its last line is dealt with.

        Args:
            audit: the log of the same folder, in which the ledger's heads are anchored.
            witnesses: heads that others have recorded.
        Raises: AuditError when it is not as it was written, or was taken away.
        """
        ledger = cls._of(folder, key, audit, witnesses)
        with ledger._locked():
            ledger._begin_once(key)
            return replace(ledger, _roll=SubjectRoll(folder, _roll_key(ledger._checked(), key)))

    @classmethod
    def carry_over(cls, folder: Path, key: Ed25519PrivateKey, audit: AuditLog, earlier: EarlierLedger) -> Ledger:
        """The ledger of a site with a new key, begun with all that the one under its earlier key says.

        Until it is done nothing can be charged; after a crash it is asked for again, and goes on where it was.

        Raises: ConfigError when this ledger has charged somebody already, or was carried over from another one; AuditError.
        """
        ledger = cls._of(folder, key, audit)
        with ledger._locked():
            ledger._begin_once(key)
            ledger._carry(earlier, key)
        return cls.open(folder, key, audit)

    def book(self) -> Book:
        """What it says now. Raises: AuditError."""
        with self._locked():
            return self._checked()

    def cohorts(self, subjects: Collection[str]) -> tuple[int, ...]:
        """The cohorts that a release over these subjects would be charged to.

        Args:
            subjects: pseudonyms.
        """
        with self._locked():
            book = self._checked()
            members = self._roll.members(book.roll)
            return cohorts_of(members, self._roll.hashed(subjects), book.newest_cohort)

    def reserve(
        self, steps: NoisySteps, purpose: Purpose, subjects: Collection[str], budget: Budget
    ) -> Reserved | OverBudget:
        """Charge a release before it is computed; when this returns `Reserved`, the charge survives any crash.

        Asked again for the same purpose it charges again: the noise will be fresh, so the loss is, too.

        Args:
            subjects: pseudonyms of all on whom it may be computed, whether or not a sample will hold them.
            budget: what the site's policy allows now.
        Raises: AuditError when the ledger or the audit log is not as it was written, or cannot be written.
        """
        if not subjects:
            raise ValueError("a release over no subjects needs no charge, and should not be made")
        with self._locked():
            book = self._checked()
            members, hashed = self._roll.members(book.roll), self._roll.hashed(subjects)
            cohorts = cohorts_of(members, hashed, book.newest_cohort)
            epsilon = book.spent_after(cohorts, steps, budget.delta)
            if not epsilon <= budget.epsilon:
                return OverBudget(epsilon_after=epsilon, budget=budget)
            roll = self._roll.enrol(book.roll, sorted(hashed - members.keys()), cohorts[-1])
            head = self._append(RESERVED, about_charge(steps, purpose, cohorts, budget, epsilon) | about_roll(roll))
            return Reserved(line=head.length, cohorts=cohorts, epsilon_after=epsilon, head=head)

    def release(self, reserved: Reserved) -> Head:
        """Settle a charge for good, before anything of what was computed for it is kept or sent.

        Returns: the ledger's head, to be sent along.
        Raises: AuditError, also when the charge was voided.
        """
        with self._locked():
            return self._settle(reserved, RELEASED)

    def void(self, reserved: Reserved) -> None:
        """Undo a charge of which nothing has left the site or ever can, not even that it failed because of the data.

        Raises: AuditError, also when the charge was released.
        """
        with self._locked():
            self._settle(reserved, VOIDED)

    def open_cohort(self, subjects: Collection[str]) -> int:
        """Begin a cohort at zero, for subjects none of whom was ever charged; a person's decision, never a program's.

        The same people under other pseudonyms look like others: whoever opens a cohort answers for it that they are not.

        Returns: the number of the cohort.
        Raises: ConfigError when there are no subjects, or any of them was charged before, or nobody can tell; AuditError.
        """
        with self._locked():
            book = self._checked()
            if _is_roll_lost(book):
                raise ConfigError(
                    "who was charged before cannot be told: it stood under a signing key that is lost. This ledger stays with "
                    "the cohort that there is"
                )
            members, hashed = self._roll.members(book.roll), self._roll.hashed(subjects)
            known = len(hashed & members.keys())
            if known or not hashed:
                raise ConfigError(
                    f"a new cohort needs subjects none of whom was charged before; of these {len(hashed)}, {known} were. "
                    "Take them out of the store, or stay with the cohort that there is"
                )
            cohort = book.newest_cohort + 1
            roll = self._roll.enrol(book.roll, sorted(hashed), cohort)
            self._append(COHORT_OPENED, {"cohort": cohort, "subjects": len(hashed), **about_roll(roll)})
            return cohort

    # ---- below: with the lock held ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the ledger; the lock ends with the process that holds it."""
        try:
            (self._folder / STATE).mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = open_private(self._folder / STATE / LOCK)
        except OSError as error:
            raise _cannot_write(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        except OSError as error:
            raise _cannot_write(error) from error
        finally:
            os.close(lock)

    @classmethod
    def _of(cls, folder: Path, key: Ed25519PrivateKey, audit: AuditLog, witnesses: Sequence[Head] = ()) -> Ledger:
        log = AuditLog(folder / STATE, key, public_hex(key), LEDGER)
        return cls(folder, log, audit, public_hex(key), SubjectRoll(folder, first_roll_key(key)), tuple(witnesses))

    def _begin_once(self, key: Ed25519PrivateKey) -> None:
        if has_log(self._folder, LEDGER):
            return
        if self._audit.last(LEDGER_ANCHORED) is not None:
            raise AuditError(f"the audit log knows of a privacy ledger, and it is gone; restore it. Till then {STOP}")
        AuditLog.create(self._folder, key, {}, LEDGER)

    def _checked(self) -> Book:
        """What the ledger says, after it was compared with all that vouches for it; its head is in the audit log then."""
        book, _ = self._looked_at()
        _check_whole(book)
        return book

    def _looked_at(self) -> tuple[Book, tuple[Entry, ...]]:
        self._log.head()  # deals with what a crash left
        anchored = _anchored(self._audit)
        book, entries = _read(self._folder, self._public_key, (anchored, *self._witnesses))
        _check_known(book.head, anchored)
        if book.head != anchored:  # a crash came between the two
            self._anchor(book.head)
        return book, entries

    def _carry(self, earlier: EarlierLedger, key: Ed25519PrivateKey) -> None:
        book, entries = self._looked_at()
        numbers = new_numbers(entries)
        if book.carried is None:
            if book.charges or book.newest_cohort > FIRST_COHORT:
                raise ConfigError(
                    "this site's ledger has charges of its own, and a ledger is carried over before the first of them. Take "
                    "off the policy's epsilon what the earlier ledger says is spent, and halve delta: deploy/guides/site.md"
                )
            numbers = {1: self._begin_with(earlier, key).length}
        elif (book.carried.public_key, book.carried.head) != (earlier.public_key, earlier.head):
            raise ConfigError(
                f"this site's ledger was carried over from another one, with the head {book.carried.head}; give that folder"
            )
        for entry in earlier.entries[len(numbers) :]:
            numbers[entry.line] = self._append(*copied(earlier, entry, numbers)).length

    def _begin_with(self, earlier: EarlierLedger, key: Ed25519PrivateKey) -> Head:
        """The roll first: an entry vouches for it."""
        if earlier.roll_key is not None:
            write_roll(self._folder, 0, earlier.roll_content)
        roll_key = "" if earlier.roll_key is None else sealed(earlier.roll_key, key)
        return self._append(CARRIED_OVER, carried_over(earlier, roll_key))

    def _append(self, event: str, about: Mapping[str, JsonScalar]) -> Head:
        self._log.append(event, about)
        head = self._log.head()
        self._anchor(head)
        return head

    def _anchor(self, head: Head) -> None:
        self._audit.append(LEDGER_ANCHORED, {"ledger_length": head.length, "ledger_digest": head.digest})

    def _settle(self, reserved: Reserved, event: str) -> Head:
        fate = self._checked().charge(reserved.line).fate
        if fate is not Fate.reserved:
            raise AuditError(
                f"the charge on line {reserved.line} of the privacy ledger is {fate.value}, and not to be {event}"
            )
        return self._append(event, {"reservation": reserved.line})


def read_ledger(folder: Path, public_key: str, witnesses: Sequence[Head] = ()) -> Book:
    """What a site's ledger says, for those who only read: no key is needed and nothing is changed.

    Raises: AuditError when there is none, or it or the audit log is not as it was written.
    """
    book, _ = _read_all(folder, public_key, witnesses)
    _check_whole(book)
    return book


def read_earlier(
    folder: Path, public_key: str, key: Ed25519PrivateKey | None, witnesses: Sequence[Head] = ()
) -> EarlierLedger:
    """The ledger of a site under an earlier key, to be carried over.

    Args:
        folder: with `state/` as it was under that key.
        key: its private half; None: it is lost.
        witnesses: heads of that ledger that others have recorded.
    Raises: ConfigError when the two halves are not of one key; AuditError when ledger, roll or audit log are not as they were
        written.
    """
    if key is not None and public_hex(key) != public_key:
        raise ConfigError(
            "the earlier private key is not the other half of the earlier public key; give those of one key"
        )
    book, entries = _read_all(folder, public_key, witnesses)
    _check_whole(book)
    return EarlierLedger(
        public_key=public_key,
        entries=entries,
        head=book.head,
        roll=book.roll,
        roll_content=roll_content(folder, book.roll),
        roll_key=None if key is None or _is_roll_lost(book) else _roll_key(book, key),
    )


def has_ledger(folder: Path) -> bool:
    """Whether a site's folder holds a ledger, or what says that it held one."""
    return has_log(folder, LEDGER)


def _read_all(folder: Path, public_key: str, witnesses: Sequence[Head]) -> tuple[Book, tuple[Entry, ...]]:
    """The ledger as those who hold no key see it, compared with the audit log."""
    audit = inspect_folder(folder, public_key)
    _check(audit, "audit log")
    heads = [_head_of(entry.about) for entry in audit.entries if entry.event == LEDGER_ANCHORED]
    book, entries = _read(folder, public_key, (*heads, *witnesses))
    _check_known(book.head, heads[-1] if heads else EMPTY)
    return book, entries


def _read(folder: Path, public_key: str, witnesses: Sequence[Head]) -> tuple[Book, tuple[Entry, ...]]:
    found = inspect_folder(folder, public_key, witnesses, LEDGER)
    before = heads_before(found.entries)
    if found.fault is not None and before.intersection(witnesses):  # they are of the ledger under the earlier key
        found = inspect_folder(folder, public_key, [head for head in witnesses if head not in before], LEDGER)
    _check(found, "privacy ledger")
    return read_book(found.entries, found.head), found.entries


def _check_whole(book: Book) -> None:
    if book.carried is not None and not book.carried.is_whole:
        raise AuditError(
            f"the privacy ledger holds {book.carried.lines} of the {book.carried.head.length} lines that are to be carried over; "
            f"run `panfm site ledger carry-over` again. Till then {STOP}"
        )


def _is_roll_lost(book: Book) -> bool:
    return book.carried is not None and not book.carried.roll_key


def _roll_key(book: Book, key: Ed25519PrivateKey) -> bytes:
    """The key that the roll has had from its beginning."""
    if book.carried is None or _is_roll_lost(book):
        return first_roll_key(key)
    return unsealed(book.carried.roll_key, key)


def _check(found: Inspection, title: str) -> None:
    if found.fault is not None:
        fault = found.fault
        raise AuditError(f"line {fault.line} of the {title} [{fault.kind}]: {fault.meaning}; {STOP}")


def _check_known(head: Head, anchored: Head) -> None:
    """The audit log is at most one entry behind, for a crash may come between the two."""
    if head.length > anchored.length + 1:
        raise AuditError(
            f"the audit log knows {anchored.length} of the privacy ledger's {head.length} lines: it was put back to an older "
            f"copy; {STOP}"
        )


def _anchored(audit: AuditLog) -> Head:
    """The ledger's head as the audit log knows it; of an empty ledger, when it knows none."""
    entry = audit.last(LEDGER_ANCHORED)
    return EMPTY if entry is None else _head_of(entry.about)


def _head_of(about: Mapping[str, JsonScalar]) -> Head:
    return Head(int(str(about["ledger_length"])), str(about["ledger_digest"]))


def _cannot_write(error: OSError) -> AuditError:
    return AuditError(
        f"the privacy ledger cannot be read or written ({error.strerror}); make room or mend the disk: {STOP}"
    )
