"""Activation checkpointing: of a block its input is kept, and what lies within is computed again when gradients ask for it.

It trades a second forward pass of the blocks for memory: kept are the tokens between blocks, not all that a block makes of them.
Nothing in a block is drawn at random, so the second time gives the bits of the first.
Source: Chen et al. 2016, arXiv:1604.06174.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import torch
from torch.utils.checkpoint import checkpoint

Args = TypeVarTuple("Args")
R = TypeVar("R")


def recomputed(wanted: bool, compute: Callable[[*Args], R], *args: *Args) -> R:
    """compute(*args); where it is wanted, and there will be gradients, its activations are not kept but computed again."""
    if not (wanted and torch.is_grad_enabled()):
        return compute(*args)
    result: R = checkpoint(compute, *args, use_reentrant=False, preserve_rng_state=False)
    return result
