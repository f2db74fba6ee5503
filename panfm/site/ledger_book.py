"""The privacy ledger as arithmetic: what its entries say has been charged, to whom, and what one more release would make of it.

Entries of the ledger, each on a line of its own (`panfm.site.audit_chain`):

    cohort_opened   a cohort begins at zero; it shares no subject with those before it
    reserved        a charge: noise multiplier, sampling rate and steps, for which run and round, to which cohorts
    released        the answer of that charge may leave from here on, so the charge stays for good
    voided          nothing of that charge has left or can leave any more, so it does not count
    carried_over    the site has a new key; the lines of the ledger under the earlier one follow (`panfm.site.ledger_carried`)
    said_before     one of these lines that changes nothing here

A charge counts from the moment in which it is reserved, and only `voided` undoes it: of a process that died in between nobody
knows what it gave away. A *cohort* is a set of subjects who have been charged together. It only grows, and whoever joins it is
taken to have been in it from the start. No disk, no clock.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import Enum

from panfm.errors import AuditError, ConfigError
from panfm.privacy.accounting import Budget, NoisySteps, epsilon_rdp, merged
from panfm.privacy.statement import BudgetStatement
from panfm.site.audit_chain import Entry, Head, JsonScalar

COHORT_OPENED, RESERVED, RELEASED, VOIDED = "cohort_opened", "reserved", "released", "voided"
CARRIED_OVER, SAID_BEFORE = "carried_over", "said_before"
FIRST_COHORT = 1


class Fate(Enum):
    """What became of a charge."""

    reserved = "reserved"
    """It counts. Either it is being worked for, or the process that reserved it has died."""
    released = "released"
    """It counts, and its answer may have left."""
    voided = "voided"
    """It does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What a charge is for."""

    run: str
    round: int
    task_digest: str
    """Of the task that is answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One reservation as the ledger has it."""

    line: int
    """Its line in the ledger, which is its name."""
    time: str
    """UTC, ISO 8601."""
    purpose: Purpose
    steps: NoisySteps
    cohorts: tuple[int, ...]
    """Numbers of the cohorts that it counts for."""
    fate: Fate = Fate.reserved


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """How much of the list of subjects the ledger vouches for."""

    subjects: int = 0
    sha256: str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    """Of its lines so far; of nothing, to begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """The ledger that the site kept under an earlier key, as far as it stands in this one."""

    public_key: str
    head: Head
    roll_key: str
    """The key of the list of subjects, sealed for the site's present key; "" where it is lost: nobody on that list is known."""
    lines: int = 1
    """How many of its lines stand here; the first by the entry `carried_over` itself."""

    @property
    def is_whole(self) -> bool:
        """Whether all of them do."""
        return self.lines == self.head.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """What a ledger says."""

    head: Head
    charges: tuple[Charge, ...] = ()
    newest_cohort: int = FIRST_COHORT
    roll: Roll = Roll()
    carried: Carried | None = None

    def history(self, cohort: int) -> tuple[NoisySteps, ...]:
        """All that counts for a cohort, equal mechanisms merged."""
        return merged(
            charge.steps for charge in self.charges if cohort in charge.cohorts and charge.fate is not Fate.voided
        )

    def spent(self, cohort: int, delta: float) -> float:
        """Epsilon that a cohort has spent, by the accountant that decides."""
        return epsilon_rdp(self.history(cohort), delta)

    def spent_after(self, cohorts: Iterable[int], steps: NoisySteps, delta: float) -> float:
        """Epsilon that the worst of some cohorts would have spent after so many more steps. Nothing is changed by asking."""
        return max(epsilon_rdp([*self.history(cohort), steps], delta) for cohort in cohorts)

    def charge(self, line: int) -> Charge:
        """The charge on a line. Raises: AuditError when there is none."""
        for charge in self.charges:
            if charge.line == line:
                return charge
        raise AuditError(f"line {line} of the privacy ledger is no reservation; it was put back to an older copy")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpending:
    """What one run has charged to a cohort."""

    run: str
    charges: tuple[Charge, ...]
    """In order; those that were voided among them."""

    @property
    def history(self) -> tuple[NoisySteps, ...]:
        """What of it counts."""
        return merged(charge.steps for charge in self.charges if charge.fate is not Fate.voided)

    def count(self, fate: Fate) -> int:
        """How many of its charges came to this."""
        return sum(charge.fate is fate for charge in self.charges)


def by_run(book: Book, cohort: int) -> tuple[RunSpending, ...]:
    """The charges to a cohort, run by run, in the order in which the runs began."""
    runs: dict[str, list[Charge]] = {}
    for charge in book.charges:
        if cohort in charge.cohorts:
            runs.setdefault(charge.purpose.run, []).append(charge)
    return tuple(RunSpending(run=run, charges=tuple(charges)) for run, charges in runs.items())


def read_book(entries: Sequence[Entry], head: Head) -> Book:
    """What the entries say.

    Args:
        entries: all of a ledger, the chain of which is whole.
    Raises: AuditError when one of them has no place in a ledger.
    """
    book = Book(head=head)
    for entry in entries:
        try:
            book = _with(_one_line_on(book, entry), entry)
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise AuditError(
                f"line {entry.line} of the privacy ledger, `{entry.event}`, says nothing that a ledger says ({error!r:.80}); "
                "nothing is charged until a person has looked"
            ) from error
    return book


