"""How fast is a training step, and how much memory does it take? Packed against dense, bf16, checkpointing, parts, SGM's share.

Run `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/step.py [--write]` on a CPU (Linux, 4 GB). It
prints the tables, and with --write writes them to `benchmarks/step.md`. On a GPU, for the base model in bf16 and its share of the
chip's matrix rate, with as many subjects as memory holds:

    PYTHONPATH=. python benchmarks/step.py --gpu [--model base] [--subjects 256] [--peak-tflops 989]

The model is `small`, organs are seven cubes of 32 voxels a side (64 patches), and half of a batch's organs are missing. Every
way of computing a step is a whole step: teacher, masks, student, gradients, clip, AdamW, teacher follows. Ways run in turn in one
process on the same batch with the same masks, and seconds are of processor time, for other programs may share the machine; a
ratio is the median over turns. `tests/panfm/pretrain/` holds that the ways have the same loss and gradients.

Memory is the process's peak within a step (Linux), over what it held before, in a process of its own with malloc told to give
back at once what is freed; it is measured for subjects of 1 to 7 organs, and a line is laid through it.
The cost of SGM is timed by its parts, as in `benchmarks/organ_mask_cost.py`, for it is smaller than what whole steps scatter by.
Volumes are noise: no cost depends on them.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.flops import step_flops
from benchmarks.machine import provenance
from panfm import recipes
from panfm.config import OrganGrid, OrganMaskConfig, OrganMaskRule, Precision, Recipe
from panfm.data.dataset import Batch
from panfm.models.attention import SubjectAttention
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.models.dense import DenseModel
from panfm.models.layout import pack
from panfm.models.pan_organ import Features, PanOrganModel
from panfm.models.precision import computing_in
from panfm.organs import SEVEN_ORGANS
from panfm.pretrain.accumulation import Part, parts_of
from panfm.pretrain.local_round import make_optimiser
from panfm.pretrain.organ_mask import draw_organ_masks
from panfm.pretrain.private_step import Views, losses_of, recipe_losses
from panfm.pretrain.saliency import saliency_of
from panfm.pretrain.step import Masks, draw_masks, patch_counts, step_loss, teacher_view
from panfm.pretrain.teacher import Teacher
from panfm.randomness import stream

SIDE, SUBJECTS = 32, 8
TURNS = int(os.environ.get("PANFM_TURNS", "5"))
FASTER, SGM_SHARE = 1.7, 0.02
"""Held to: dense over packed, and SGM's part of a step."""
RATES = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 products a second by the maker's data sheets, by what is part of the GPU's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a step is computed."""

    rule: OrganMaskRule = OrganMaskRule.lift
    dense: bool = False
    precision: Precision = Precision.fp32
    accumulate: int = 1
    checkpointing: bool = False


PACKED = Way()
SEEING_ALL = Way(rule=OrganMaskRule.none)
WAYS: dict[str, tuple[Way, Way]] = {
    "dense": (Way(dense=True), PACKED),
    "dense, no organ masked": (Way(rule=OrganMaskRule.none, dense=True), SEEING_ALL),
    "bf16": (Way(precision=Precision.bf16), PACKED),
    "checkpointing": (Way(checkpointing=True), PACKED),
    "bf16 and checkpointing": (Way(precision=Precision.bf16, checkpointing=True), PACKED),
    "in four parts": (Way(accumulate=4), PACKED),
}
"""A way, and the one that its time is held against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A student and what trains it."""

    student: PanOrganModel
    dense: DenseModel
    optimiser: torch.optim.Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One site's training state."""

    recipe: Recipe
    trained: Mapping[bool, Trained]
    """Without and with checkpointing."""
    teacher: Teacher
    dense_teacher: DenseModel
    device: str

    def step(self, way: Way, batch: Batch, repeat: int) -> Masks | None:
        """A whole step; returns the masks, of a packed one."""
        own = self.trained[way.checkpointing]
        own.optimiser.zero_grad(set_to_none=True)
        masks = None
        if way.dense:
            torch.autograd.backward(self._dense_loss(way, batch, repeat))
        else:
            masks = self._packed_backward(way, batch, repeat)
        torch.nn.utils.clip_grad_norm_(own.student.parameters(), self.recipe.pretrain.clip_norm)
        own.optimiser.step()
        self.teacher.follow(own.student, 0.99)
        return masks

    def _packed_backward(self, way: Way, batch: Batch, repeat: int) -> Masks:
        config, student = OrganMaskConfig(rule=way.rule), self.trained[way.checkpointing].student
        with computing_in(way.precision, self.device):
            target, saliency = teacher_view(self.teacher.model, batch, config.saliency_blocks)
        patch_mask, loss_weights = self.recipe.pretrain.patch_mask, self.recipe.pretrain.loss
        masks = draw_masks(batch, saliency, self.counts, config, patch_mask, *draws_of(batch, repeat))
        for part in parts_of(Part(share=1.0, given=batch, seen=batch, target=target, masks=masks), way.accumulate):
            with computing_in(way.precision, self.device):
                loss = step_loss(student, part.seen, part.target, part.masks, loss_weights).total
            torch.autograd.backward(part.share * loss)
        return masks

    def _dense_loss(self, way: Way, batch: Batch, repeat: int) -> Tensor:
        recipe = replace(self.recipe, pretrain=replace(self.recipe.pretrain, organ_mask=OrganMaskConfig(rule=way.rule)))
        organs, patches = draws_of(batch, repeat)
        views = Views(given=batch, seen=batch, organ_draws=organs, patch_draws=patches)
        student = self.trained[way.checkpointing].dense
        return losses_of(student, self.dense_teacher, views, recipe, recipe_losses(recipe))().mean()

    @property
    def counts(self) -> dict[str, tuple[int, int, int]]:
        """Patches of each organ along X, Y, Z."""
        return {organ: patch_counts(grid, self.recipe.model.patch) for organ, grid in self.recipe.organs.items()}


