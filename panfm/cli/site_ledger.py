"""`panfm site ledger`: what the site's subjects have spent, what is left, in which run; and whether the record of it is whole.

A new cohort, and a ledger that goes on under a new key, are decisions of a person, taken here.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from panfm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from panfm.privacy.accounting import Budget
    from panfm.site.ledger_book import Book, RunSpending

ledger = typer.Typer(help="Show the site's privacy ledger, open a new cohort in it, or carry it over to a new key.")

_FOLDER = typer.Option(help="The site's folder.")
_MANY_ROUNDS = 100_000


@ledger.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    folder: Annotated[Path, _FOLDER] = Path(),
    cohort: Annotated[int, typer.Option(min=0, help="Number of the cohort; 0: the newest.")] = 0,
    statement: Annotated[
        bool, typer.Option("--statement", help="Print what a coordinator plans with, as JSON, and nothing else.")
    ] = False,
    witness: Annotated[
        list[str] | None,
        typer.Option(help="A head of the ledger that the coordinator recorded, DIGEST:LENGTH. Repeatable."),
    ] = None,
) -> None:
    """Check every line, and print what is spent, what is left, and each run's part of it."""
    from panfm.site.audit_chain import head_from
    from panfm.site.identity import read_public_key
    from panfm.site.ledger import read_ledger
    from panfm.site.ledger_book import statement_of
    from panfm.site.policy_file import read_policy

    if context.invoked_subcommand is not None:
        return
    book = read_ledger(folder, read_public_key(folder), [head_from(text) for text in witness or ()])
    if cohort > book.newest_cohort:
        raise ConfigError(f"there is no cohort {cohort}; the newest is {book.newest_cohort}")
    chosen, policy = cohort or book.newest_cohort, read_policy(folder)
    budget = policy.privacy.budget
    if budget is None:
        raise ConfigError("the site's policy names no budget; set privacy.epsilon and privacy.delta")
    if statement:
        print(statement_of(book, chosen, policy.site, budget).to_json(), end="")
        return
    _say_spent(book, chosen, budget)
    _say_runs(book, chosen, budget.delta)


@ledger.command()
def open_cohort(
    folder: Annotated[Path, _FOLDER] = Path(),
    store: Annotated[Path | None, typer.Option(help="Folder of the prepared store; FOLDER/store if not given.")] = None,
) -> None:
    """Begin at zero for the subjects of the store, none of whom may have been charged before."""
    from panfm.cli.site_init import ask_passphrase
    from panfm.data.store import PreparedStore
    from panfm.site.audit_log import AuditLog
    from panfm.site.identity import SiteIdentity
    from panfm.site.ledger import Ledger

    subjects = {entry.subject for entry in PreparedStore.open(store or folder / "store").entries}
    print(_QUESTION.format(subjects=len(subjects)))
    typer.confirm("Are they other people?", abort=True)
    key = SiteIdentity.open(folder, ask_passphrase).signing_key
    number = Ledger.open(folder, key, AuditLog.open(folder, key)).open_cohort(subjects)
    print(f"cohort {number} is open, at zero; cohorts 1 to {number - 1} keep what they have spent")


_QUESTION = """The store holds {subjects} subjects. A new cohort begins with nothing spent.
That is true only for people whose scans this site never trained on with privacy, under whatever pseudonym.
The ledger compares pseudonyms; it cannot know whether they were given anew to the same people."""


