"""What share of a training step does Saliency-Guided Masking cost? Held to under 2 %.

Run `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/organ_mask_cost.py`; it prints the table of `benchmarks/organ_mask_cost.md`.

SGM adds three things to a step: the subject token's attention row in the last blocks of the teacher, shares and lift from
it, and the draws. Hiding organs also shortens the student's sequences, which is a gain and no part of that cost, so two
kinds of steps are compared that do the same work otherwise, in turn, in one process, on the same batch:
- `lift`: the whole step, as a site runs it;
- `given`: the same step with the same organ masks, but handed in: no attention row, no shares, no draws.
The difference of two noisy whole steps is a coarse measure of so small a cost, so its parts are also timed by themselves:
the teacher with and without the attention rows, in turn, and shares with draws alone. `none` hides no organ, for comparison.
Seconds are of processor time, for other programs may share the machine. Volumes are noise: the cost does not depend on them.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import machine
from panfm.config import ModelConfig, OrganGrid, PretrainConfig
from panfm.data.dataset import Batch
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.models.pan_organ import Features, PanOrganModel
from panfm.organs import SEVEN_ORGANS
from panfm.pretrain.local_round import make_optimiser
from panfm.pretrain.organ_mask import draw_organ_masks
from panfm.pretrain.patch_mask import draw_patch_mask
from panfm.pretrain.saliency import saliency_of
from panfm.pretrain.step import Masks, patch_counts, step_loss, teacher_view
from panfm.pretrain.teacher import Teacher
from panfm.randomness import stream

SIDES = (24, 32)
BATCH_SIZE = 16
REPEATS = 30
HELD_TO = 0.02
CONFIG = PretrainConfig()
MODEL = ModelConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One site's training state and a batch of complete subjects."""

    student: PanOrganModel
    teacher: Teacher
    optimiser: torch.optim.Optimizer
    batch: Batch
    counts: tuple[int, int, int]
    """Patches of each organ along X, Y, Z."""

    def organ_masks(self, features: Features, repeat: int) -> Tensor:
        """Shares, lift and draws, from the teacher's attention."""
        tokens = {organ: 1 + patches.shape[1] for organ, patches in features.patches.items()}
        saliency = saliency_of(features.attention, self.batch.rows, tokens, self.batch.organs, BATCH_SIZE)
        draws = [stream(0, repeat, name, "organ mask") for name in self.batch.subjects]
        return draw_organ_masks(saliency, CONFIG.organ_mask, draws)

    def lift_step(self, repeat: int) -> None:
        """A step with SGM."""
        target, _ = teacher_view(self.teacher.model, self.batch, CONFIG.organ_mask.saliency_blocks)
        self._train(target, self.organ_masks(target, repeat), repeat)

    def given_step(self, repeat: int, organ_masks: Tensor) -> None:
        """The same step with organ masks handed in."""
        with torch.no_grad():
            target = self.view(0)
        self._train(target, organ_masks, repeat)

    @torch.no_grad()
    def view(self, saliency_blocks: int) -> Features:
        """The teacher's features of the batch."""
        features: Features = self.teacher.model(
            self.batch.volumes, self.batch.rows, BATCH_SIZE, saliency_blocks=saliency_blocks
        )
        return features

    def _train(self, target: Features, organ_masks: Tensor, repeat: int) -> None:
        draws = [stream(0, repeat, name, "patch mask") for name in self.batch.subjects]
        patches = {
            organ: torch.from_numpy(np.stack([draw_patch_mask(self.counts, CONFIG.patch_mask, own) for own in draws]))
            for organ in self.batch.organs
        }
        loss = step_loss(self.student, self.batch, target, Masks(organs=organ_masks, patches=patches), CONFIG.loss)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss.total)
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), CONFIG.clip_norm)
        self.optimiser.step()
        self.teacher.follow(self.student, CONFIG.teacher_momentum)


def make_bench(side: int) -> Bench:
    """Tiny model, seven organs of side-cubed voxels, all subjects complete."""
    grids = {organ: OrganGrid(shape=[side] * 3) for organ in SEVEN_ORGANS}
    start = initial_parameters(MODEL, grids, 0)
    student = build_model(MODEL, grids)
    load_parameters(student, start)
    noise = torch.Generator().manual_seed(0)
    batch = Batch(
        tuple(f"s{number}" for number in range(BATCH_SIZE)),
        SEVEN_ORGANS,
        {organ: torch.arange(BATCH_SIZE) for organ in SEVEN_ORGANS},
        {organ: torch.randn(BATCH_SIZE, side, side, side, generator=noise) for organ in SEVEN_ORGANS},
    )
    return Bench(
        student=student,
        teacher=Teacher(build_model(MODEL, grids), start),
        optimiser=make_optimiser(student, CONFIG),
        batch=batch,
        counts=patch_counts(grids["brain"], MODEL.patch),
    )


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def whole_steps(bench: Bench) -> dict[str, list[float]]:
    """Seconds of each kind of step; who goes first alternates, and each repeat has its own masks."""
    nothing = torch.zeros(BATCH_SIZE, len(SEVEN_ORGANS), dtype=torch.bool)
    spent: dict[str, list[float]] = {"lift": [], "given": [], "none": []}
    for repeat in range(-2, REPEATS):
        masks = bench.organ_masks(bench.view(CONFIG.organ_mask.saliency_blocks), repeat)
        kinds = [
            ("lift", partial(bench.lift_step, repeat)),
            ("given", partial(bench.given_step, repeat, masks)),
            ("none", partial(bench.given_step, repeat, nothing)),
        ]
        for kind, step in kinds if repeat % 2 else reversed(kinds):
            taken = seconds(step)
            if repeat >= 0:  # the first two only warm up
                spent[kind].append(taken)
    return spent


def parts(bench: Bench) -> tuple[float, float]:
    """Median seconds of the attention rows (a difference) and of shares, lift and draws."""
    blocks = CONFIG.organ_mask.saliency_blocks
    rows = []
    for repeat in range(2 * REPEATS):
        order = (blocks, 0) if repeat % 2 else (0, blocks)
        taken = {number: seconds(partial(bench.view, number)) for number in order}
        rows.append(taken[blocks] - taken[0])
    features = bench.view(blocks)
    draws = [seconds(partial(bench.organ_masks, features, repeat)) for repeat in range(5 * REPEATS)]
    return statistics.median(rows), statistics.median(draws)


def line(side: int) -> str:
    """One row of the table."""
    bench = make_bench(side)
    spent = whole_steps(bench)
    rows, draws = parts(bench)
    step = statistics.median(spent["lift"])
    low, middle, high = statistics.quantiles(np.subtract(spent["lift"], spent["given"]) / step, n=4)
    share = (rows + draws) / step
    cells = [
        f"{side}",
        f"{1e3 * step:.0f}",
        f"{1e3 * rows:.2f}",
        f"{1e3 * draws:.2f}",
        f"**{share:.2%}** ({'under' if share < HELD_TO else 'ABOVE'} {HELD_TO:.0%})",
        f"{middle:.1%} ({low:.1%} to {high:.1%})",
        f"{step / statistics.median(spent['none']):.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    torch.set_num_threads(1)
    print(f"Tiny model, seven organs, batch {BATCH_SIZE}, one thread ({machine()}), {datetime.date.today()}.\n")
    print(
        "| voxels a side | step with `lift` (ms) | attention rows (ms) | shares and draws (ms) | SGM's share of the step "
        "| the same from whole steps, median (quartiles) | `lift` over `none` |"
    )
    print("|---" * 7 + "|")
    for side in SIDES:
        print(line(side), flush=True)


if __name__ == "__main__":
    main()
