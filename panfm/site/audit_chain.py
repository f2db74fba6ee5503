"""The audit log as arithmetic: how a line is made, and what is wrong with a log that is not as it was written. No disk, no clock.

One line is one entry, as JSON in one canonical form:

    {"line":7,"previous":"<digest of line 6>","time":"...Z","event":"answer_sent","about":{...},"signature":"<hex>"}

- `previous` chains the lines: SHA-256 of the whole line before, its signature included (line 1: 64 zeros).
- `signature` is the site's, over everything before it, so a changed line is found by itself and not by its neighbours.
- The anchor, a file of its own, holds number and digest of the last line whose writing was *finished*: what an answer may
  rest on. A log with fewer whole lines than that was cut. What stands behind the anchored line is what a crash can leave:
  one whole line (it counts), or the beginning of one (it does not); anything else was not written by panfm.

So a torn tail never looks like tampering: it lies behind the anchor. And tampering never looks like a torn tail: whoever
cuts an anchored line, be it by its last byte, leaves fewer whole lines than the anchor counts. Who holds the site's key, or
kept an old copy of both files, can write another history; the heads that the coordinator records are the witness against that.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from panfm.errors import ConfigError
from panfm.signing import is_signed_by, sign

JsonScalar = str | int | float | bool | None

MAX_LINE_BYTES = 32768
MAX_WORD = 200
"""Characters of one value; a coordinator's name for a run may be of any length, and is cut here."""
_WORD = re.compile(r"[a-z][a-z0-9_]{0,39}")
_HEX = re.compile(r"[0-9a-f]{64}")
_SIGNED_LINE, _SIGNED_ANCHOR = "panfm audit line 1\n", "panfm audit anchor 1\n"
"""What is signed begins with what it is, so that no signature of the site's key can pass for another."""


@dataclass(frozen=True, slots=True)
class Head:
    """The last line of a log: how many lines there are, and its digest."""

    length: int
    digest: str

    def __str__(self) -> str:
        return f"{self.digest}:{self.length}"


EMPTY = Head(0, "0" * 64)


