"""How well one release tells whether a subject was in its sample, measured by releasing a thousand times with and without.

The subject is an outlier whose gradient is clipped; without it, a null subject stands in its place. What is looked at is fixed
before any noise is drawn: the release along the direction in which the two would differ without noise, and the middle between
them. Noise of sigma clip norms claims that no test between the two is better than between two normal numbers 1 / sigma apart
(mu, Gaussian differential privacy). How often each side falls beyond the middle gives, by exact binomial intervals, a *lower*
bound on mu and one on epsilon, neither of which supposes anything of the trainer.

It sees a subject that adds more than a clip norm, and noise that is too small. It sees what others do in answer to the subject
only where that adds to the same direction, and nothing of what lasts beyond a release or is told beside it; the contract
(`panfm.privacy.contract`) asks for those.
Source: Nasr et al. 2023, arXiv:2302.07956; Dong, Roth and Su 2022, arXiv:1905.02383.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy import optimize, special
from torch import Tensor

from panfm.privacy.contract import SILENT, Breach, Cohort, Make, Named, Replacement, made_up_cohort, replaced

_NO_BOUND = 40.0
"""Standard deviations above which no tail is told from 0 in double precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """What is released, and how often."""

    noise_multiplier: float = 1.0
    """A claim of epsilon 4.38 at delta 1e-5: a thousand releases show at most 5 without supposing anything."""
    clip_norm: float = 2.0
    """Below the norm of the outlier's gradient; not 1, so that noise that is not scaled by it shows."""
    releases: int = 1000
    """With the subject; as many without."""
    delta: float = 1e-5
    doubt: float = 0.01
    """Chance that a bound is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFound:
    """What an audit measured, beside what was claimed."""

    claimed: float
    """Epsilon of one release."""
    claimed_mu: float
    at_least: float
    """Epsilon that the trainer is shown to have at least, whatever its noise looks like."""
    mu_at_least: float
    """The mu that it is shown to have at least."""
    mu_epsilon: float
    """The epsilon of a Gaussian mechanism of that mu."""

    def breaches(self) -> tuple[Breach, ...]:
        """What does not fit the claim; none: nothing was found."""
        return tuple(self._breaches())

    def _breaches(self) -> Iterator[Breach]:
        if self.at_least > self.claimed:
            yield Breach("bound", f"epsilon is at least {self.at_least:.2f}, and {self.claimed:.2f} was claimed")
        if self.mu_at_least > self.claimed_mu:
            yield Breach("mu", f"mu is at least {self.mu_at_least:.2f}, and {self.claimed_mu:.2f} was claimed")


def step_audit(make: Make, shapes: Mapping[str, Sequence[int]], plan: StepPlan | None = None) -> StepFound:
    """Release with a subject and without it, and count.

    Args:
        shapes: the volume of each organ that the site declares.
    Raises: ValueError when clipping does not touch the outlier, so that the audit could see nothing.
    """
    plan = plan or StepPlan()
    cohort = made_up_cohort(shapes)
    sides = [replaced(cohort, 0, kind, shapes) for kind in (Replacement.outlier, Replacement.null)]
    _refuse_small(make, sides[0][0:1], plan.clip_norm)
    silent = make(plan.clip_norm, SILENT)
    middle, direction = _test_between(*(_flat(silent.release(side)) for side in sides))

    def beyond(side: Cohort) -> int:
        trainer = make(plan.clip_norm, plan.noise_multiplier)
        return sum(float(_flat(trainer.release(side)) @ direction) > middle for _ in range(plan.releases))

    with_it, without = (beyond(side) for side in sides)
    return judged(with_it, without, plan)


def _refuse_small(make: Make, outlier: Cohort, clip_norm: float) -> None:
    norm = float(_flat(make(clip_norm, 1.0).subject_gradients(outlier)).norm())
    if norm <= clip_norm:
        raise ValueError(f"the outlier's gradient has norm {norm:.3g}; take a clip norm below it, not {clip_norm:g}")


def _test_between(one: Tensor, other: Tensor) -> tuple[float, Tensor]:
    """Where the middle between two releases without noise lies along their difference, and that direction."""
    direction = one - other
    direction = direction / direction.norm().clamp(min=torch.finfo(torch.float64).tiny)
    return float((one + other) @ direction) / 2, direction


def _flat(named: Named) -> Tensor:
    return torch.cat([named[name].detach().double().flatten() for name in sorted(named)])


def judged(beyond_with: int, beyond_without: int, plan: StepPlan) -> StepFound:
    """What it says that so many releases with the subject, and so many without it, lay beyond the middle."""
    hit, _ = _interval(beyond_with, plan)
    _, false_alarm = _interval(beyond_without, plan)
    mu = max(0.0, float(special.ndtri(hit) - special.ndtri(false_alarm)))
    return StepFound(
        claimed=epsilon_of_mu(1 / plan.noise_multiplier, plan.delta),
        claimed_mu=1 / plan.noise_multiplier,
        at_least=max(0.0, _log_ratio(hit - plan.delta, false_alarm), _log_ratio(1 - false_alarm - plan.delta, 1 - hit)),
        mu_at_least=mu,
        mu_epsilon=epsilon_of_mu(mu, plan.delta),
    )


def _interval(count: int, plan: StepPlan) -> tuple[float, float]:
    """Exact (Clopper and Pearson) bounds on a chance, each wrong with half of the doubt."""
    others, doubt = plan.releases - count, plan.doubt / 2
    low = special.betaincinv(count, others + 1, doubt) if count else 0.0
    high = special.betaincinv(count + 1, others, 1 - doubt) if others else 1.0
    return float(low), float(high)


def _log_ratio(one: float, other: float) -> float:
    return math.log(one / other) if one > 0 and other > 0 else -math.inf


def epsilon_of_mu(mu: float, delta: float) -> float:
    """The epsilon of a Gaussian mechanism of that mu (corollary 2.13 of the second source)."""

    def excess(epsilon: float) -> float:
        lost = math.exp(float(special.log_ndtr(-epsilon / mu - mu / 2)) + epsilon)
        return float(special.ndtr(-epsilon / mu + mu / 2)) - lost - delta

    if mu <= 0 or excess(0.0) <= 0:
        return 0.0
    return float(optimize.brentq(excess, 0.0, mu * (_NO_BOUND + mu)))
