"""A well-formed answer to start from, so that each test states only what matters to it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from torch import Tensor

from panfm.protocol import SiteUpdate, TrainMetrics


def _metrics(organs: Mapping[str, int]) -> TrainMetrics:
    ones = dict.fromkeys(organs, 1.0)
    return TrainMetrics(
        loss=0.5,
        loss_patch=0.4,
        loss_organ=None,
        collapse_loss=0.6,
        gradient_norm=1.0,
        share=ones,
        lift=ones,
        masked_rate=ones,
        share_entropy=None,
        effective_rank=ones,
        spread=ones,
        seconds=1.0,
    )


def _make_update(
    site: str, deltas: dict[str, Tensor], organ_subjects: dict[str, int], num_subjects: int = 0, num_steps: int = 4
) -> SiteUpdate:
    return SiteUpdate(
        run="run",
        round=3,
        site=site,
        task_digest="ab" * 32,
        deltas=deltas,
        num_subjects=num_subjects or max(organ_subjects.values(), default=1),
        organ_subjects=organ_subjects,
        num_steps=num_steps,
        metrics=_metrics(organ_subjects),
    )


@pytest.fixture(scope="session")
def make_update() -> Callable[..., SiteUpdate]:
    """(site, deltas, organ_subjects, num_subjects=most of the organs' counts, num_steps=4) -> SiteUpdate."""
    return _make_update
