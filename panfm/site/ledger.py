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

There is one ledger a site. A subject is kept as a keyed hash of its pseudonym: enough to see that it was charged before, while
the ledger can be backed up and shown without naming anybody. Keyed, because pseudonyms such as sub-001 can be guessed one by
one; by the site's own signing key, because the ledger is bound to that key anyway and needs no other secret.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from panfm.durable import flush
from panfm.errors import AuditError, ConfigError
from panfm.privacy.accounting import Budget, NoisySteps
from panfm.signing import public_hex
from panfm.site.audit_chain import EMPTY, Head, Inspection, JsonScalar
from panfm.site.audit_log import STATE, AuditLog, LogKind, has_log, inspect_folder
from panfm.site.ledger_book import (
    COHORT_OPENED,
    RELEASED,
    RESERVED,
    VOIDED,
    Book,
    Fate,
    Purpose,
    Roll,
    about_charge,
    about_roll,
    cohorts_of,
    read_book,
)

LEDGER = LogKind(
    "ledger", "privacy ledger", "run `panfm site ledger`, which names what is wrong, and ask who changed it"
)
ROLL, LOCK = "ledger.roll", "ledger.lock"
LEDGER_ANCHORED = "ledger_anchored"
"""In the audit log."""
_ROLL_LINE_BYTES = 40
_STOP = "nothing is charged, and so nothing is trained with privacy, until a person has looked"


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
    _roll_key: bytes = field(repr=False)
    _witnesses: tuple[Head, ...] = ()

    @classmethod
    def open(cls, folder: Path, key: Ed25519PrivateKey, audit: AuditLog, witnesses: Sequence[Head] = ()) -> Ledger:
        """The ledger of a site, begun if it never had one; what a crash left of its last line is dealt with.

        Args:
            audit: the log of the same folder, in which the ledger's heads are anchored.
            witnesses: heads that others have recorded.
        Raises: AuditError when it is not as it was written, or was taken away.
        """
        log = AuditLog(folder / STATE, key, public_hex(key), LEDGER)
        ledger = cls(folder, log, audit, public_hex(key), _roll_key(key), tuple(witnesses))
        with ledger._locked():
            if not has_log(folder, LEDGER):
                ledger._begin(key)
            ledger._checked()
        return ledger

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
            return cohorts_of(self._members(book), self._hashed(subjects), book.newest_cohort)

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
            members, hashed = self._members(book), self._hashed(subjects)
            cohorts = cohorts_of(members, hashed, book.newest_cohort)
            epsilon = book.spent_after(cohorts, steps, budget.delta)
            if not epsilon <= budget.epsilon:
                return OverBudget(epsilon_after=epsilon, budget=budget)
            roll = self._enrol(book, sorted(hashed - members.keys()), cohorts[-1])
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
        Raises: ConfigError when there are no subjects, or any of them was charged before; AuditError.
        """
        with self._locked():
            book = self._checked()
            members, hashed = self._members(book), self._hashed(subjects)
            known = len(hashed & members.keys())
            if known or not hashed:
                raise ConfigError(
                    f"a new cohort needs subjects none of whom was charged before; of these {len(hashed)}, {known} were. "
                    "Take them out of the store, or stay with the cohort that there is"
                )
            cohort = book.newest_cohort + 1
            roll = self._enrol(book, sorted(hashed), cohort)
            self._append(COHORT_OPENED, {"cohort": cohort, "subjects": len(hashed), **about_roll(roll)})
            return cohort

    # ---- below: with the lock held ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the ledger; the lock ends with the process that holds it."""
        try:
            (self._folder / STATE).mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _open_private(self._folder / STATE / LOCK)
        except OSError as error:
            raise _cannot_write(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        except OSError as error:
            raise _cannot_write(error) from error
        finally:
            os.close(lock)

    def _begin(self, key: Ed25519PrivateKey) -> None:
        if self._audit.last(LEDGER_ANCHORED) is not None:
            raise AuditError(f"the audit log knows of a privacy ledger, and it is gone; restore it. Till then {_STOP}")
        AuditLog.create(self._folder, key, {}, LEDGER)

    def _checked(self) -> Book:
        """What the ledger says, after it was compared with all that vouches for it; its head is in the audit log then."""
        self._log.head()  # deals with what a crash left
        anchored = _anchored(self._audit)
        book = _read(self._folder, self._public_key, (anchored, *self._witnesses))
        _check_known(book.head, anchored)
        if book.head != anchored:  # a crash came between the two
            self._anchor(book.head)
        return book

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

    def _hashed(self, subjects: Collection[str]) -> frozenset[str]:
        return frozenset(
            hmac.digest(self._roll_key, subject.encode(errors="surrogatepass"), hashlib.sha256)[:16].hex()
            for subject in subjects
        )

    def _members(self, book: Book) -> dict[str, int]:
        """Who was ever charged, by keyed hash, and in which cohort."""
        lines = self._roll_content(book).decode("ascii").splitlines()
        return {line[7:]: int(line[:6]) for line in lines}

    def _roll_content(self, book: Book) -> bytes:
        """The part of the roll that the ledger vouches for; what is behind it was left by a crash before its charge."""
        size, path = book.roll.subjects * _ROLL_LINE_BYTES, self._folder / STATE / ROLL
        content = path.read_bytes()[:size] if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != book.roll.sha256:
            raise AuditError(f"{ROLL}, the list of the subjects charged, is not as it was written; {_STOP}")
        return content

    def _enrol(self, book: Book, hashed: Sequence[str], cohort: int) -> Roll:
        """Put subjects onto the roll, on disk; they count when the next entry vouches for them."""
        content = self._roll_content(book)
        added = "".join(f"{cohort:06d} {subject}\n" for subject in hashed).encode("ascii")
        if added:
            _write_at(self._folder / STATE / ROLL, len(content), added)
            flush(self._folder / STATE)
        return Roll(subjects=book.roll.subjects + len(hashed), sha256=hashlib.sha256(content + added).hexdigest())


def read_ledger(folder: Path, public_key: str, witnesses: Sequence[Head] = ()) -> Book:
    """What a site's ledger says, for those who only read: no key is needed and nothing is changed.

    Raises: AuditError when there is none, or it or the audit log is not as it was written.
    """
    audit = inspect_folder(folder, public_key)
    _check(audit, "audit log")
    heads = [_head_of(entry.about) for entry in audit.entries if entry.event == LEDGER_ANCHORED]
    book = _read(folder, public_key, (*heads, *witnesses))
    _check_known(book.head, heads[-1] if heads else EMPTY)
    return book


def has_ledger(folder: Path) -> bool:
    """Whether a site's folder holds a ledger, or what says that it held one."""
    return has_log(folder, LEDGER)


def _read(folder: Path, public_key: str, witnesses: Sequence[Head]) -> Book:
    found = inspect_folder(folder, public_key, witnesses, LEDGER)
    _check(found, "privacy ledger")
    return read_book(found.entries, found.head)


def _check(found: Inspection, title: str) -> None:
    if found.fault is not None:
        fault = found.fault
        raise AuditError(f"line {fault.line} of the {title} [{fault.kind}]: {fault.meaning}; {_STOP}")


def _check_known(head: Head, anchored: Head) -> None:
    """The audit log is at most one entry behind, for a crash may come between the two."""
    if head.length > anchored.length + 1:
        raise AuditError(
            f"the audit log knows {anchored.length} of the privacy ledger's {head.length} lines: it was put back to an older "
            f"copy; {_STOP}"
        )


def _anchored(audit: AuditLog) -> Head:
    """The ledger's head as the audit log knows it; of an empty ledger, when it knows none."""
    entry = audit.last(LEDGER_ANCHORED)
    return EMPTY if entry is None else _head_of(entry.about)


def _head_of(about: Mapping[str, JsonScalar]) -> Head:
    return Head(int(str(about["ledger_length"])), str(about["ledger_digest"]))


def _roll_key(key: Ed25519PrivateKey) -> bytes:
    """For the hashes of the roll only; the signing key cannot be had from it."""
    derived = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"panfm ledger roll 1")
    return derived.derive(key.private_bytes_raw())


def _open_private(path: Path) -> int:
    """A file to write, made for the folder's owner alone; also when it is root who writes, such as to open a cohort."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def _write_at(path: Path, offset: int, content: bytes) -> None:
    """Write behind what is vouched for, and cut off what a crash left there."""
    descriptor = _open_private(path)
    try:
        os.ftruncate(descriptor, offset)
        os.lseek(descriptor, offset, os.SEEK_SET)
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(error: OSError) -> AuditError:
    return AuditError(
        f"the privacy ledger cannot be read or written ({error.strerror}); make room or mend the disk: {_STOP}"
    )
