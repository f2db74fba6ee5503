"""What a site can tell of its budget to those who plan a study: how much it allows, and what was charged so far.

Noise, rates and numbers of steps are public constants of the recipes that it took part in; no run, no date and no count of
subjects is in it. It is a claim: whoever needs proof asks for the head of the ledger, and for the ledger.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from panfm.errors import ConfigError
from panfm.privacy.accounting import Budget, NoisySteps


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStatement:
    """A site's budget, and the merged history of what counts against it."""

    site: str
    budget: Budget
    history: tuple[NoisySteps, ...] = ()

    def to_json(self) -> str:
        """The statement as text."""
        return json.dumps(asdict(self), indent=1) + "\n"


def statement_from(text: str) -> BudgetStatement:
    """The statement that a text holds. Raises: ConfigError when it holds none."""
    try:
        values = json.loads(text)
        return BudgetStatement(
            site=str(values["site"]),
            budget=Budget(epsilon=float(values["budget"]["epsilon"]), delta=float(values["budget"]["delta"])),
            history=tuple(
                NoisySteps(
                    noise_multiplier=float(entry["noise_multiplier"]),
                    sampling_rate=float(entry["sampling_rate"]),
                    steps=int(entry["steps"]),
                )
                for entry in values["history"]
            ),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"a budget statement should be as `panfm site ledger --statement` prints it, and this is not ({error!r:.120})"
        ) from error


def read_statement(path: Path) -> BudgetStatement:
    """The statement in a file. Raises: ConfigError."""
    try:
        return statement_from(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}); ask the site for its statement again"
        ) from error
