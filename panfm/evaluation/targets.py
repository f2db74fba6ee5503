"""What can be asked of a cohort: its label columns, each alone, and the means over disease categories and single diseases.

A column counts as a class where it holds 0 and 1 alone, else as a number. What too few people have is not asked: a score
over a handful of cases says more of those people than of the model.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from panfm.evaluation.probes import Floats

FEWEST_CASES = 5
"""Subjects of each class, or with a known number, that a column needs on each side."""

GROUPS = {"cat_": "disease categories", "dx_": "single diseases"}
"""Beginning of a column's name -> what a macro average over such columns is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One label, or the plain mean of the scores of several."""

    name: str
    columns: tuple[str, ...]
    is_class: bool

    @property
    def is_macro(self) -> bool:
        """Whether it is a mean over several labels."""
        return self.columns != (self.name,)


def is_class(values: Floats) -> bool:
    """Whether the known values are 0 and 1 alone."""
    return set(np.unique(values[np.isfinite(values)])) <= {0.0, 1.0}


def is_askable(values: Floats) -> bool:
    """Enough cases of each class, or enough different numbers."""
    known = values[np.isfinite(values)]
    if is_class(values):
        return bool(min((known == 0).sum(), (known == 1).sum()) >= FEWEST_CASES)
    return len(known) >= FEWEST_CASES and len(np.unique(known)) > 1


def targets_of(fit: Mapping[str, Floats], test: Mapping[str, Floats]) -> tuple[Target, ...]:
    """The macro averages first, then each column that can be asked on both sides, in the table's order."""
    columns = [column for column in test if column in fit and is_askable(fit[column]) and is_askable(test[column])]
    classes = [column for column in columns if is_class(fit[column]) and is_class(test[column])]
    macros = []
    for beginning, name in GROUPS.items():
        own = tuple(column for column in classes if column.startswith(beginning))
        if own:
            macros.append(Target(name=f"{len(own)} {name}", columns=own, is_class=True))
    singles = [Target(name=column, columns=(column,), is_class=column in classes) for column in columns]
    return (*macros, *singles)


def headline(targets: Sequence[Target]) -> tuple[Target, ...]:
    """What sweeps and contributions are computed for: the macro averages, or every class where there is no such group."""
    macros = tuple(target for target in targets if target.is_macro)
    return macros or tuple(target for target in targets if target.is_class)


def not_asked(fit: Mapping[str, Floats], test: Mapping[str, Floats]) -> tuple[str, ...]:
    """Columns that too few subjects have, or that one side lacks."""
    asked = {column for target in targets_of(fit, test) for column in target.columns}
    return tuple(sorted({*fit, *test} - asked))
