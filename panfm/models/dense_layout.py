"""Where tokens lie when every subject takes the same places, whatever organs it has: what training with privacy needs.

A subject's tokens are [subject token, then for each organ its organ token and patch tokens], L of them for everybody, in the
same places. Absent organs take their places too, and attention is told not to look at them. Dimension 0 is then the subject
in every layer, so that gradients can be told apart subject by subject, which the packed layout (`layout`) does not allow.
Legend: B subjects, L tokens, O organs.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseLayout:
    """The places of the tokens of any subject."""

    spans: dict[str, slice]
    """organ -> its 1 + T tokens, organ token first; in the order of the columns of presence."""
    length: int
    """L"""

    @classmethod
    def of(cls, patches: Mapping[str, int]) -> DenseLayout:
        """From the number of patches of each organ."""
        spans, start = {}, 1
        for organ, count in patches.items():
            spans[organ] = slice(start, start + 1 + count)
            start += 1 + count
        return cls(spans=spans, length=start)

    @property
    def organ_tokens(self) -> list[int]:
        """Places of the organ tokens, one for each organ."""
        return [span.start for span in self.spans.values()]

    def columns(self, device: torch.device | None = None) -> Tensor:
        """Which organ each token is of: fp32 [L, O] of zeros and ones; the subject token is of none."""
        member = torch.zeros(self.length, len(self.spans), device=device)
        for column, span in enumerate(self.spans.values()):
            member[span, column] = 1.0
        return member

    def keys(self, visible: Tensor) -> Tensor:
        """Which tokens may be attended to, bool [B, L], from which organs are, bool [B, O]; the subject token always."""
        always = torch.ones(len(visible), 1, dtype=torch.bool, device=visible.device)
        organs = [
            visible[:, place : place + 1].expand(-1, span.stop - span.start)
            for place, span in enumerate(self.spans.values())
        ]
        return torch.cat([always, *organs], dim=1)
