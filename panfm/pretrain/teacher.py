"""The EMA teacher: the only owner of that state during a round.

It starts from the task's teacher and is thrown away at the end of the round: the site keeps none of its own.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from panfm.models.build import load_parameters
from panfm.models.pan_organ import PanOrganModel


class Teacher:
    """A model that follows the student and is never trained."""

    def __init__(self, model: PanOrganModel, parameters: Mapping[str, Tensor]) -> None:
        load_parameters(model, parameters)
        self.model = model.requires_grad_(False).eval()
        self._values: list[Tensor] = [parameter for _, parameter in sorted(model.named_parameters())]

    @torch.no_grad()
    def follow(self, student: PanOrganModel, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student."""
        values = [parameter.detach() for _, parameter in sorted(student.named_parameters())]
        torch._foreach_lerp_(self._values, values, 1 - momentum)