def draws_of(batch: Batch, repeat: int) -> tuple[list[np.random.Generator], list[np.random.Generator]]:
    """Each subject's generators of organ masks and of patch masks."""
    organs, patches = ([stream(0, repeat, name, what) for name in batch.subjects] for what in ("organs", "patches"))
    return organs, patches


def make_bench(model: str, device: str, checkpointing: Sequence[bool] = (False, True)) -> Bench:
    """Seeded students and teacher of a size that comes with panfm, for the seven organs."""
    recipe = recipes.recipe_of(recipes.load(["recipe=demo", f"model={model}"]))
    recipe.organs = {organ: OrganGrid(shape=[SIDE] * 3) for organ in SEVEN_ORGANS}
    start = initial_parameters(recipe.model, recipe.organs, 0)
    trained: dict[bool, Trained] = {}
    for is_frugal in checkpointing:
        student = build_model(recipe.model, recipe.organs, is_frugal).to(device)
        load_parameters(student, start)
        optimiser = make_optimiser(student, recipe.pretrain)
        trained[is_frugal] = Trained(student=student, dense=DenseModel(student), optimiser=optimiser)
    teacher = Teacher(build_model(recipe.model, recipe.organs).to(device), start)
    dense_teacher = DenseModel(teacher.model)
    return Bench(recipe=recipe, trained=trained, teacher=teacher, dense_teacher=dense_teacher, device=device)


def make_batch(organs_of: Sequence[Sequence[str]], device: str = "cpu") -> Batch:
    """Volumes of noise of subjects with these organs."""
    rows = {o: [row for row, own in enumerate(organs_of) if o in own] for o in SEVEN_ORGANS}
    rows = {organ: own for organ, own in rows.items() if own}
    noise = torch.Generator().manual_seed(0)
    volumes = {organ: torch.randn(len(own), SIDE, SIDE, SIDE, generator=noise) for organ, own in rows.items()}
    names = tuple(f"s{number}" for number in range(len(organs_of)))
    return Batch(names, SEVEN_ORGANS, {o: torch.tensor(own) for o, own in rows.items()}, volumes).to(device)


def half_missing(subjects: int) -> list[list[str]]:
    """Every second organ, beginning with the first or the second: four or three of seven in turn, half of an even batch's."""
    return [[organ for place, organ in enumerate(SEVEN_ORGANS) if (place + row) % 2 == 0] for row in range(subjects)]


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def times(bench: Bench, batch: Batch) -> Iterator[str]:
    """The table of ways."""
    ways = {PACKED, SEEING_ALL, *(way for way, _ in WAYS.values())}
    spent: dict[Way, list[float]] = {way: [] for way in sorted(ways, key=repr)}
    for turn in range(-1, TURNS):
        for way, taken in spent.items() if turn % 2 else reversed(spent.items()):
            now = seconds(partial(bench.step, way, batch, turn))
            taken += [now] if turn >= 0 else []  # the first turn only warms up
    yield "| way | seconds of a step | the packed fp32 step (s) | ratio, median (least to most) | held to |"
    yield "|---|---|---|---|---|"
    for name, (way, against) in WAYS.items():
        ratios = [one / other for one, other in zip(spent[way], spent[against], strict=True)]
        middle = statistics.median(ratios)
        held = f"at least {FASTER}: {'holds' if middle >= FASTER else 'FALLS SHORT'}" if way.dense else ""
        mine, theirs = (statistics.median(spent[one]) for one in (way, against))
        spread = f"**{middle:.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
        yield f"| {name} | {mine:.2f} | {theirs:.2f} | {spread} | {held} |"
    share = sgm_seconds(bench, batch) / statistics.median(spent[PACKED])
    verdict = "under" if share < SGM_SHARE else "ABOVE"
    yield f"\nSaliency-Guided Masking's share of the packed fp32 step: **{share:.2%}** ({verdict} {SGM_SHARE:.0%})."


