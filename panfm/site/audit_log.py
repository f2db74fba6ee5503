"""The audit log of one hospital: what was asked of it, by whom, what it answered, and the digest and size of all that left.

It exists so that the hospital can prove, to itself and to others, what its computer did in a study. An entry is on disk
before what it tells of leaves the site; where it cannot be written, nothing leaves. How lines are chained, signed and
anchored, and what a crash may leave, is in `panfm.site.audit_chain`.

    state/audit.log       one line an entry; only ever appended to
    state/audit.anchor    number, digest and offset of the last finished line; replaced after each append
    state/audit.torn-N    what a crash left of line N, moved aside; line N itself, a `torn_tail`, says so

The privacy ledger (`panfm.site.ledger`) is kept in the same way, in files of its own name: a `LogKind` says which.

No entry holds a pseudonym or a path. Several processes may append: each takes the lock on the log first (flock, which
ends with the process that holds it).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from panfm.durable import flush
from panfm.errors import AuditError
from panfm.signing import public_hex
from panfm.site.audit_chain import (
    EMPTY,
    MAX_LINE_BYTES,
    Anchor,
    Entry,
    Head,
    Inspection,
    JsonScalar,
    after,
    anchor_bytes,
    digest_of,
    inspect_log,
    make_line,
    may_be_torn,
    read_anchor,
    read_line,
)

STATE, LOG, ANCHOR = "state", "audit.log", "audit.anchor"
TORN_TAIL = "torn_tail"


@dataclass(frozen=True, slots=True)
class LogKind:
    """Which of a site's logs."""

    stem: str
    """Of its files' names."""
    title: str
    """How people call it."""
    look: str
    """What a person does when it is not as it was written."""


AUDIT = LogKind(
    "audit", "audit log", "run `panfm site audit verify`, which names the first wrong line, and ask who changed it"
)


