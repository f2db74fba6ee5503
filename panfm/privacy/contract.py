"""What every trainer with privacy must hold to, as questions that a wrong one answers wrongly.

The guarantee rests on a handful of facts: a subject is one row; a row depends on no other subject; what is summed is clipped;
what is released is that sum with enough noise on every coordinate; nothing else of the subjects lives on or leaves. Libraries
check the shapes of these at best, and break them in silence. So each is asked of the trainer as it runs in production, on
made-up subjects whose organ sets are ragged, with six kinds of replacement: near copies of another subject show what pushes
neighbours apart, outliers show statistics, and random subjects alone show neither.

What it cannot show: a defect that only certain data brings out, and that a noise generator is a good one. The shapes of two
neighbouring batches are the same here, so nothing is said of digits that depend on the number of subjects in a batch.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from panfm.randomness import stream

SILENT = 1e-12
"""A noise multiplier by which a release is its clipped sum to all digits that count."""
_ROUNDING = 2e-5
"""Of a norm: how far two ways of computing the same gradient may lie apart in fp32."""
_SIGMA = 2.0
"""Noise multiplier under which noise is asked about."""
_REPEATS = 8
_TOLD = 3
"""Answers to one question, at most: nobody reads more of them, and a wrong trainer need not be asked further."""
_BANDS = 5.0
"""Standard deviations within which an estimate must lie: a correct trainer fails once in a million questions."""


@dataclass(frozen=True, slots=True)
class MadeUp:
    """A subject that never lived."""

    name: str
    """By it the trainer draws what it draws for this subject, whoever else is there."""
    scans: Mapping[str, Tensor]
    """organ -> [X, Y, Z]; none for a null subject."""


Cohort = Sequence[MadeUp]
Named = Mapping[str, Tensor]


class Trainer(Protocol):
    """A trainer before its first step, as it runs in production."""

    @property
    def denominator(self) -> float:
        """The public constant by which a noised sum is divided."""

    @property
    def trained(self) -> Sequence[str]:
        """Names of all parameters that the declared organs train."""

    def subject_gradients(self, cohort: Cohort) -> Named:
        """Each subject's gradient before it is clipped, [B, ...]."""

    def plain_gradient(self, cohort: Cohort) -> Named:
        """The gradient of the sum of the subjects' losses, by autograd and nothing else."""

    def release(self, cohort: Cohort) -> Named:
        """What a step that sampled these subjects may use of them."""

    def finish(self, released: Named) -> None:
        """Go one step along what was released."""

    def state(self) -> Named:
        """Everything that lasts beyond a step."""

    def metrics(self) -> Mapping[str, float]:
        """What would be told of the steps taken so far."""


Make = Callable[[float, float], Trainer]
"""(clip norm, noise multiplier) -> a fresh trainer; always the same parameters."""


@dataclass(frozen=True, slots=True)
class Breach:
    """One question that was answered wrongly."""

    question: str
    what: str


class Replacement(Enum):
    """Who takes a subject's place."""

    random = "random"
    near_copy = "near copy of another subject"
    outlier = "outlier"
    one_organ = "one organ"
    all_organs = "all organs"
    null = "null"


QUESTIONS = (
    "unit",
    "norm",
    "path",
    "neighbour",
    "sensitivity",
    "gradient",
    "row",
    "state",
    "metrics",
    "noise",
    "freshness",
)


def breaches(
    make: Make, shapes: Mapping[str, Sequence[int]], questions: Collection[str] = QUESTIONS
) -> tuple[Breach, ...]:
    """The questions of the contract that a trainer answers wrongly; none: it holds.

    Args:
        shapes: the volume of each organ that the site declares.
        questions: those that are asked; a trainer is trusted with all of them only.
    """
    case = _Case(make, shapes)
    known: dict[str, Callable[[], Iterator[str]]] = {
        "unit": case.unit,
        "norm": case.norm,
        "path": case.path,
        "neighbour": case.neighbour,
        "sensitivity": case.sensitivity,
        "gradient": case.gradient,
        "row": case.row,
        "state": case.state,
        "metrics": case.metrics,
        "noise": case.noise,
        "freshness": case.freshness,
    }
    return tuple(Breach(name, what) for name in QUESTIONS if name in questions for what in _answers(known[name]))


