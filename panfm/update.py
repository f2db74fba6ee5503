"""Algebra on named tensors: what a site sends and what the coordinator averages, without a model around it.

Names are module paths; every function leaves its inputs unchanged and walks names in sorted order, so that neither
arrival order nor dictionary order can change a bit.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def subtract(left: Tensors, right: Tensors) -> dict[str, Tensor]:
    """Left minus right, name by name.

    Raises: ValueError when the names differ.
    """
    if left.keys() != right.keys():
        raise ValueError(f"names differ: {sorted(set(left) ^ set(right))[:3]}")
    return {name: left[name] - right[name] for name in sorted(left)}


def add(left: Tensors, right: Tensors) -> dict[str, Tensor]:
    """Left plus right, name by name; names of `left` that `right` lacks stay as they are (bit for bit, cloned).

    Raises: ValueError when `right` holds a name that `left` lacks.
    """
    if unknown := sorted(right.keys() - left.keys()):
        raise ValueError(f"nothing to add {unknown[:3]} to")
    return {name: left[name] + right[name] if name in right else left[name].clone() for name in sorted(left)}


def norm(tensors: Tensors) -> float:
    """L2 norm over all elements, accumulated in fp64."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for _, tensor in sorted(tensors.items())))


def clone(tensors: Tensors) -> dict[str, Tensor]:
    """Detached copies on the CPU, in sorted order of names."""
    return {name: tensors[name].detach().to("cpu", copy=True).contiguous() for name in sorted(tensors)}


def digest(tensors: Tensors) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes, in sorted order of names."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        # JSON says itself where it ends, so no name can pass for part of another tensor.
        hasher.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