def head_from(text: str) -> Head:
    """The head written as DIGEST:LENGTH. Raises: ConfigError."""
    digest, _, length = text.strip().partition(":")
    if not _HEX.fullmatch(digest) or not re.fullmatch(r"0|[1-9][0-9]{0,14}", length):
        raise ConfigError(f"a head should be DIGEST:LENGTH, 64 hexadecimal digits and a number, got {text!r:.90}")
    return Head(int(length), digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line as read; its signature has been checked."""

    line: int
    previous: str
    time: str
    """UTC, ISO 8601."""
    event: str
    about: Mapping[str, JsonScalar]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """What was finished: the head, and the size of the log up to it."""

    head: Head
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The first thing that is wrong with a log."""

    line: int
    """Counted from 1; the line that is wrong, or the first that is missing."""
    kind: str
    """edited, removed, inserted, reordered, rewritten, cut, foreign_tail, anchor_missing, anchor_edited, anchor_old."""
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a look at a whole log found."""

    entries: tuple[Entry, ...]
    """The lines before the first fault."""
    head: Head
    """Of these lines."""
    unfinished_bytes: int
    """Of a last line whose writing was cut off, by a crash; it does not count, and the next entry moves it aside."""
    fault: Fault | None


# ---- making ---------------------------------------------------------------------------------------------------------


def make_line(key: Ed25519PrivateKey, head: Head, time: str, event: str, about: Mapping[str, JsonScalar]) -> bytes:
    """The line that follows a head, with its line feed; long words are cut, and numbers that are not finite spelled.

    Raises: ValueError when the event or a name is no plain word, or there are too many values.
    """
    if wrong := [word for word in (event, *about) if not _WORD.fullmatch(word)]:
        raise ValueError(f"an event and its values are named by small letters, digits and _, got {wrong[0]!r:.60}")
    said = {name: _clipped(about[name]) for name in sorted(about)}
    values = {"line": head.length + 1, "previous": head.digest, "time": time, "event": event, "about": said}
    line = _signed(key, _SIGNED_LINE, values)
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"a line holds at most {MAX_LINE_BYTES} bytes, got {len(line)} for {len(about)} values")
    return line


def digest_of(line: bytes) -> str:
    """SHA-256 (hex) of a line, with or without its line feed."""
    return hashlib.sha256(line.removesuffix(b"\n")).hexdigest()


def after(anchor: Anchor, line: bytes) -> Anchor:
    """The anchor once a whole line has been added."""
    return Anchor(
        head=Head(anchor.head.length + 1, digest_of(line)),
        size_bytes=anchor.size_bytes + len(line),
    )


def anchor_bytes(key: Ed25519PrivateKey, anchor: Anchor) -> bytes:
    """The content of the anchor's file."""
    values = {"length": anchor.head.length, "digest": anchor.head.digest, "size_bytes": anchor.size_bytes}
    return _signed(key, _SIGNED_ANCHOR, values)


def _signed(key: Ed25519PrivateKey, purpose: str, values: Mapping[str, object]) -> bytes:
    body = _json(values)
    return f'{body[:-1]},"signature":"{sign(key, _to_sign(purpose, body))}"}}\n'.encode("ascii")


def _json(values: object) -> str:
    """The one form of a line."""
    return json.dumps(values, separators=(",", ":"), allow_nan=False)


def _to_sign(purpose: str, body: str) -> str:
    return hashlib.sha256((purpose + body).encode("ascii")).hexdigest()


def _clipped(value: JsonScalar) -> JsonScalar:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if not isinstance(value, str) or len(value) <= MAX_WORD else f"{value[: MAX_WORD - 1]}…"


# ---- reading --------------------------------------------------------------------------------------------------------


def read_line(line: bytes, public_key: str) -> Entry | None:
    """The entry of one line without its line feed; None when it is not, to the byte, what the holder of the key wrote."""
    values = _authentic(line, _SIGNED_LINE, public_key)
    match values:
        case {
            "line": int(number),
            "previous": str(previous),
            "time": str(time),
            "event": str(event),
            "about": dict(about),
        }:
            return Entry(line=number, previous=previous, time=time, event=event, about=about)
    return None


def read_anchor(content: bytes, public_key: str) -> Anchor | None:
    """The anchor in its file's content; None when it is not what the holder of the key wrote."""
    values = _authentic(content[:-1], _SIGNED_ANCHOR, public_key) if content.endswith(b"\n") else None
    match values:
        case {"length": int(length), "digest": str(digest), "size_bytes": int(size_bytes)}:
            return Anchor(head=Head(length, digest), size_bytes=size_bytes)
    return None


def _authentic(line: bytes, purpose: str, public_key: str) -> dict[str, Any] | None:
    """The values of a line in its one form with a signature in its one form, by the key; the disk may hold anything."""
    body, _, signature = line.removesuffix(b'"}').rpartition(b',"signature":"')
    if len(line) > MAX_LINE_BYTES or not re.fullmatch(rb"[0-9a-f]{128}", signature) or not line.endswith(b'"}'):
        return None
    try:
        text = body.decode("ascii") + "}"
        values = json.loads(text)
        whole = _json(values) == text
    except (ValueError, RecursionError):
        return None
    if not whole or not isinstance(values, dict):
        return None
    return values if is_signed_by(public_key, _to_sign(purpose, text), signature.decode()) else None


def may_be_torn(rest: bytes, head: Head) -> bool:
    """Whether bytes without a line feed are what a crash leaves of the line that follows a head.

    That is its beginning, up to any byte; a file system that had grown the file but not yet written it leaves zeros.
    """
    written = rest.rstrip(b"\0")
    opening = f'{{"line":{head.length + 1},"previous":"{head.digest}",'.encode()
    compared = min(len(written), len(opening))
    return b"\n" not in rest and len(rest) <= MAX_LINE_BYTES and written[:compared] == opening[:compared]


# ---- inspecting -----------------------------------------------------------------------------------------------------


def inspect_log(
    content: bytes, anchor_content: bytes | None, public_key: str, witnesses: Sequence[Head] = ()
) -> Inspection:
    """Look at a whole log and name the first thing that is wrong with it.

    Args:
        anchor_content: of the anchor's file; None where there is none.
        witnesses: heads that others have recorded.
    """
    *lines, rest = content.split(b"\n")
    entries = [read_line(line, public_key) for line in lines]
    anchor = None if anchor_content is None else read_anchor(anchor_content, public_key)
    fault, good = _first_broken(entries, lines, anchored=len(lines) if anchor is None else anchor.head.length)
    digests = [digest_of(line) for line in lines[:good]]
    head = Head(good, digests[-1]) if digests else EMPTY
    if fault is None and anchor is None:
        fault = _no_anchor(good, is_missing=anchor_content is None)
    if fault is None and anchor is not None:
        fault = _against_anchor(digests, anchor) or _behind_the_end(rest, head)
    if fault is None:
        fault = next((wrong for witness in witnesses if (wrong := _against_witness(digests, witness))), None)
    return Inspection(
        entries=tuple(entry for entry in entries[:good] if entry is not None),
        head=head,
        unfinished_bytes=0 if fault else len(rest),
        fault=fault,
    )


def _first_broken(entries: Sequence[Entry | None], lines: Sequence[bytes], anchored: int) -> tuple[Fault | None, int]:
    """The first line that does not continue the chain, and how many do."""
    previous = EMPTY.digest
    numbers = {entry.line for entry in entries if entry is not None}
    for number, (entry, line) in enumerate(zip(entries, lines, strict=True), start=1):
        if entry is None:
            return _unsigned(number, is_extra=number in numbers or number > anchored), number - 1
        if entry.line != number:
            return _out_of_place(number, entry.line, number in numbers), number - 1
        if entry.previous != previous:
            return Fault(line=number, kind="rewritten", meaning=_REWRITTEN), number - 1
        previous = digest_of(line)
    return None, len(lines)


_REWRITTEN = (
    "it is signed by the site's key, but continues another line than the one before it: the log was put back to an older "
    "copy and continued, or written anew with the site's key; ask who could use the key"
)


def _unsigned(number: int, *, is_extra: bool) -> Fault:
    if is_extra:
        return Fault(line=number, kind="inserted", meaning="it does not bear the site's signature: it was put in")
    meaning = "it is not what the site wrote: one or more of its bytes were changed, or it was replaced"
    return Fault(line=number, kind="edited", meaning=meaning)


def _out_of_place(number: int, found: int, stands_elsewhere: bool) -> Fault:
    if found < number:
        meaning = f"line {found} stands here a second time: it was copied in"
        return Fault(line=number, kind="inserted", meaning=meaning)
    if stands_elsewhere:
        meaning = f"line {found} stands here and line {number} comes later: lines were moved"
        return Fault(line=number, kind="reordered", meaning=meaning)
    missing = f"line {number} is" if found == number + 1 else f"lines {number} to {found - 1} are"
    return Fault(line=number, kind="removed", meaning=f"{missing} missing, line {found} follows: taken out")


def _no_anchor(length: int, *, is_missing: bool) -> Fault:
    if is_missing:
        meaning = "the file with the anchored head is missing, so that a cut end could not be told: it was taken away"
        return Fault(line=length, kind="anchor_missing", meaning=meaning)
    meaning = "the file with the anchored head is not what the site wrote: it was changed, or is of another key"
    return Fault(line=length, kind="anchor_edited", meaning=meaning)


def _against_anchor(digests: Sequence[str], anchor: Anchor) -> Fault | None:
    if len(digests) > anchor.head.length + 1:
        meaning = f"the anchored head knows only {anchor.head.length} of {len(digests)} lines: it was put back to an older copy"
        return Fault(line=anchor.head.length + 1, kind="anchor_old", meaning=meaning)
    return _compared(digests, anchor.head, "the anchored head says")


def _against_witness(digests: Sequence[str], witness: Head) -> Fault | None:
    return _compared(digests, witness, "the witness says")


def _compared(digests: Sequence[str], known: Head, who: str) -> Fault | None:
    if len(digests) < known.length:
        meaning = f"the log ends before it, and {who} that there were {known.length} lines: its end was cut off"
        return Fault(line=len(digests) + 1, kind="cut", meaning=meaning)
    if (digests[known.length - 1] if known.length else EMPTY.digest) != known.digest:
        meaning = f"{who} that line {known.length} was another one: the log was written anew with the site's key"
        return Fault(line=known.length, kind="rewritten", meaning=meaning)
    return None


def _behind_the_end(rest: bytes, head: Head) -> Fault | None:
    if not rest or may_be_torn(rest, head):
        return None
    meaning = f"{len(rest)} bytes stand here that are not the beginning of a line of this log: they were put in"
    return Fault(line=head.length + 1, kind="foreign_tail", meaning=meaning)
