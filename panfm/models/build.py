"""ModelConfig -> module, with every initial value a function of (seed, the parameter's name) alone.

So the coordinator and every site build the same start from a seed, whatever organs each holds, and adding an organ to a
study moves no other number.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from panfm.config import ModelConfig, OrganGrid
from panfm.errors import CheckpointError
from panfm.models.pan_organ import PanOrganModel
from panfm.randomness import stream


def build_model(config: ModelConfig, grids: Mapping[str, OrganGrid], checkpointing: bool = False) -> PanOrganModel:
    """The model for these organs with undefined parameters; `load_parameters` gives it values.

    It is laid out on the meta device first, so that torch's own initialisation neither runs nor touches a global stream.
    """
    with torch.device("meta"):
        model = PanOrganModel(config, grids, checkpointing)
    return model.to_empty(device="cpu")


def initial_parameters(config: ModelConfig, grids: Mapping[str, OrganGrid], seed: int) -> dict[str, Tensor]:
    """Initial values, fp32, by name in sorted order.

    Matrices are Xavier-uniform, tokens and queries normal with deviation 0.02, biases 0, norms 1 and 0, and the last
    map of an adapter or a predictor 0, as are the centres of a prototype head.
    """
    shapes = parameter_shapes(config, grids)
    return {name: _initial(name, tuple(shape), seed) for name, shape in shapes.items()}


def parameter_shapes(config: ModelConfig, grids: Mapping[str, OrganGrid]) -> dict[str, torch.Size]:
    """Shape of each parameter, by name in sorted order; nothing is allocated."""
    with torch.device("meta"):
        named = dict(PanOrganModel(config, grids).named_parameters())
    return {name: named[name].shape for name in sorted(named)}


def load_parameters(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Copy values into the model.

    Raises: CheckpointError when a name or a shape differs.
    """
    own = dict(model.named_parameters())
    if own.keys() != parameters.keys():
        name = min(own.keys() ^ parameters.keys())
        raise CheckpointError(
            f"the parameters do not fit the model: {name} is on one side only; check model and organs"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != parameters[name].shape:
                got, expected = tuple(parameters[name].shape), tuple(parameter.shape)
                raise CheckpointError(
                    f"{name} should have shape {expected}, got {got}; check the model's size and grids"
                )
            parameter.copy_(parameters[name])


def _initial(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    draws = stream(seed, "initial parameters", name)
    *path, module, kind = name.split(".")
    is_predictor = path[:1] == ["heads"] and path[-1].endswith("_predictor")
    starts_at_zero = (".adapters." in name and module == "up") or (is_predictor and module == "out")
    if kind == "bias" or kind.endswith("_centre") or starts_at_zero:
        return torch.zeros(shape)
    if kind == "weight" and len(shape) == 1:
        return torch.ones(shape)
    if kind == "weight":
        outputs, inputs = shape[0], int(np.prod(shape[1:]))
        bound = (6.0 / (inputs + outputs)) ** 0.5
        return torch.from_numpy(draws.uniform(-bound, bound, shape).astype(np.float32))
    return torch.from_numpy((0.02 * draws.standard_normal(shape)).astype(np.float32))
