"""What does a step with differential privacy cost? dp_adapters is held to 1.2 times, dp_full to 1.6 times, the same step without.

Run `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/private_step.py`; it prints the table, and with `--write` writes it to
`benchmarks/private_step.md`.

Both steps train the same parameters in the dense layout on the same batch of 16 complete subjects: teacher, masks, student,
backward, AdamW, teacher follows. The private one also tells gradients apart by subject, clips, sums, and draws noise. They run in
turn in one process, and seconds are of processor time, for other programs may share the machine; a ratio is the median over
pairs of steps that stood side by side. A column says what privacy's dense layout itself costs against the packed step that
training without privacy takes (all parameters; here nobody lacks an organ, so that nothing is saved by packing but padding).
Volumes are noise: the cost does not depend on them.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import datetime
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import machine
from panfm.config import ModelConfig, OrganGrid, PretrainConfig, PrivacyConfig, PrivacyMode, Recipe
from panfm.data.dataset import Batch
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.models.dense import DenseModel
from panfm.models.pan_organ import PanOrganModel
from panfm.organs import SEVEN_ORGANS
from panfm.pretrain.local_round import make_optimiser
from panfm.pretrain.private_step import PrivateTraining, Views, losses_of, recipe_losses
from panfm.pretrain.step import draw_masks, patch_counts, step_loss, teacher_view
from panfm.pretrain.teacher import Teacher
from panfm.randomness import stream

SIDE = 24
BATCH_SIZE = 16
REPEATS = int(os.environ.get("PANFM_REPEATS", "21"))
HELD_TO = {PrivacyMode.dp_adapters: 1.2, PrivacyMode.dp_full: 1.6}
SIZES = {
    "tiny": ModelConfig(),
    "192 x 6": ModelConfig(width=192, depth=6, heads=6, adapter_width=32, predictor_width=384),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One mode's training state, the same without hooks, and a batch of complete subjects."""

    training: PrivateTraining
    plain_student: PanOrganModel
    dense_student: DenseModel
    dense_teacher: DenseModel
    plain_teacher: Teacher
    optimiser: torch.optim.Optimizer
    recipe: Recipe
    batch: Batch

    def views(self, repeat: int) -> Views:
        """The batch, with masks of this repeat."""
        organs, patches = (
            [stream(0, repeat, name, what) for name in self.batch.subjects] for what in ("organ mask", "patch mask")
        )
        return Views(given=self.batch, seen=self.batch, organ_draws=organs, patch_draws=patches)

    def private(self, repeat: int) -> None:
        """A step with privacy."""
        released = self.training.release([(range(BATCH_SIZE), [self.views(repeat)])])
        self.training.finish(released, 0)

    def plain(self, repeat: int) -> None:
        """The same without: the gradient of the mean loss."""
        losses = losses_of(
            self.dense_student, self.dense_teacher, self.views(repeat), self.recipe, recipe_losses(self.recipe)
        )
        self._follow(losses().mean())

    def packed(self, repeat: int) -> None:
        """The same in the packed layout."""
        pretrain, views = self.recipe.pretrain, self.views(repeat)
        target, saliency = teacher_view(self.plain_teacher.model, self.batch, pretrain.organ_mask.saliency_blocks)
        counts = {organ: patch_counts(self.recipe.organs[organ], self.recipe.model.patch) for organ in SEVEN_ORGANS}
        masks = draw_masks(
            self.batch, saliency, counts, pretrain.organ_mask, pretrain.patch_mask, views.organ_draws, views.patch_draws
        )
        self._follow(step_loss(self.plain_student, self.batch, target, masks, pretrain.loss).total)

    def _follow(self, loss: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.plain_student.parameters(), self.recipe.pretrain.clip_norm)
        self.optimiser.step()
        self.plain_teacher.follow(self.plain_student, 0.99)


def make_bench(model: ModelConfig, mode: PrivacyMode) -> Bench:
    """Seven organs of SIDE-cubed voxels, all subjects complete."""
    recipe = Recipe(
        organs={organ: OrganGrid(shape=[SIDE] * 3) for organ in SEVEN_ORGANS}, model=model, pretrain=PretrainConfig()
    )
    start, noise = initial_parameters(model, recipe.organs, 0), torch.Generator().manual_seed(0)
    batch = Batch(
        tuple(f"s{number}" for number in range(BATCH_SIZE)),
        SEVEN_ORGANS,
        {organ: torch.arange(BATCH_SIZE) for organ in SEVEN_ORGANS},
        {organ: torch.randn(BATCH_SIZE, SIDE, SIDE, SIDE, generator=noise) for organ in SEVEN_ORGANS},
    )
    training = PrivateTraining(start, start, SEVEN_ORGANS, recipe, PrivacyConfig(mode=mode))
    student, teacher = build_model(model, recipe.organs), Teacher(build_model(model, recipe.organs), start)
    load_parameters(student, start)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in training.trained)
    return Bench(
        training=training,
        plain_student=student,
        dense_student=DenseModel(student),
        dense_teacher=DenseModel(teacher.model),
        plain_teacher=teacher,
        optimiser=make_optimiser(student, recipe.pretrain),
        recipe=recipe,
        batch=batch,
    )


def seconds(step: Callable[[int], None], repeat: int) -> float:
    """Processor seconds of one step."""
    start = time.process_time()
    step(repeat)
    return time.process_time() - start


def measured(bench: Bench) -> dict[str, list[float]]:
    """Seconds of each kind of step; who goes first alternates."""
    kinds = {"plain": bench.plain, "private": bench.private, "packed": bench.packed}
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    for repeat in range(-2, REPEATS):
        for kind in kinds if repeat % 2 else reversed(kinds):
            taken = seconds(kinds[kind], repeat)
            if repeat >= 0:  # the first two only warm up
                spent[kind].append(taken)
    return spent


def line(size: str, mode: PrivacyMode) -> str:
    """One row of the table."""
    bench = make_bench(SIZES[size], mode)
    spent = measured(bench)
    ratios = [private / plain for private, plain in zip(spent["private"], spent["plain"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    trained = sum(parameter.numel() for parameter in bench.training.trained.values())
    dense = statistics.median(plain / packed for plain, packed in zip(spent["plain"], spent["packed"], strict=True))
    cells = [
        size,
        mode.value,
        f"{trained / 1e6:.2f} M",
        f"{1e3 * statistics.median(spent['plain']):.0f}",
        f"{1e3 * statistics.median(spent['private']):.0f}",
        f"**{middle:.2f}** ({low:.2f} to {high:.2f})",
        f"{'under' if middle <= HELD_TO[mode] else 'ABOVE'} {HELD_TO[mode]}",
        f"{dense:.2f}" if mode is PrivacyMode.dp_full else "",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    torch.set_num_threads(1)
    rows = [
        f"Seven organs of {SIDE} voxels a side, {BATCH_SIZE} subjects a step, one thread ({machine()}), {REPEATS} pairs "
        f"of steps, {datetime.date.today()}.\n",
        "| model | mode | trained | step without privacy (ms) | with (ms) | ratio, median (quartiles) | held to "
        "| dense over packed, without privacy |",
        "|---" * 8 + "|",
    ]
    print("\n".join(rows))
    for size in SIZES:
        for mode in HELD_TO:
            rows.append(line(size, mode))
            print(rows[-1], flush=True)
    if "--write" in sys.argv[1:]:
        (Path(__file__).parent / "private_step.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
