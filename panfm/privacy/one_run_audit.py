"""How much a trainer tells of subjects, measured in one training run with a thousand of them that never lived.

Each *canary* is put into the cohort by a coin of its own and then drawn into steps like anybody. Its gradient is large and
lies along one coordinate, where noise is all that hides it. Whoever knows the releases guesses the coins; from how many guesses
are right follows a *lower* bound on epsilon, which must not lie above what was claimed. The bound is true of any trainer, and
loose: factors of two pass below it. So the same scores are also held against what the recipe says of them, *calibration*: a
canary that was in stands out by rate times steps times clip norm, and all lie in noise of the charged standard deviation.

It sees what is wrong for such canaries: no clipping, too little noise, the same noise again, subjects counted twice. It cannot
see what subjects do to each other's gradients, defects that only real scans bring out, or what is told beside the releases; the
contract (`panfm.privacy.contract`) asks for those.
Source: Steinke, Nasr and Jagielski 2023, arXiv:2305.08846.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import special
from torch import Tensor

from panfm.privacy.accounting import NoisySteps, epsilon_prv, epsilon_rdp
from panfm.privacy.contract import Breach, Cohort, MadeUp, Trainer
from panfm.privacy.sampling import poisson_sample

CANARY_NORM = 30.0
"""Clip norms that a canary's gradient has before it is clipped."""
_BANDS = 4.5
"""Standard deviations within which a calibration must lie: a correct trainer fails in one audit of 70,000."""
_GUESSED = (0.05, 0.2, 1.0)
"""Shares of the canaries that are guessed, the clearest first; fixed beforehand, and the doubt is divided among them."""
_HALVINGS = 40
_STEPS = NoisySteps(noise_multiplier=2.0, sampling_rate=0.25, steps=20)
"""A claim of epsilon 2 to 3: with a thousand canaries no bound gets above 5, and power comes with epsilon."""


@dataclass(frozen=True, slots=True)
class Coordinate:
    """One number among all that are trained."""

    parameter: str
    place: int
    """In the flattened parameter."""


