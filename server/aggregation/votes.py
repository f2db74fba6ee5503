"""What an accepted update is to the averaging: who sent it, how much it counts, and its deltas, read block by block.

Deltas may lie in memory or, as the coordinator spools them, on disk: the averaging never asks for more than one block at a
time of each site, so its memory does not grow with the model or with the number of sites.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from panfm.groups import group_of
from panfm.protocol import SiteUpdate

BLOCK = 32768
"""Elements of a block: a few of them in fp64 (256 kB each) stay in a processor core's second cache, and what it costs to call
torch is spread over enough of them. Base size, 16 sites: 16k took 1.5 times as long, 65k as long for the mean and longer for
the step."""


def block_size() -> int:
    """Elements to work on at a time: a block, or two for each thread when torch may use several.

    Torch shares a block among threads from twice `BLOCK` on. Base size, 16 sites, two threads: 131k took 0.7 times as long as one
    thread with `BLOCK`, 65k 0.8 times, and threads of Python that take blocks in turn 1.6 times, for they wait for each other.
    """
    threads = torch.get_num_threads()
    return BLOCK if threads == 1 else 2 * BLOCK * threads


class Deltas(Protocol):
    """The deltas of one update, by parameter name."""

    def names(self) -> Collection[str]:
        """Names of the parameters."""
        ...

    def shape(self, name: str) -> torch.Size:
        """Shape of one parameter's delta."""
        ...

    def block(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start to stop of one delta in row-major order: fp32, 1-D, on the CPU, not to be written to."""
        ...


@dataclass(frozen=True, slots=True)
class DeltasInMemory:
    """Deltas that are tensors already."""

    tensors: Mapping[str, Tensor]

    def names(self) -> Collection[str]:
        """Names of the parameters."""
        return self.tensors.keys()

    def shape(self, name: str) -> torch.Size:
        """Shape of one parameter's delta."""
        return self.tensors[name].shape

    def block(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start to stop of one delta in row-major order."""
        return self.tensors[name].reshape(-1).narrow(0, start, stop - start).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """An accepted update of one site."""

    site: str
    deltas: Deltas
    num_subjects: int
    organ_subjects: Mapping[str, int]
    num_steps: int


def num_elements(deltas: Deltas, name: str) -> int:
    """Elements of one parameter's delta."""
    return prod(deltas.shape(name))


def names_of(deltas: Deltas, group: str) -> list[str]:
    """Names of one group's parameters, sorted."""
    return sorted(name for name in deltas.names() if group_of(name) == group)


def spans(num_elements: int, size: int = BLOCK) -> Iterator[tuple[int, int]]:
    """(start, stop) of the blocks of a tensor with so many elements."""
    return ((start, min(start + size, num_elements)) for start in range(0, num_elements, size))


def vote_of(update: SiteUpdate, deltas: Deltas | None = None) -> Vote:
    """An accepted update as a vote; its deltas are those in memory, unless they are given."""
    return Vote(
        site=update.site,
        deltas=DeltasInMemory(update.deltas) if deltas is None else deltas,
        num_subjects=update.num_subjects,
        organ_subjects=update.organ_subjects,
        num_steps=update.num_steps,
    )