@ledger.command()
def carry_over(
    earlier: Annotated[Path, typer.Option(help="Where keys/ and state/ of the earlier key were moved; only read.")],
    folder: Annotated[Path, _FOLDER] = Path(),
    public_key: Annotated[
        str, typer.Option(help="The earlier public key as noted elsewhere; EARLIER/keys/signing.pub if not given.")
    ] = "",
    key_is_lost: Annotated[
        bool,
        typer.Option("--key-is-lost", help="Go on without the earlier private key: all cohorts become one, for good."),
    ] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="Holds the earlier key's passphrase, if it is not that of the new one.")
    ] = None,
    witness: Annotated[
        list[str] | None,
        typer.Option(help="A head of the earlier ledger that the coordinator recorded, DIGEST:LENGTH. Repeatable."),
    ] = None,
) -> None:
    """Begin the ledger of a new key with all that the earlier one says, so that nobody begins at zero. Safe to run again."""
    from panfm.cli.site_init import ask_passphrase
    from panfm.site.audit_chain import head_from
    from panfm.site.audit_log import AuditLog
    from panfm.site.identity import SiteIdentity, read_public_key
    from panfm.site.ledger import Ledger, read_earlier

    earlier_key = None if key_is_lost else SiteIdentity.open(earlier, ask_passphrase, passphrase_file).signing_key
    heads = [head_from(text) for text in witness or ()]
    found = read_earlier(earlier, public_key or read_public_key(earlier), earlier_key, heads)
    key = SiteIdentity.open(folder, ask_passphrase).signing_key
    book = Ledger.carry_over(folder, key, AuditLog.open(folder, key), found).book()
    print(f"carried over {found.head.length} lines, with head {found.head}")
    print(f"{len(book.charges)} charges and {book.newest_cohort} cohort(s) stand in the new ledger; head {book.head}")


def _say_spent(book: Book, cohort: int, budget: Budget) -> None:
    from panfm.cli.tables import shown_epsilon
    from panfm.privacy.accounting import epsilon_prv
    from panfm.signing import fingerprint

    history, spent = book.history(cohort), book.spent(cohort, budget.delta)
    print(f"lines     {book.head.length}, all as the site wrote them; head {book.head}")
    if book.carried is not None:
        print(_CARRIED.format(lines=book.carried.head.length, key=fingerprint(book.carried.public_key)))
    print(f"cohort    {cohort} of {book.newest_cohort}; {book.roll.subjects} subjects are on the roll")
    print(f"budget    epsilon {budget.epsilon:g} at delta {budget.delta:g}")
    print(f"spent     {spent:.3f} by RDP, which decides; {shown_epsilon(epsilon_prv(history, budget.delta))} by PRV")
    print(f"left      {max(0.0, budget.epsilon - spent):.3f}{_like_the_last(book, cohort, budget)}")


_CARRIED = "carried   {lines} of these were written under the earlier key {key}"


def _like_the_last(book: Book, cohort: int, budget: Budget) -> str:
    """Epsilons do not add up, so what is left is told in rounds, too."""
    from panfm.privacy.planning import rounds_within

    charges = [charge for charge in book.charges if cohort in charge.cohorts]
    if not charges:
        return ""
    rounds = rounds_within(budget, charges[-1].steps, _MANY_ROUNDS, book.history(cohort))
    more = "more than " if rounds == _MANY_ROUNDS else ""
    return f": {more}{rounds} more rounds like the last"


def _say_runs(book: Book, cohort: int, delta: float) -> None:
    from rich.console import Console

    from panfm.cli.tables import numbers_table
    from panfm.site.ledger_book import by_run

    names = ("run", "answered", "unsettled", "undone", "steps", "noise", "rate", "epsilon alone (RDP)", "(PRV)")
    rows = [_row(run, delta) for run in by_run(book, cohort)]
    console = Console(highlight=False)
    console.print("", numbers_table(names, rows) if rows else "no run has been charged")
    if any(row[2] != "0" for row in rows):
        print("\nunsettled: being computed now, or lost in a crash. Both count.")


def _row(run: RunSpending, delta: float) -> tuple[str, ...]:
    from rich.markup import escape

    from panfm.cli.tables import shown_epsilon
    from panfm.privacy.accounting import epsilon_prv, epsilon_rdp
    from panfm.site.ledger_book import Fate

    name = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in run.run)
    fates = (str(run.count(fate)) for fate in (Fate.released, Fate.reserved, Fate.voided))
    return (
        escape(name),
        *fates,
        str(sum(entry.steps for entry in run.history)),
        _one([entry.noise_multiplier for entry in run.history]),
        _one([entry.sampling_rate for entry in run.history]),
        f"{epsilon_rdp(run.history, delta):.2f}",
        shown_epsilon(epsilon_prv(run.history, delta)),
    )


def _one(numbers: Sequence[float]) -> str:
    return f"{numbers[0]:g}" if len(set(numbers)) == 1 else "several" if numbers else "-"