def _answers(question: Callable[[], Iterator[str]]) -> list[str]:
    """A trainer that stops on a question has answered it wrongly, too."""
    try:
        return list(islice(question(), _TOLD))
    except ValueError as error:
        return [f"it stops: {error}"]


def made_up_cohort(shapes: Mapping[str, Sequence[int]]) -> list[MadeUp]:
    """Subjects with all organs, with each organ alone, and with all but one."""
    organs = list(shapes)
    sets = [organs, *([organ] for organ in organs), *([o for o in organs if o != organ] for organ in organs[:2])]
    return [
        MadeUp(f"s{number}", {organ: _volume(shapes, organ, number) for organ in held})
        for number, held in enumerate(held for held in sets if held)
    ]


def replaced(cohort: Cohort, place: int, kind: Replacement, shapes: Mapping[str, Sequence[int]]) -> list[MadeUp]:
    """The cohort with another subject under the same name in one place."""
    subject, other = cohort[place], cohort[place - 1]
    strange = {organ: _volume(shapes, organ, 1000 + place) for organ in shapes}
    first = next(iter(shapes))
    scans: dict[Replacement, Mapping[str, Tensor]] = {
        Replacement.random: {organ: strange[organ] for organ in subject.scans},
        Replacement.near_copy: {organ: scan + 1e-3 * strange[organ] for organ, scan in other.scans.items()},
        Replacement.outlier: {organ: 1e3 * strange[organ] for organ in subject.scans},
        Replacement.one_organ: {first: strange[first]},
        Replacement.all_organs: strange,
        Replacement.null: {},
    }
    return [MadeUp(subject.name, scans[kind]) if number == place else who for number, who in enumerate(cohort)]


def _volume(shapes: Mapping[str, Sequence[int]], organ: str, who: int) -> Tensor:
    voxels = stream(0, "made up", organ, who).standard_normal(tuple(shapes[organ]), dtype=np.float32)
    return torch.from_numpy(voxels)


