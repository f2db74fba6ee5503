"""How a privacy ledger goes on under a new signing key: every line of the earlier one, signed anew, in the same order.

It exists because a key can be lost or replaced, and what subjects have lost of their privacy cannot. The new ledger's first
entry, `carried_over`, names the earlier key and head; each line of the earlier ledger follows with its values, so that charges
of different kinds compose to the last digit as they did, and with its number, time and digest there:

    was_line, was_time, was_digest    by the digest, a head that others recorded of the earlier ledger still bears witness

From that entry on until the last of them is there, nothing can be charged. With the earlier private key the list of subjects
goes on, too, and each cohort keeps what it spent. Without it nobody on that list can be recognised: then all that was ever
charged counts for everybody, and no cohort can be opened. No disk, no clock.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from panfm.site.audit_chain import Entry, Head, JsonScalar
from panfm.site.ledger_book import (
    COHORT_OPENED,
    FIRST_COHORT,
    RELEASED,
    RESERVED,
    SAID_BEFORE,
    VOIDED,
    Roll,
    about_roll,
)

Line = tuple[str, dict[str, JsonScalar]]
"""An event and its values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierLedger:
    """The ledger that the site kept under an earlier key; it was found whole."""

    public_key: str
    entries: tuple[Entry, ...]
    head: Head
    roll: Roll
    roll_content: bytes = field(repr=False)
    roll_key: bytes | None = field(repr=False)
    """None: the earlier private key is lost, so that the roll cannot be read."""

    def digest(self, line: int) -> str:
        """Of one of its lines."""
        return self.head.digest if line == self.head.length else self.entries[line].previous


def carried_over(earlier: EarlierLedger, sealed_roll_key: str) -> dict[str, JsonScalar]:
    """The values of the entry `carried_over`, which stands for the earlier ledger's own first line."""
    return {
        "from_public_key": earlier.public_key,
        "from_length": earlier.head.length,
        "from_digest": earlier.head.digest,
        "roll_key": sealed_roll_key,
        **about_roll(earlier.roll if sealed_roll_key else Roll()),
        **_was(earlier.entries[0], earlier.digest(1)),
    }


def copied(earlier: EarlierLedger, entry: Entry, numbers: Mapping[int, int]) -> Line:
    """One of its other lines as it stands in the new ledger.

    Args:
        numbers: line there -> line here, of those before it.
    """
    is_readable = earlier.roll_key is not None
    about = {**entry.about, **_was(entry, earlier.digest(entry.line))}
    if entry.event in (RELEASED, VOIDED):
        return entry.event, {**about, "reservation": numbers[int(str(about["reservation"]))]}
    if entry.event in (RESERVED, COHORT_OPENED) and is_readable:
        return entry.event, about
    if entry.event == RESERVED:
        return entry.event, {**about, "cohorts": str(FIRST_COHORT), **about_roll(Roll())}
    return SAID_BEFORE, {**about, "was_event": entry.event}


def new_numbers(entries: Iterable[Entry]) -> dict[int, int]:
    """Line in the earlier ledger -> line here, of all that were carried over so far."""
    return {int(str(entry.about["was_line"])): entry.line for entry in entries if "was_line" in entry.about}


def heads_before(entries: Iterable[Entry]) -> frozenset[Head]:
    """The heads that the earlier ledger had, as far as it was carried over."""
    carried = (entry.about for entry in entries if "was_line" in entry.about)
    return frozenset(Head(int(str(about["was_line"])), str(about["was_digest"])) for about in carried)


def _was(entry: Entry, digest: str) -> dict[str, JsonScalar]:
    return {"was_line": entry.line, "was_time": entry.about.get("was_time", entry.time), "was_digest": digest}
