"""The formula is what torch counts when it takes a step."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import step_flops
from panfm.config import LossWeights, ModelConfig, OrganGrid, OrganMaskConfig, OrganMaskRule, PatchMaskConfig
from panfm.data.dataset import Batch
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.pretrain.step import draw_masks, patch_counts, step_loss, teacher_view
from panfm.randomness import stream

GRIDS = {"brain": OrganGrid(shape=[8, 8, 8]), "heart": OrganGrid(shape=[8, 4, 8]), "liver": OrganGrid(shape=[4, 4, 8])}
MODEL = ModelConfig(width=24, depth=3, heads=2, mlp_ratio=2.5, adapter_width=4, predictor_width=20, patch=4)
HELD = {"brain": [0, 1, 3], "heart": [1, 2], "liver": [0, 1]}
"""Subject 2 has a heart alone, subject 3 a brain."""


@pytest.mark.parametrize("rule", [OrganMaskRule.none, OrganMaskRule.uniform])
def test_a_step_takes_what_torch_counts(rule: OrganMaskRule) -> None:
    """Attention by matrix products that torch can see: of the fused kernel for CPUs it knows no count."""
    student, teacher = (build_model(MODEL, GRIDS) for _ in range(2))
    noise = torch.Generator().manual_seed(0)
    for model in (student, teacher):
        load_parameters(model, initial_parameters(MODEL, GRIDS, 0))
    teacher.requires_grad_(False)
    batch = Batch(
        tuple("abcd"),
        tuple(GRIDS),
        {organ: torch.tensor(rows) for organ, rows in HELD.items()},
        {organ: torch.randn(len(HELD[organ]), *grid.shape, generator=noise) for organ, grid in GRIDS.items()},
    )
    counts = {organ: patch_counts(grid, MODEL.patch) for organ, grid in GRIDS.items()}
    draws = [[stream(3, name, what) for name in batch.subjects] for what in ("organs", "patches")]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        target, saliency = teacher_view(teacher, batch, 2)
        masks = draw_masks(batch, saliency, counts, OrganMaskConfig(rule=rule, rate=0.6), PatchMaskConfig(), *draws)
        torch.autograd.backward(step_loss(student, batch, target, masks, LossWeights()).total)
    assert bool(masks.organs.any()) == (rule is OrganMaskRule.uniform)
    patches = {"brain": 8, "heart": 4, "liver": 2}
    assert step_flops(MODEL, batch.presence, masks, patches, 2) == counter.get_total_flops()