class _Case:
    """One trainer under question."""

    def __init__(self, make: Make, shapes: Mapping[str, Sequence[int]]) -> None:
        self._make, self._shapes = make, shapes
        self._cohort = made_up_cohort(shapes)
        # One trainer answers all that changes nothing in it; where something does, the answers do not fit together.
        self._asked = make(1.0, 1.0)
        self._silent: dict[float, Trainer] = {}
        self._rows = self._asked.subject_gradients(self._cohort)
        norms = _norms(self._rows)
        # Each subject is clipped, and none is.
        positive = [norm for norm in norms if norm > 0]
        self._tight, self._loose = 0.5 * min(positive), 10.0 * max(positive)
        last = list(shapes)[-1]
        self._sums: dict[tuple[str, float], Named] = {}
        self._steps: dict[str, Trainer] = {}
        self._noisy: Trainer | None = None
        self._lacking = [MadeUp(s.name, {o: v for o, v in s.scans.items() if o != last}) for s in self._cohort]

    def unit(self) -> Iterator[str]:
        """Rows are subjects, of exactly the trained parameters."""
        if set(self._rows) != set(self._asked.trained):
            yield "the gradients are not those of the trained parameters"
        for name, rows in self._rows.items():
            if len(rows) != len(self._cohort):
                yield f"{name} has {len(rows)} rows for {len(self._cohort)} subjects"

    def norm(self) -> Iterator[str]:
        """Nobody adds more than the clip norm."""
        outlier = replaced(self._cohort, 0, Replacement.outlier, self._shapes)[0]
        for subject in (*self._cohort, outlier):
            norm = _norm(self._sum([subject], self._tight))
            if norm > self._tight * (1 + _ROUNDING):
                yield f"{subject.name} alone adds {norm / self._tight:.4f} clip norms"

    def path(self) -> Iterator[str]:
        """What production sums is the sum of the clipped rows."""
        for clip in (self._tight, self._loose):
            away = _away(self._sum_of_cohort(clip), _clipped_sum(self._rows, clip))
            if away > _ROUNDING * clip * len(self._cohort):
                yield f"the production sum is {away / clip:.4f} clip norms away from that of the clipped rows"

    def neighbour(self) -> Iterator[str]:
        """Nobody else's part moves when a subject is replaced, before the clip and after it."""
        for place, kind, neighbours in self._neighbours():
            rows = self._asked.subject_gradients(neighbours)
            others = [row for row in range(len(self._cohort)) if row != place]
            moved = [name for name, own in self._rows.items() if not torch.equal(own[others], rows[name][others])]
            if moved:
                yield f"{kind.value} in place {place}: rows of others moved in {moved[0]}"
            for clip in (self._tight, self._loose):
                sums = self._difference_for(kind, neighbours, clip)
                parts = [_clipped_sum({n: r[[place]] for n, r in of.items()}, clip) for of in (self._rows, rows)]
                largest = max(_norm(part) for part in parts)
                if _away(sums, _difference(*parts)) > _ROUNDING * max(clip, largest) * len(self._cohort):
                    yield f"{kind.value} in place {place}: the sum moved by more than that subject's part"

    def sensitivity(self) -> Iterator[str]:
        """The sum moves by at most the clip norm for a null subject, and twice that for another one."""
        for place, kind, neighbours in self._neighbours():
            moved = _norm(self._difference_for(kind, neighbours, self._tight))
            bound = self._tight * (1 if kind is Replacement.null else 2)
            if moved > bound * (1 + 10 * _ROUNDING):
                yield f"{kind.value} in place {place}: the sum moved by {moved / self._tight:.4f} clip norms"

    def gradient(self) -> Iterator[str]:
        """The rows add up to what autograd makes of the whole."""
        plain = self._asked.plain_gradient(self._cohort)
        summed = {name: rows.double().sum(0) for name, rows in self._rows.items()}
        if (away := _away(summed, plain)) > _ROUNDING * sum(_norms(self._rows)):
            yield f"the rows' sum is {away:.3g} away from the gradient of norm {_norm(plain):.3g}"

    def row(self) -> Iterator[str]:
        """A row is that subject's own gradient: no sum can tell when rows are exchanged."""
        for place, subject in enumerate(self._cohort):
            alone = self._asked.subject_gradients([subject])
            own = {name: rows[place : place + 1] for name, rows in self._rows.items()}
            if _away(own, alone) > _ROUNDING * max(_norms(self._rows)):
                yield f"the row of {subject.name} is not its gradient when it is alone"

    def state(self) -> Iterator[str]:
        """Nothing lives on but what was released: not by `state`, and not by what the next step does."""
        one = self._after_a_step("", self._cohort)
        next_rows = one.subject_gradients(self._lacking)
        for place, kind, neighbours in self._neighbours():
            other = self._after_a_step(kind.value, neighbours)
            mine, theirs = one.state(), other.state()
            kept = [name for name in mine if name not in theirs or not torch.equal(mine[name], theirs[name])]
            if kept or mine.keys() != theirs.keys():
                yield f"{kind.value} in place {place} lives on in {(kept or ['names'])[0]}"
            if not _same(next_rows, other.subject_gradients(self._lacking)):
                yield f"{kind.value} in place {place} lives on: it changes the gradients of the next step"

    def metrics(self) -> Iterator[str]:
        """What is told does not depend on a subject."""
        for place, kind, neighbours in self._neighbours():
            one, other = self._after_a_step("", self._cohort), self._after_a_step(kind.value, neighbours)
            if dict(one.metrics()) != dict(other.metrics()):
                yield f"{kind.value} in place {place} shows in what is told"

    def noise(self) -> Iterator[str]:
        """As much as is charged, on every coordinate, also of an organ that nobody has and for a sample of nobody."""
        for cohort in (self._lacking, []):
            trainer, silent = self._one_noisy(), self._sum(cohort, self._tight)
            noises = [self._noise(trainer, cohort, silent) for _ in range(_REPEATS)]
            for name in trainer.trained:
                drawn = torch.stack([noise[name] for noise in noises])
                if bool((drawn == 0).all(0).any()) or not _is_unit(drawn):
                    rms = float(drawn.square().mean().sqrt())
                    yield f"{name}, {len(cohort)} subjects: noise of {rms:.3f} of what is charged"
            if not _is_unit(torch.stack([_flat(noise) for noise in noises])):
                yield f"{len(cohort)} subjects: noise is not what is charged"

    def freshness(self) -> Iterator[str]:
        """Noise is new in each step, in each process, and whatever seeds are set."""
        one, other = self._one_noisy(), self._make(self._tight, _SIGMA)
        silent, noises = self._sum_of_cohort(self._tight), []
        for trainer in (one, one, other):
            torch.default_generator.manual_seed(0)
            noises.append(_flat(self._noise(trainer, self._cohort, silent)))
        for first, second, who in ((0, 1, "two steps"), (0, 2, "two trainers")):
            both = torch.nn.functional.cosine_similarity(noises[first], noises[second], dim=0)
            if abs(float(both)) * math.sqrt(noises[0].numel()) > _BANDS:
                yield f"the noise of {who} goes together: correlation {float(both):.3f}"

    def _neighbours(self) -> Iterator[tuple[int, Replacement, list[MadeUp]]]:
        for number, kind in enumerate(Replacement):
            place = number % len(self._cohort)
            yield place, kind, replaced(self._cohort, place, kind, self._shapes)

    def _sum(self, cohort: Cohort, clip: float) -> Named:
        """What production sums, before its noise."""
        if clip not in self._silent:
            self._silent[clip] = self._make(clip, SILENT)
        trainer = self._silent[clip]
        return {name: tensor.double() * trainer.denominator for name, tensor in trainer.release(cohort).items()}

    def _sum_of_cohort(self, clip: float) -> Named:
        return self._known_sum("", self._cohort, clip)

    def _known_sum(self, key: str, cohort: Cohort, clip: float) -> Named:
        if (key, clip) not in self._sums:
            self._sums[key, clip] = self._sum(cohort, clip)
        return self._sums[key, clip]

    def _difference_for(self, kind: Replacement, neighbours: Cohort, clip: float) -> Named:
        """By how much the production sum moves."""
        return _difference(self._sum_of_cohort(clip), self._known_sum(kind.value, neighbours, clip))

    def _one_noisy(self) -> Trainer:
        """A trainer with the noise that noise is asked about."""
        self._noisy = self._noisy or self._make(self._tight, _SIGMA)
        return self._noisy

    def _noise(self, trainer: Trainer, cohort: Cohort, silent: Named) -> Named:
        """The noise of one release, over what is charged."""
        released, std = trainer.release(cohort), _SIGMA * self._tight
        return {name: (released[name].double() * trainer.denominator - silent[name]) / std for name in silent}

    def _after_a_step(self, key: str, cohort: Cohort) -> Trainer:
        """A trainer that saw this cohort and was given a release that has nothing to do with it."""
        if key not in self._steps:
            trainer = self._make(self._tight, 1.0)
            released = trainer.release(cohort)
            trainer.finish({name: torch.full_like(tensor, 0.01) for name, tensor in released.items()})
            self._steps[key] = trainer
        return self._steps[key]


