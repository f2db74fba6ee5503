"""What a mechanism of missingness costs: trained on subjects who lack organs by it, tested on complete ones.

One synthetic cohort, written and prepared complete once, is seen through each mechanism: at random (MCAR), by age (MAR), by the
latent illness of the organ itself (MNAR), all at one rate, so that only who lacks what differs. Benchmarks give the training.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from panfm.config import Missingness, Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.store import PreparedStore
from panfm.data.synthetic import draw_factors
from panfm.data.synthetic.missingness import calibrate
from panfm.errors import DataError
from panfm.evaluation.cohort import Cohort, SitePart, cohort_of, embed_cohort
from panfm.evaluation.probes import Floats, ridge_scores
from panfm.evaluation.resampling import auroc, draw_counts, macro
from panfm.evaluation.targets import headline, targets_of
from panfm.organs import SEVEN_ORGANS, in_order
from panfm.randomness import stream

Train = Callable[[PreparedStore], Mapping[str, Tensor]]
"""From a store of training subjects to the teacher's parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderMechanism:
    """One mechanism and one target; each score is [1 + resamples], the first over everybody, and paired over mechanisms."""

    mechanism: Missingness
    target: str
    fitted_complete: Floats
    """The probe saw complete subjects: what is lost is pre-training's."""
    fitted_missing: Floats
    """The probe's subjects lack organs by the same mechanism, too."""
    presence: Floats
    """Which organs a test subject would lack, and nothing else, read by a probe: whether missingness itself is the signal."""


def thinned(store: PreparedStore, seed: int, mechanism: Missingness, rate: float) -> PreparedStore:
    """A synthetic store of complete subjects as if organs were missing by the mechanism; no file is touched.

    Args:
        seed: with which the subjects were written (`write_synthetic_site`): it says how ill they are.
        rate: share of each organ's scans that are missing.
    Raises: DataError when the subjects are not synthetic; ConfigError when the rate cannot be held.
    """
    model = calibrate(mechanism, in_order(tuple({entry.organ for entry in store.entries}), SEVEN_ORGANS), rate)
    indices = {entry.subject: _index(entry.subject) for entry in store.entries}
    kept = {subject: model.present(seed, index, draw_factors(seed, index)) for subject, index in indices.items()}
    return PreparedStore(store.folder, tuple(entry for entry in store.entries if entry.organ in kept[entry.subject]))


def cost_of_missingness(
    train: Train,
    store: PreparedStore,
    recipe: Recipe,
    fit: Cohort,
    test: Cohort,
    *,
    seed: int,
    rate: float,
    mechanisms: Sequence[Missingness] = tuple(Missingness),
    resamples: int = 1000,
    device: str = "cpu",
) -> list[UnderMechanism]:
    """Train under each mechanism, and probe complete test subjects.

    Args:
        store: complete synthetic training subjects.
        fit, test: complete synthetic cohorts of the same seed.
    """
    counts = draw_counts(len(test.site_of), stream(seed, "bootstrap"), resamples)
    found: list[UnderMechanism] = []
    for mechanism in mechanisms:
        parameters = train(thinned(store, seed, mechanism, rate))
        lacking = [_lacking(cohort, recipe, seed, mechanism, rate) for cohort in (fit, test)]
        tested = embed_cohort(parameters, recipe, test, device)
        fitted = [embed_cohort(parameters, recipe, cohort, device) for cohort in (fit, lacking[0])]
        presence = [cohort.presence for cohort in lacking]
        pairs = ((fitted[0], tested), (fitted[1], tested), (presence[0], presence[1]))
        found += _asked(mechanism, pairs, fit, test, counts)
    return found


Pair = tuple[NDArray[np.floating], NDArray[np.floating]]


def _asked(
    mechanism: Missingness, pairs: tuple[Pair, Pair, Pair], fit: Cohort, test: Cohort, counts: Floats
) -> list[UnderMechanism]:
    """A row for each headline target, from features of fit and test subjects."""
    rows = []
    for target in headline(targets_of(fit.labels, test.labels)):
        labels = np.stack([fit.labels[column] for column in target.columns])
        truth = [test.labels[column] for column in target.columns]
        said = [ridge_scores(train, labels, tested) for train, tested in pairs]
        scores = [
            macro(np.stack([auroc(label, row, counts) for label, row in zip(truth, of, strict=True)])) for of in said
        ]
        rows.append(
            UnderMechanism(
                mechanism=mechanism,
                target=target.name,
                fitted_complete=scores[0],
                fitted_missing=scores[1],
                presence=scores[2],
            )
        )
    return rows


def _lacking(cohort: Cohort, recipe: Recipe, seed: int, mechanism: Missingness, rate: float) -> Cohort:
    parts = [_lacking_part(part, recipe, seed, mechanism, rate) for part in cohort.parts]
    return replace(cohort_of(parts, recipe), organs=cohort.organs)


def _lacking_part(part: SitePart, recipe: Recipe, seed: int, mechanism: Missingness, rate: float) -> SitePart:
    """Nobody loses every organ, so the subjects and their labels stay."""
    store = thinned(part.store, seed, mechanism, rate)
    dataset = SubjectDataset(store, part.dataset.organs, recipe.organs, part.split)
    return replace(part, store=store, dataset=dataset)


def _index(subject: str) -> int:
    digits = subject.removeprefix("sub-")
    if not digits.isdecimal():
        raise DataError(
            f"{subject} is no synthetic subject (sub-00042), so how ill it is, and what it would lack, is not known"
        )
    return int(digits)