def sgm_seconds(bench: Bench, batch: Batch) -> float:
    """Of a step: the subject tokens' attention rows in the teacher's last blocks, shares, lift and draws."""
    model, config = bench.recipe.model, bench.recipe.pretrain.organ_mask
    patches = {organ: int(np.prod(count)) for organ, count in bench.counts.items()}
    layout = pack(len(batch.subjects), batch.rows, {organ: patches[organ] for organ in batch.rows})
    block = bench.teacher.model.trunk.blocks[0].attention
    assert isinstance(block, SubjectAttention)
    tokens = torch.randn(layout.num_tokens, model.width, generator=torch.Generator().manual_seed(0))
    unturned = (torch.ones(layout.num_tokens, model.width // model.heads // 2),) * 2
    rows: list[float] = []
    with torch.no_grad():
        for turn in range(4 * TURNS):
            order = (True, False) if turn % 2 else (False, True)
            taken = {wanted: seconds(partial(block, tokens, layout, unturned, wanted)) for wanted in order}
            rows.append(taken[True] - taken[False])
        features = bench.teacher.model(batch.scans, batch.rows, len(batch.subjects), saliency_blocks=1)
    shares = [seconds(partial(_choose, bench, batch, features, repeat)) for repeat in range(10 * TURNS)]
    return config.saliency_blocks * statistics.median(rows) + statistics.median(shares)


def _choose(bench: Bench, batch: Batch, features: Features, repeat: int) -> Tensor:
    tokens = {organ: 1 + patches.shape[1] for organ, patches in features.patches.items()}
    saliency = saliency_of(features.attention, batch.rows, tokens, batch.organs, len(batch.subjects))
    return draw_organ_masks(saliency, bench.recipe.pretrain.organ_mask, draws_of(batch, repeat)[0])


# ---- memory, in a process of its own ------------------------------------------------------------------------------------

MEMORY_WAYS = {
    "packed, fp32": SEEING_ALL,
    "bf16": Way(rule=OrganMaskRule.none, precision=Precision.bf16),
    "checkpointing": Way(rule=OrganMaskRule.none, checkpointing=True),
    "bf16 and checkpointing": Way(rule=OrganMaskRule.none, precision=Precision.bf16, checkpointing=True),
    "in four parts": Way(rule=OrganMaskRule.none, accumulate=4),
}
MEMORY_SUBJECTS, ORGANS = 4, (1, 3, 5, 7)


def tokens_of(organs: int) -> int:
    """Of a batch whose subjects have that many."""
    return MEMORY_SUBJECTS * (1 + organs * (1 + (SIDE // 8) ** 3))


def resident_mb(what: str) -> float:
    """VmRSS (now) or VmHWM (the peak since it was last reset) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def measure_memory() -> None:
    """Print what each way takes at each number of organs, in MB, as JSON."""
    found: dict[str, list[float]] = {}
    bench = make_bench("small", "cpu")
    for name, way in MEMORY_WAYS.items():
        bench.step(way, make_batch([SEVEN_ORGANS] * 2), 0)  # the optimiser's moments are there, as in any later step
        found[name] = []
        for organs in ORGANS:
            batch = make_batch([SEVEN_ORGANS[:organs]] * MEMORY_SUBJECTS)
            bench.trained[way.checkpointing].optimiser.zero_grad(set_to_none=True)
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = resident_mb("VmRSS")
            bench.step(way, batch, 0)
            found[name].append(resident_mb("VmHWM") - before)
    print(json.dumps(found))


def memory() -> Iterator[str]:
    """The table of memory, and how straight its lines are."""
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    child = [sys.executable, __file__, "--measure-memory"]
    told = subprocess.run(child, env=settings, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[float]] = json.loads(told.splitlines()[-1])
    tokens = np.array([tokens_of(organs) for organs in ORGANS], dtype=float)
    columns = " | ".join(f"{int(count)} tokens (MB)" for count in tokens)
    yield f"| way | {columns} | KB a token | beside (MB) | largest residual | of the packed fp32 step, all organs |"
    yield "|---" * (len(ORGANS) + 5) + "|"
    for name, peaks in found.items():
        slope, beside = np.polyfit(tokens, peaks, 1)
        residual = float(np.abs(np.polyval((slope, beside), tokens) - peaks).max() / peaks[-1])
        cells = [name, *(f"{peak:.0f}" for peak in peaks), f"{1024 * slope:.0f}", f"{beside:.0f}"]
        cells += [f"**{residual:.1%}** of the peak", f"{peaks[-1] / found['packed, fp32'][-1]:.2f}"]
        yield "| " + " | ".join(cells) + " |"


# ---- a GPU --------------------------------------------------------------------------------------------------------------


def on_gpu(model: str, subjects: int, peak_tflops: float | None) -> Iterator[str]:
    """Steps in fp32 and bf16, without and with checkpointing: seconds, memory, and the share of the chip's bf16 rate."""
    name = torch.cuda.get_device_name()
    rate = 1e12 * peak_tflops if peak_tflops else next((r for part, r in RATES.items() if part in name), None)
    bench, batch = make_bench(model, "cuda"), make_batch(half_missing(subjects), "cuda")
    patches = {organ: int(np.prod(count)) for organ, count in bench.counts.items()}
    yield f"{name}, {provenance()}. Model {model}, {subjects} subjects, half of their organs missing.\n"
    yield "| precision | checkpointing | ms a step | peak memory (GB) | TFLOP a step | TFLOP/s | share of the bf16 rate |"
    yield "|---" * 7 + "|"
    for precision in (Precision.bf16, Precision.fp32):
        for checkpointing in (False, True):
            way = Way(precision=precision, checkpointing=checkpointing)
            torch.cuda.reset_peak_memory_stats()
            taken, flops = _gpu_steps(bench, way, batch, patches)
            memory_gb = torch.cuda.max_memory_allocated() / 1e9
            share = f"**{flops / taken / rate:.1%}**" if rate else "give --peak-tflops"
            cells = (precision.value, str(checkpointing).lower(), f"{1e3 * taken:.1f}", f"{memory_gb:.1f}")
            yield "| " + " | ".join((*cells, f"{flops / 1e12:.2f}", f"{flops / taken / 1e12:.0f}", share)) + " |"


def _gpu_steps(bench: Bench, way: Way, batch: Batch, patches: Mapping[str, int]) -> tuple[float, float]:
    """Median seconds of a step by the clock, and its mean products: masks differ from step to step."""
    taken: list[float] = []
    products: list[int] = []
    for repeat in range(-3, 4 * TURNS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        masks = bench.step(way, batch, repeat)
        torch.cuda.synchronize()
        if repeat >= 0 and masks is not None:  # the first three only warm up
            taken.append(time.perf_counter() - start)
            products.append(step_flops(bench.recipe.model, batch.presence, masks, patches, 2))
    return statistics.median(taken), statistics.mean(products)


def on_cpu() -> Iterator[str]:
    """All tables of a CPU."""
    torch.set_num_threads(1)
    yield f"# A training step\n\n{provenance()}.\n"
    what = f"{SUBJECTS} subjects, seven organs of {SIDE} voxels a side, half of them missing"
    yield f"Model small, {what}; one thread, {TURNS} turns, processor time.\n"
    yield from times(make_bench("small", "cpu"), make_batch(half_missing(SUBJECTS)))
    yield f"\nPeak memory of a step over what is held before it; {MEMORY_SUBJECTS} subjects, no organ masked:\n"
    yield from memory()


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--write", "--gpu", "--measure-memory"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--model", default="base")
    parser.add_argument("--subjects", type=int, default=256)
    parser.add_argument("--peak-tflops", type=float)
    asked = parser.parse_args()
    if asked.measure_memory:
        torch.set_num_threads(1)
        return measure_memory()
    lines: list[str] = []
    for line in on_gpu(asked.model, asked.subjects, asked.peak_tflops) if asked.gpu else on_cpu():
        lines.append(line)
        print(line, flush=True)
    if asked.write:
        (Path(__file__).parent / "step.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