def _is_unit(drawn: Tensor) -> bool:
    """Whether the root mean square is 1 within the bands of so many normal numbers."""
    return abs(float(drawn.square().mean().sqrt()) - 1) <= _BANDS / math.sqrt(2 * drawn.numel()) + 1e-3


def _clipped_sum(rows: Named, clip: float) -> dict[str, Tensor]:
    """By the definition, subject by subject, in double precision."""
    factors = [min(1.0, clip / norm) if norm else 1.0 for norm in _norms(rows)]
    return {
        name: torch.stack([row.double() * factor for row, factor in zip(tensor, factors, strict=True)]).sum(0)
        for name, tensor in rows.items()
    }


def _norms(rows: Named) -> list[float]:
    squares = torch.stack([tensor.double().flatten(1).square().sum(1) for tensor in rows.values()])
    return [float(norm) for norm in squares.sum(0).sqrt()]


def _norm(named: Named) -> float:
    return float(_flat(named).norm())


def _flat(named: Named) -> Tensor:
    return torch.cat([named[name].double().flatten() for name in sorted(named)])


def _difference(one: Named, other: Named) -> dict[str, Tensor]:
    return {name: one[name].double() - other[name].double() for name in one}


def _away(one: Named, other: Named) -> float:
    return _norm(_difference(one, other))


def _same(one: Named, other: Named) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