Canaries = Mapping[str, Coordinate]
"""Name of a null subject -> where the gradient lies, `CANARY_NORM` clip norms long, that the trainer is to take for its own."""
MakeWithCanaries = Callable[[float, float, Canaries], Trainer]
"""(clip norm, noise multiplier, canaries) -> a fresh trainer; always the same parameters."""
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRunPlan:
    """What is trained, and what is claimed of it."""

    steps: NoisySteps = _STEPS
    clip_norm: float = 2.0
    """Not 1, so that noise that is not scaled by it shows."""
    delta: float = 1e-5
    num_canaries: int = 1000
    doubt: float = 0.01
    """Chance that the bound on epsilon is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRunFound:
    """What an audit measured, beside what was claimed."""

    claimed: float
    """Epsilon of the steps, by the tighter accountant."""
    at_least: float
    """Epsilon that the trainer is shown to have at least."""
    signal: float
    """By how much canaries that were in stand out, over what the recipe says; 1 is right."""
    signal_band: float
    """Standard deviation of `signal` for a correct trainer."""
    noise: float
    """Standard deviation of the scores of canaries that were out, over what is charged; 1 is right."""
    noise_band: float

    def breaches(self) -> tuple[Breach, ...]:
        """What does not fit the claim; none: nothing was found."""
        return tuple(self._breaches())

    def _breaches(self) -> Iterator[Breach]:
        if self.at_least > self.claimed:
            yield Breach("bound", f"epsilon is at least {self.at_least:.2f}, and {self.claimed:.2f} was claimed")
        if not abs(self.signal - 1) <= _BANDS * self.signal_band:
            yield Breach("signal", f"a subject adds {self.signal:.2f} of a clip norm")
        if not abs(self.noise - 1) <= _BANDS * self.noise_band:
            yield Breach("noise", f"the noise is {self.noise:.2f} of what is charged")


def one_run_audit(
    make: MakeWithCanaries, beside: Cohort, draws: np.random.Generator, plan: OneRunPlan | None = None
) -> OneRunFound:
    """Train once, and guess who was there.

    Args:
        beside: other subjects, drawn into steps like the canaries.
        draws: of the canaries' coins and coordinates; samples and noise come from wherever production takes them.
    Raises: ValueError when there are not as many coordinates as canaries.
    """
    plan = plan or OneRunPlan()
    canaries = _canaries(make(plan.clip_norm, plan.steps.noise_multiplier, {}), plan.num_canaries, draws)
    is_in = draws.random(plan.num_canaries) < 0.5
    present = [MadeUp(name, {}) for name, here in zip(canaries, is_in, strict=True) if here]
    trainer = make(plan.clip_norm, plan.steps.noise_multiplier, canaries)
    return judged(_scores(trainer, [*beside, *present], canaries, plan), is_in, plan)


def _canaries(trainer: Trainer, count: int, draws: np.random.Generator) -> Canaries:
    """Canaries in places of their own, drawn from all that are trained."""
    sizes = {name: tensor.numel() for name, tensor in sorted(trainer.release([]).items())}
    places = [Coordinate(name, place) for name, size in sizes.items() for place in range(size)]
    if len(places) < count:
        raise ValueError(f"{count} canaries need as many trained numbers, and there are {len(places)}; take fewer")
    chosen = draws.choice(len(places), count, replace=False)
    return {f"canary {number}": places[place] for number, place in enumerate(chosen.tolist())}


def _scores(trainer: Trainer, cohort: Sequence[MadeUp], canaries: Canaries, plan: OneRunPlan) -> Scores:
    """What all steps released along each canary, in clip norms."""
    scores = np.zeros(len(canaries))
    for _ in range(plan.steps.steps):
        sample = poisson_sample(len(cohort), plan.steps.sampling_rate)
        released = trainer.release([cohort[place] for place in sample.tolist()])
        scores += _along(released, canaries) * trainer.denominator / plan.clip_norm
        trainer.finish(released)
    return scores


def _along(released: Mapping[str, Tensor], canaries: Canaries) -> Scores:
    flat = {name: tensor.detach().double().flatten().numpy() for name, tensor in released.items()}
    return np.array([flat[canary.parameter][canary.place] for canary in canaries.values()])


def judged(scores: Scores, is_in: npt.NDArray[np.bool_], plan: OneRunPlan) -> OneRunFound:
    """What the scores of canaries say, half of which were in.

    Args:
        scores: of each canary, the sum over the steps, in clip norms.
        is_in: what its coin said.
    """
    noise, rate, steps = plan.steps.noise_multiplier, plan.steps.sampling_rate, plan.steps.steps
    inside, outside = scores[is_in], scores[~is_in]
    noise_std, drawn_std = noise * math.sqrt(steps), math.sqrt(steps * rate * (1 - rate))
    mean_std = math.sqrt(noise_std**2 / len(outside) + (noise_std**2 + drawn_std**2) / len(inside))
    return OneRunFound(
        claimed=_claimed(plan.steps, plan.delta),
        at_least=bound_of_scores(scores, is_in, plan.delta, plan.doubt),
        signal=float(inside.mean() - outside.mean()) / (rate * steps),
        signal_band=mean_std / (rate * steps),
        noise=float(outside.std(ddof=1)) / noise_std,
        noise_band=1 / math.sqrt(2 * len(outside)),
    )


@cache
def _claimed(steps: NoisySteps, delta: float) -> float:
    tighter = epsilon_prv([steps], delta)
    return epsilon_rdp([steps], delta) if tighter is None else tighter


def bound_of_scores(scores: Scores, is_in: npt.NDArray[np.bool_], delta: float, doubt: float) -> float:
    """The best lower bound on epsilon: high scores are guessed to have been in, low ones out, the rest is passed over."""
    order, count = np.argsort(scores, kind="stable"), len(scores)
    bounds = []
    for share in _GUESSED:
        half = max(1, int(share * count) // 2)
        correct = int((~is_in[order[:half]]).sum() + is_in[order[-half:]].sum())
        bounds.append(epsilon_at_least(count, 2 * half, correct, delta, doubt / len(_GUESSED)))
    return max(bounds)


def epsilon_at_least(num_canaries: int, guesses: int, correct: int, delta: float, doubt: float) -> float:
    """The epsilon below which so many right guesses would come about with a smaller chance than `doubt`; 0 if none."""
    low, high = 0.0, 1.0
    while p_value(num_canaries, guesses, correct, high, delta) < doubt:
        low, high = high, 2 * high
    if p_value(num_canaries, guesses, correct, low, delta) >= doubt:
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(num_canaries, guesses, correct, middle, delta) < doubt else (low, middle)
    return low


def p_value(num_canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Largest chance of so many right guesses, or more, about the coins of an (epsilon, delta) private run.

    Without delta, guesses are at best as good as those about randomised response, e^epsilon to 1 each; delta can lift a part
    of the chances just below `correct` to it. As in the source's appendix on its implementation.
    """
    chance = 1 / (1 + math.exp(-epsilon))
    reached = float(special.bdtrc(correct - 1, guesses, chance)) if correct else 1.0
    if not delta or not correct:
        return reached
    steps_below = np.arange(1, correct + 1)
    just_below = np.cumsum(_chances(guesses, chance)[correct - steps_below]) / steps_below
    return min(1.0, reached + 2 * num_canaries * delta * float(just_below.max()))


def _chances(trials: int, chance: float) -> Scores:
    """Of 0, 1, ... all successes; scipy's own binomial takes ten times as long over its arguments."""
    counts = np.arange(trials + 1)
    ways = special.gammaln(trials + 1) - special.gammaln(counts + 1) - special.gammaln(trials - counts + 1)
    return np.asarray(np.exp(ways + special.xlogy(counts, chance) + special.xlog1py(trials - counts, -chance)))
