"""What a site knows of its subjects besides scans: age and sex, for the missingness table and the probes.

Numbers only leave this file. An age such as `89+` and a sex beyond M and F become unknown, for the labels are numbers that
regressions and classifiers read.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from panfm.data.index.mapped_table import PEOPLE_COLUMNS, Line, read_lines
from panfm.data.manifest import LabelTable, ScanRow
from panfm.errors import DataError

PARTICIPANTS = "participants.tsv"
LABEL_NAMES = ("age", "sex_male")

Key = tuple[str, str]
"""Person and visit, as the site names them; the visit is empty where there is none."""

_SEX = {"m": 1.0, "male": 1.0, "f": 0.0, "female": 0.0}


@dataclass(frozen=True, slots=True)
class Person:
    """One person's age in years and sex (1 male, 0 female); NaN where unknown."""

    age: float = math.nan
    sex_male: float = math.nan


def read_people(path: Path, columns: Mapping[str, str]) -> dict[Key, Person]:
    """People by the identifier that the site has for them.

    Args:
        path: BIDS' `participants.tsv`, or a table whose columns are mapped.
        columns: panfm's name -> the site's header; without a mapping the subject stands in `participant_id`, if there is one.
    Raises: DataError when the table cannot be read or contradicts itself; ConfigError when a mapped column is not there.
    """
    mapped = {name: header for name, header in columns.items() if name in ("subject", *PEOPLE_COLUMNS)}
    if "subject" not in mapped:
        mapped["subject"] = "participant_id"
    lines = read_lines(path, mapped, ("subject",))
    bare = [replace(line, cells={**line.cells, "subject": line.cell("subject").removeprefix("sub-")}) for line in lines]
    return people_in(bare, path.name)


def people_in(lines: Iterable[Line], name: str) -> dict[Key, Person]:
    """People of a table that may list one several times, for several scans, by identifier and visit.

    Raises: DataError when it says different things of one person and visit.
    """
    people: dict[Key, Person] = {}
    for line in lines:
        key = (line.cell("subject"), line.cell("visit"))
        person = Person(_age(line.cell("age")), _SEX.get(line.cell("sex").lower(), math.nan))
        known = people.setdefault(key, person)
        if not (_agree(known.age, person.age) and _agree(known.sex_male, person.sex_male)):
            raise DataError(
                f"{name} line {line.number} gives another age or sex than an earlier line of that subject and visit"
            )
        people[key] = Person(_known(known.age, person.age), _known(known.sex_male, person.sex_male))
    return people


def label_table(rows: Sequence[tuple[Key, ScanRow]], people: Mapping[Key, Person]) -> LabelTable | None:
    """Labels of every subject and visit with a scan, or None where nothing is known of anybody.

    Args:
        rows: the identifier and visit of each row as the site has them, and the row.
        people: what is known. Of a person listed without a visit the age is taken only where they have one visit, for it
            does not say of which.
    """
    keys = sorted({(row.subject, row.visit, key) for key, row in rows})
    visits = Counter(subject for subject, _ in {(subject, visit) for subject, visit, _ in keys})
    values = [_values(people, key, visits[subject]) for subject, _, key in keys]
    if not any(math.isfinite(value) for line in values for value in line):
        return None
    return LabelTable(
        names=LABEL_NAMES,
        subjects=tuple(subject for subject, _, _ in keys),
        visits=tuple(visit for _, visit, _ in keys),
        values=np.array(values, dtype=np.float64).reshape(len(keys), len(LABEL_NAMES)),
    )


def _values(people: Mapping[Key, Person], key: Key, num_visits: int) -> tuple[float, float]:
    if key in people:
        return (people[key].age, people[key].sex_male)
    person = people.get((key[0], ""), Person())
    return (person.age if num_visits == 1 else math.nan, person.sex_male)


def _known(one: float, other: float) -> float:
    return other if math.isnan(one) else one


def _age(text: str) -> float:
    return float(text) if re.fullmatch(r"\d{1,3}([.]\d+)?", text) else math.nan


def _agree(one: float, other: float) -> bool:
    return one == other or math.isnan(one) or math.isnan(other)