def about_charge(
    steps: NoisySteps, purpose: Purpose, cohorts: Sequence[int], budget: Budget, epsilon_after: float
) -> dict[str, JsonScalar]:
    """The values of an entry `reserved`. The budget and what is spent by then are there for people."""
    return {
        "run": purpose.run,
        "round": purpose.round,
        "task_digest": purpose.task_digest,
        "noise_multiplier": float(steps.noise_multiplier),
        "sampling_rate": float(steps.sampling_rate),
        "steps": steps.steps,
        "cohorts": ",".join(map(str, cohorts)),
        "epsilon_after": epsilon_after,
        "budget_epsilon": budget.epsilon,
        "budget_delta": budget.delta,
    }


def about_roll(roll: Roll) -> dict[str, JsonScalar]:
    """The values of an entry that vouch for the list of subjects."""
    return {"roll_subjects": roll.subjects, "roll_sha256": roll.sha256}


def statement_of(book: Book, cohort: int, site: str, budget: Budget) -> BudgetStatement:
    """What the site can tell those who plan a study."""
    return BudgetStatement(site=site, budget=budget, history=book.history(cohort))


def cohorts_of(members: Mapping[str, int], subjects: Set[str], newest: int) -> tuple[int, ...]:
    """The cohorts to which a release over these subjects is charged: all that any of them is in, else the newest.

    So nobody's spending is forgotten because subjects were added, removed or mixed: only a cohort that a person has opened
    begins at zero, and only for subjects none of whom was charged before.

    Args:
        members: subject -> its cohort, for all that were ever charged; under whatever names `subjects` has, too.
    """
    return tuple(sorted({members[subject] for subject in subjects if subject in members})) or (newest,)


def _with(book: Book, entry: Entry) -> Book:
    about = entry.about
    match entry.event:
        case "log_opened" if entry.line == 1:
            return book
        case "torn_tail":
            return book
        case "cohort_opened":
            return replace(book, newest_cohort=_next(book, _whole(about["cohort"])), roll=_roll(about))
        case "reserved":
            return replace(book, charges=(*book.charges, _charge(book, entry)), roll=_roll(about))
        case "released":
            return _settled(book, _whole(about["reservation"]), Fate.released)
        case "voided":
            return _settled(book, _whole(about["reservation"]), Fate.voided)
        case "carried_over":
            return replace(book, carried=_carried(book, about), roll=_roll(about))
        case "said_before" if "was_line" in about:
            return book
    raise ValueError("an event of another log")


def _one_line_on(book: Book, entry: Entry) -> Book:
    """The book with one line more of the earlier ledger. They come in order, and before all that is this ledger's own."""
    carried = book.carried
    if carried is None or entry.event == "torn_tail":
        return book
    if "was_line" not in entry.about:
        if not carried.is_whole:
            raise ValueError(f"line {carried.lines + 1} of the earlier ledger is missing")
        return book
    if carried.is_whole or _whole(entry.about["was_line"]) != carried.lines + 1:
        raise ValueError(f"a line of the earlier ledger after its line {carried.lines}")
    return replace(book, carried=replace(carried, lines=carried.lines + 1))


def _carried(book: Book, about: Mapping[str, JsonScalar]) -> Carried:
    if book != Book(head=book.head):
        raise ValueError("a ledger is carried over before anything is charged")
    return Carried(
        public_key=str(about["from_public_key"]),
        head=Head(_whole(about["from_length"]), str(about["from_digest"])),
        roll_key=str(about["roll_key"]),
    )


def _next(book: Book, cohort: int) -> int:
    if cohort != book.newest_cohort + 1:
        raise ValueError(f"cohort {cohort} after cohort {book.newest_cohort}")
    return cohort


def _charge(book: Book, entry: Entry) -> Charge:
    about = entry.about
    cohorts = tuple(int(number) for number in str(about["cohorts"]).split(","))
    if not all(FIRST_COHORT <= cohort <= book.newest_cohort for cohort in cohorts):
        raise ValueError(f"cohorts {cohorts}")
    return Charge(
        line=entry.line,
        time=str(about.get("was_time", entry.time)),
        purpose=Purpose(run=str(about["run"]), round=_whole(about["round"]), task_digest=str(about["task_digest"])),
        steps=NoisySteps(
            noise_multiplier=_number(about["noise_multiplier"]),
            sampling_rate=_number(about["sampling_rate"]),
            steps=_whole(about["steps"]),
        ),
        cohorts=cohorts,
    )


def _settled(book: Book, line: int, fate: Fate) -> Book:
    """A charge is settled once: what was released is never voided, and what was voided is never released."""
    if book.charge(line).fate is not Fate.reserved:
        raise ValueError(f"line {line} is settled")
    charges = tuple(replace(charge, fate=fate) if charge.line == line else charge for charge in book.charges)
    return replace(book, charges=charges)


def _roll(about: Mapping[str, JsonScalar]) -> Roll:
    return Roll(subjects=_whole(about["roll_subjects"]), sha256=str(about["roll_sha256"]))


def _whole(value: JsonScalar) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a whole number is missing")
    return value


def _number(value: JsonScalar) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a number is missing")
    return float(value)
