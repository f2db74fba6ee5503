"""What two audits measure of the private trainer beside what is claimed of it, and whether they notice when it is lied to.

Run `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/privacy_audit.py`; it prints the tables, and with `--write` writes them to
`benchmarks/privacy_audit.md`. PANFM_REPEATS sets how often the honest trainer is audited (5).

The trainer is that of production, in both modes, on made-up subjects and the smallest model that has more numbers to train than
the audit has canaries. A lie is the same trainer run with another clip norm or noise than what is claimed of it: that needs no
broken code, and each is what a well-known defect amounts to. Trainers with broken code, 26 of them, are in the tests of
`panfm/pretrain`, with what finds each.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import provenance
from panfm.config import LossWeights, ModelConfig, OrganGrid, PretrainConfig, PrivacyMode, Recipe
from panfm.pretrain.private_trial import TrialTraining
from panfm.privacy.contract import Breach, made_up_cohort
from panfm.privacy.one_run_audit import Canaries, OneRunFound, OneRunPlan, one_run_audit
from panfm.privacy.step_audit import StepFound, StepPlan, step_audit

MODES = (PrivacyMode.dp_adapters, PrivacyMode.dp_full)
REPEATS = int(os.environ.get("PANFM_REPEATS", "5"))
ONE_RUN, STEP = OneRunPlan(), StepPlan()


@dataclass(frozen=True, slots=True)
class Conduct:
    """What the trainer does, over what is claimed."""

    what: str
    clip: float = 1.0
    """Clip norm."""
    noise: float = 1.0
    """Standard deviation of the noise."""


HONEST = Conduct("as claimed")
LIES = (
    Conduct("hardly any clipping: 20 clip norms", clip=20.0),
    Conduct("two rows a subject, each clipped", clip=2.0),
    Conduct("noise that is not scaled by the clip norm", noise=1 / ONE_RUN.clip_norm),
    Conduct("0.7 of the noise", noise=0.7),
)
BLIND = """\
What neither audit can see, and the contract (`panfm/privacy/contract.py`, asked of production in the same tests) does:

- subjects who move each other's gradients: centring, KoLeo, batch statistics, mask counts or mask draws over a batch;
- memory of a subject beyond its step, and raw losses that are told;
- clipping layer by layer, or to a norm taken from the batch; gradients that are wrong without being larger;
- noise that is missing where nobody of a sample has an organ, or where it holds nobody; noise that a seed repeats.

Neither audit nor contract can tell a good generator of noise from a bad one, or see what only certain data bring out. A
bound far below the claim does not show more privacy than is claimed: bounds are loose, the one of one run by a factor of 3."""


def small_recipe() -> Recipe:
    """Three organs; weights that take every gradient above the clip norm."""
    shapes = {"brain": [8, 8, 8], "heart": [8, 4, 8], "liver": [4, 4, 8]}
    return Recipe(
        threads=1,
        organs={organ: OrganGrid(shape=shape) for organ, shape in shapes.items()},
        model=ModelConfig(width=12, depth=1, heads=2, mlp_ratio=2.0, adapter_width=2, predictor_width=24, patch=4),
        pretrain=PretrainConfig(loss=LossWeights(patch=20, seen=10, organ=10)),
    )


def trainer(
    mode: PrivacyMode, does: Conduct, clip_norm: float, noise_multiplier: float, canaries: Canaries | None = None
) -> TrialTraining:
    """Production, given other numbers than are claimed of it."""
    made = TrialTraining(
        small_recipe(), mode, clip_norm * does.clip, noise_multiplier * does.noise / does.clip, canaries
    )
    made.most, made.remembers = 64, canaries is None
    return made


def shapes() -> Mapping[str, tuple[int, ...]]:
    return {organ: tuple(grid.shape) for organ, grid in small_recipe().organs.items()}


def one_run(mode: PrivacyMode, does: Conduct, seed: int) -> OneRunFound:
    return one_run_audit(
        lambda clip, noise, canaries: trainer(mode, does, clip, noise, canaries),
        made_up_cohort(shapes()),
        np.random.default_rng(seed),
        ONE_RUN,
    )


def step(mode: PrivacyMode, does: Conduct) -> StepFound:
    return step_audit(lambda clip, noise: trainer(mode, does, clip, noise), shapes(), STEP)


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def shown(breaches: tuple[Breach, ...]) -> str:
    return ", ".join(breach.question for breach in breaches) or "nothing"


def honest_lines() -> Iterator[str]:
    """Measured beside claimed."""
    yield row("mode", "audit", "claimed epsilon", "shown: at least", "of the claim", "calibration, 1 is right", "found")
    yield "|---" * 7 + "|"
    for mode in MODES:
        for seed in range(REPEATS):
            run = one_run(mode, HONEST, seed)
            told = f"signal {run.signal:.2f} ± {run.signal_band:.2f}, noise {run.noise:.3f} ± {run.noise_band:.3f}"
            share = f"{run.at_least / run.claimed:.2f}"
            yield row(
                mode.value,
                f"one run, {seed + 1}",
                f"{run.claimed:.2f}",
                f"{run.at_least:.2f}",
                share,
                told,
                shown(run.breaches()),
            )
        found = step(mode, HONEST)
        told = f"mu at least {found.mu_at_least:.2f} of {found.claimed_mu:.2f}, which is epsilon {found.mu_epsilon:.2f}"
        share = f"{found.mu_epsilon / found.claimed:.2f}"
        yield row(
            mode.value, "step", f"{found.claimed:.2f}", f"{found.at_least:.2f}", share, told, shown(found.breaches())
        )


def lie_lines() -> Iterator[str]:
    """What is found of those who do not do as they claim."""
    yield row("what is done", "one run: bound", "signal", "noise", "found", "step: mu at least, 1 is claimed", "found")
    yield "|---" * 7 + "|"
    for lie in LIES:
        run, found = one_run(MODES[0], lie, 0), step(MODES[0], lie)
        yield row(
            lie.what,
            f"{run.at_least:.2f} of {run.claimed:.2f}",
            f"{run.signal:.2f}",
            f"{run.noise:.2f}",
            shown(run.breaches()),
            f"{found.mu_at_least:.2f}",
            shown(found.breaches()),
        )


def lines() -> Iterator[str]:
    rate, steps = ONE_RUN.steps.sampling_rate, ONE_RUN.steps.steps
    yield f"{provenance()}.\n"
    yield (
        f"One run: {ONE_RUN.num_canaries} canaries, {steps} steps at rate {rate:g} with noise multiplier "
        f"{ONE_RUN.steps.noise_multiplier:g}. Step: {STEP.releases} releases with an outlier and as many without, noise "
        f"multiplier {STEP.noise_multiplier:g}. Delta {STEP.delta:g}; each bound is wrong with chance {STEP.doubt:g}.\n"
    )
    yield from honest_lines()
    yield f"\nThe trainer does something else than is claimed ({MODES[0].value}):\n"
    yield from lie_lines()
    yield f"\n{BLIND}"


def main() -> None:
    torch.set_num_threads(1)
    told: list[str] = []
    for line in lines():
        told.append(line)
        print(line, flush=True)
    if "--write" in sys.argv[1:]:
        (Path(__file__).parent / "privacy_audit.md").write_text("\n".join(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