@dataclass(frozen=True, slots=True)
class AuditLog:
    """The log below a site's folder, as one who may write it."""

    _state: Path
    _key: Ed25519PrivateKey = field(repr=False)
    _public_key: str
    _kind: LogKind = AUDIT

    @classmethod
    def create(
        cls, folder: Path, key: Ed25519PrivateKey, about: Mapping[str, JsonScalar], kind: LogKind = AUDIT
    ) -> AuditLog:
        """Begin a log of a new site with the entry `log_opened`.

        Raises: AuditError when the folder holds a log, or the anchor of one, or it cannot be written.
        """
        log = cls(folder / STATE, key, public_hex(key), kind)
        try:
            log._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            if has_log(folder, kind):
                raise AuditError(f"{log._state} holds a log of this kind already: {kind.title}; a log is begun once")
            log._replace_anchor(log._draft_anchor(Anchor(head=EMPTY, size_bytes=0)))
            log._write_private(log._log, b"")
            flush(log._state)
        except OSError as error:
            raise log._cannot_write(error) from error
        log.append("log_opened", {**about, "public_key": log._public_key})
        return log

    @classmethod
    def open(cls, folder: Path, key: Ed25519PrivateKey, kind: LogKind = AUDIT) -> AuditLog:
        """The log of a site, with what a crash left of its last line dealt with.

        Raises: AuditError when there is none, its end was cut or changed, or it is another key's.
        """
        log = cls(folder / STATE, key, public_hex(key), kind)
        log.head()
        return log

    def append(self, event: str, about: Mapping[str, JsonScalar]) -> str:
        """Add one entry; when this returns it is on disk and anchored.

        Args:
            about: short values; never a pseudonym, a path or a value of a scan.
        Returns: the digest of the new head.
        Raises: AuditError when it cannot be written, in which case nothing of it counts; ValueError for what is no entry.
        """
        with self._locked() as log:
            return self._write(log, self._recovered(log), event, about).head.digest

    def head(self) -> Head:
        """Number and digest of the last line. Raises: AuditError, as `open`."""
        with self._locked() as log:
            return self._recovered(log).head

    def last(self, event: str) -> Entry | None:
        """The newest entry of an event; None when there is none.

        Raises: AuditError, as `open`, or when that entry is not what the site wrote. The lines before it are not looked at.
        """
        with self._locked() as log:
            content = os.pread(log, self._recovered(log).size_bytes, 0)
        mark = f'"event":"{event}",'.encode("ascii")  # within a value its quotes would have backslashes before them
        line = next((line for line in reversed(content.splitlines()) if mark in line), None)
        if line is None:
            return None
        entry = read_line(line, self._public_key)
        if entry is None or entry.event != event:
            raise self._wrong(f"was changed where it says `{event}` last")
        return entry

    @property
    def _log(self) -> Path:
        return self._state / f"{self._kind.stem}.log"

    @property
    def _anchor(self) -> Path:
        return self._state / f"{self._kind.stem}.anchor"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The log's descriptor, alone with it."""
        try:
            log = os.open(self._log, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError as error:
            raise AuditError(f"there is no {self._log}; run `panfm site init`, or restore it") from error
        except OSError as error:
            raise self._cannot_write(error) from error
        try:
            fcntl.flock(log, fcntl.LOCK_EX)
            yield log
        except OSError as error:
            raise self._cannot_write(error) from error
        finally:
            os.close(log)

    def _write(self, log: int, anchor: Anchor, event: str, about: Mapping[str, JsonScalar]) -> Anchor:
        """Line, then anchor. What fails before the anchor has moved is taken back, so that it does not count."""
        line = make_line(self._key, anchor.head, _now(), event, about)
        new = after(anchor, line)
        draft = self._draft_anchor(new)  # first: on a full disk it fails before anything has happened
        try:
            _write_all(log, line)
            os.fsync(log)
            draft.replace(self._anchor)
        except OSError:
            with contextlib.suppress(OSError):  # if even this fails, the next who writes finds what a crash leaves
                os.ftruncate(log, anchor.size_bytes)
                os.fsync(log)
            raise
        flush(self._state)
        return new

    def _recovered(self, log: int) -> Anchor:
        """The anchor, after what a crash left behind it has been dealt with."""
        anchor = self._read_anchor()
        rest = self._behind(log, anchor)
        if rest.endswith(b"\n"):
            anchor, rest = self._taken_in(log, anchor, rest), b""
        if rest:
            self._move_aside(log, anchor, rest)
        aside = self._aside(anchor)
        if not aside.exists():
            return anchor
        content = aside.read_bytes()  # either from just now, or from before a crash between the move and the entry
        about: dict[str, JsonScalar] = {"size_bytes": len(content), "digest": hashlib.sha256(content).hexdigest()}
        return self._write(log, anchor, TORN_TAIL, about)

    def _read_anchor(self) -> Anchor:
        try:
            content = self._anchor.read_bytes()
        except FileNotFoundError as error:
            raise self._wrong(f"has lost its {self._anchor.name}") from error
        anchor = read_anchor(content, self._public_key)
        if anchor is None:
            raise self._wrong(
                f"has an anchor, {self._anchor.name}, that was changed, or is of another key than the site's"
            )
        return anchor

    def _behind(self, log: int, anchor: Anchor) -> bytes:
        """What stands behind the anchored line, which must be there."""
        size = os.fstat(log).st_size
        if size < anchor.size_bytes:
            raise self._wrong(f"was cut: it had {anchor.head.length} lines")
        if anchor.size_bytes:
            start = max(0, anchor.size_bytes - MAX_LINE_BYTES)
            block = os.pread(log, anchor.size_bytes - start, start)
            if not block.endswith(b"\n") or digest_of(block[:-1].rpartition(b"\n")[2]) != anchor.head.digest:
                raise self._wrong(f"was changed in line {anchor.head.length}")
        if size - anchor.size_bytes > MAX_LINE_BYTES:
            raise self._foreign(anchor)
        return os.pread(log, size - anchor.size_bytes, anchor.size_bytes)

    def _taken_in(self, log: int, anchor: Anchor, line: bytes) -> Anchor:
        """A crash came between a line and its anchor: the line is whole, so it counts."""
        entry = read_line(line.removesuffix(b"\n"), self._public_key)
        if entry is None or (entry.line, entry.previous) != (anchor.head.length + 1, anchor.head.digest):
            raise self._foreign(anchor)
        os.fsync(log)
        new = after(anchor, line)
        self._replace_anchor(self._draft_anchor(new))
        return new

    def _move_aside(self, log: int, anchor: Anchor, rest: bytes) -> None:
        """A crash came within a line: its beginning is kept in a file of its own, and the log ends with a whole line."""
        if not may_be_torn(rest, anchor.head):
            raise self._foreign(anchor)
        self._write_private(self._aside(anchor), rest)
        flush(self._state)
        os.ftruncate(log, anchor.size_bytes)
        os.fsync(log)

    def _aside(self, anchor: Anchor) -> Path:
        return self._state / f"{self._kind.stem}.torn-{anchor.head.length + 1}"

    def _foreign(self, anchor: Anchor) -> AuditError:
        return self._wrong(f"has something behind line {anchor.head.length} that was not written by panfm")

    def _wrong(self, what: str) -> AuditError:
        return AuditError(f"the {self._kind.title} {what}; {self._kind.look}")

    def _cannot_write(self, error: OSError) -> AuditError:
        return AuditError(
            f"the {self._kind.title} cannot be written ({error.strerror}), so nothing leaves the site; "
            "make room or mend the disk"
        )

    def _draft_anchor(self, anchor: Anchor) -> Path:
        """A new anchor on disk, not yet in its place."""
        draft = self._anchor.with_name(f"{self._anchor.name}.draft")
        self._write_private(draft, anchor_bytes(self._key, anchor))
        return draft

    def _write_private(self, path: Path, content: bytes) -> None:
        """A file for the folder's owner alone, on disk; also when it is root who appends, such as with an approval."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            if os.geteuid() == 0:
                owner = self._state.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            _write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _replace_anchor(self, draft: Path) -> None:
        draft.replace(self._anchor)
        flush(self._state)


def has_log(folder: Path, kind: LogKind = AUDIT) -> bool:
    """Whether a site's folder holds a log with entries, or what says that it held one."""
    log, anchor = folder / STATE / f"{kind.stem}.log", folder / STATE / f"{kind.stem}.anchor"
    begun = log.exists() and log.stat().st_size > 0
    return begun or (anchor.exists() and b'"length":0,' not in anchor.read_bytes())


def inspect_folder(folder: Path, public_key: str, witnesses: Sequence[Head] = (), kind: LogKind = AUDIT) -> Inspection:
    """Look at a site's whole log, without changing anything.

    Raises: AuditError when there is none or it cannot be read.
    """
    place, anchored = folder / STATE / f"{kind.stem}.log", folder / STATE / f"{kind.stem}.anchor"
    try:
        with place.open("rb") as log:
            fcntl.flock(log, fcntl.LOCK_SH)  # so that log and anchor are of one moment
            content = log.read()
            anchor = anchored.read_bytes() if anchored.exists() else None
    except FileNotFoundError as error:
        lost = " though there was one: its anchor is still there" if anchored.exists() else ""
        raise AuditError(f"there is no {place}{lost}; restore it from the site's backup") from error
    except OSError as error:
        raise AuditError(f"{place} cannot be read ({error.strerror}); it belongs to the site's own user") from error
    return inspect_log(content, anchor, public_key, witnesses)


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
