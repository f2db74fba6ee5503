"""AdamW's moments by parameter name, so that a site can carry them from one round to a later one.

They are named and kept like parameters, because groups come and go between rounds: what a site did not train last time starts
afresh. A moment of another shape than its parameter (the recipe has changed) is no moment of it.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

Moments = Mapping[str, Mapping[str, Tensor]]
"""Name of the moment (`exp_avg`, `exp_avg_sq`; `step` counts) -> parameter -> fp32 on the CPU."""

_LIKE_PARAMETER = ("exp_avg", "exp_avg_sq")
_NAMES = (*_LIKE_PARAMETER, "step")


def load_moments(optimiser: torch.optim.Optimizer, model: nn.Module, moments: Moments) -> None:
    """Let the optimiser go on from these moments; parameters for which not all of them fit start afresh."""
    for name, parameter in model.named_parameters():
        own = {moment: named[name] for moment, named in moments.items() if name in named}
        if own.keys() == set(_NAMES) and all(own[moment].shape == parameter.shape for moment in _LIKE_PARAMETER):
            optimiser.state[parameter] = {
                moment: tensor.to(parameter.device, torch.float32, copy=True) for moment, tensor in own.items()
            }


def moments_of(
    optimiser: torch.optim.Optimizer, model: nn.Module, names: Collection[str]
) -> dict[str, dict[str, Tensor]]:
    """The moments of these parameters, copied; parameters that took no step have none."""
    states = {name: optimiser.state.get(parameter) for name, parameter in model.named_parameters() if name in names}
    return {
        moment: {name: state[moment].detach().to("cpu", copy=True) for name, state in sorted(states.items()) if state}
        for moment in _NAMES
    }
