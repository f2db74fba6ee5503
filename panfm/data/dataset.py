"""Subjects with the organs that they have, as batches: ragged, nothing imputed, nothing padded.

A subject is one example, whatever its visits and organs. What is drawn at random for a subject comes from that
subject's own generator, so a batch does not depend on who else is in it.
Legend: B subjects in the batch, O organs of the vocabulary, n_o subjects that have organ o, XYZ voxels (RAS+).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panfm.config import OrganGrid
from panfm.data.store import PreparedStore, StoreEntry
from panfm.errors import DataError
from panfm.organs import check_organ_names


@dataclass(frozen=True, slots=True)
class Batch:
    """Some subjects with all organs that they have."""

    subjects: tuple[str, ...]
    organs: tuple[str, ...]
    """The vocabulary that was asked for, in its order, present or not."""
    rows: dict[str, Tensor]
    """For each organ that anybody has: rows of the batch that have it, int64 [n_o], ascending."""
    volumes: dict[str, Tensor]
    """For the same organs: their volumes, float32 [n_o, X, Y, Z], in the order of `rows`."""

    @property
    def presence(self) -> Tensor:
        """Which subject has which organ, bool [B, O], on the volumes' device."""
        device = next(iter(self.rows.values())).device if self.rows else torch.device("cpu")
        present = torch.zeros(len(self.subjects), len(self.organs), dtype=torch.bool, device=device)
        for column, organ in enumerate(self.organs):
            if organ in self.rows:
                present[self.rows[organ], column] = True
        return present

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        rows = {organ: rows.to(device) for organ, rows in self.rows.items()}
        volumes = {organ: volumes.to(device) for organ, volumes in self.volumes.items()}
        return Batch(self.subjects, self.organs, rows, volumes)


class SubjectDataset:
    """The subjects of a prepared store, by index, in the order of their names."""

    def __init__(
        self,
        store: PreparedStore,
        organs: Sequence[str],
        grids: Mapping[str, OrganGrid],
        split: str | None = None,
    ) -> None:
        """Index the store.

        Args:
            store: an open prepared store.
            organs: organs to read, in the order of the vocabulary; others in the store are left alone.
            grids: grid of each organ; what the model sees of the stored volume.
            split: read this split only; None reads all.
        Raises: DataError when nobody is left, or the store was prepared for other grids.
        """
        self._store = store
        self.organs = check_organ_names(organs)
        self._shapes = {organ: tuple(grids[organ].shape) for organ in self.organs}
        self._scans = _scans_by_subject(store.entries, self.organs, split)
        self.subjects: tuple[str, ...] = tuple(sorted(self._scans))
        _refuse_empty(self.subjects, store, self.organs, split)
        for entry in (entry for scans in self._scans.values() for visits in scans.values() for entry in visits):
            _refuse_other_grid(entry, grids[entry.organ])

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def num_subjects(self) -> dict[str, int]:
        """Subjects that have each organ (not scans, not visits); organs that nobody has are not in it."""
        counts = {organ: sum(organ in scans for scans in self._scans.values()) for organ in self.organs}
        return {organ: count for organ, count in counts.items() if count}

    def batch(
        self,
        indices: Sequence[int],
        generators: Sequence[np.random.Generator] | None = None,
        shift_voxels: int = 0,
    ) -> Batch:
        """Read some subjects.

        Args:
            indices: which subjects, in the order in which they shall stand in the batch.
            generators: one per index: it picks the subject's visit and a shift for each organ. None: the first visit
                and the centre of the stored volume.
            shift_voxels: largest shift along each axis, at most the stored margin.
        Raises: DataError when a scan's file changed since it was prepared, or the margin is too small.
        """
        chosen = [self._scans[self.subjects[index]] for index in indices]
        if generators is None:
            crops = [{organ: self._crop(visits[0], (0, 0, 0)) for organ, visits in scans.items()} for scans in chosen]
        else:
            pairs = zip(chosen, generators, strict=True)
            crops = [self._drawn(scans, generator, shift_voxels) for scans, generator in pairs]
        return _collate(tuple(self.subjects[index] for index in indices), self.organs, crops)

    def _drawn(
        self, scans: dict[str, list[StoreEntry]], generator: np.random.Generator, shift_voxels: int
    ) -> dict[str, NDArray[np.float32]]:
        """One number picks the visit of every organ, so that organs imaged together come together."""
        share = generator.random()
        crops = {}
        for organ, visits in scans.items():
            shift = generator.integers(-shift_voxels, shift_voxels + 1, size=3)
            crops[organ] = self._crop(visits[int(share * len(visits))], shift.tolist())
        return crops

    def _crop(self, entry: StoreEntry, shift_XYZ: Sequence[int]) -> NDArray[np.float32]:
        shape = self._shapes[entry.organ]
        sides = zip(entry.shape, shape, shift_XYZ, strict=True)
        return self._store.crop(entry, [(stored - seen) // 2 + shift for stored, seen, shift in sides], shape)


def batch_indices(
    num_subjects: int, batch_size: int, num_steps: int, generator: np.random.Generator
) -> list[list[int]]:
    """Subjects of each step: pass after pass over all of them, newly shuffled, nobody twice in one batch.

    Args:
        num_subjects: subjects of the dataset, at least 1.
        batch_size: subjects a step; with fewer subjects, all of them.
        num_steps: batches to return.
        generator: shuffles the passes.
    """
    size = min(batch_size, num_subjects)
    waiting: list[int] = []
    batches = []
    for _ in range(num_steps):
        batch, waiting = waiting[:size], waiting[size:]
        if len(batch) < size:
            # The pass ends inside this batch: those it already holds wait for a later batch of the new pass.
            shuffled = [int(index) for index in generator.permutation(num_subjects)]
            fresh = [index for index in shuffled if index not in batch][: size - len(batch)]
            waiting = [index for index in shuffled if index not in fresh]
            batch += fresh
        batches.append(batch)
    return batches


def _scans_by_subject(
    entries: Sequence[StoreEntry], organs: Sequence[str], split: str | None
) -> dict[str, dict[str, list[StoreEntry]]]:
    """Subject -> organ, in the order of the vocabulary -> scans, by visit."""
    rank = {organ: place for place, organ in enumerate(organs)}
    wanted = [entry for entry in entries if entry.organ in rank and split in (None, entry.split)]
    scans: dict[str, dict[str, list[StoreEntry]]] = {}
    for entry in sorted(wanted, key=lambda entry: (rank[entry.organ], entry.visit)):
        scans.setdefault(entry.subject, {}).setdefault(entry.organ, []).append(entry)
    return scans


def _refuse_empty(subjects: Sequence[str], store: PreparedStore, organs: Sequence[str], split: str | None) -> None:
    if not subjects:
        which = "" if split is None else f" in split {split!r}"
        raise DataError(f"nobody{which} has any of {', '.join(organs)} in {store.folder}; check its tables and organs")


def _refuse_other_grid(entry: StoreEntry, grid: OrganGrid) -> None:
    fits = all(stored >= seen for stored, seen in zip(entry.shape, grid.shape, strict=True))
    if not (fits and list(entry.spacing_mm) == list(grid.spacing_mm)):
        raise DataError(
            f"{entry.subject} / {entry.organ} is stored as {list(entry.shape)} voxels of {list(entry.spacing_mm)} mm, "
            f"the study wants {list(grid.shape)} of {list(grid.spacing_mm)} mm; prepare the store again"
        )


def _collate(
    subjects: tuple[str, ...], organs: tuple[str, ...], crops: Sequence[Mapping[str, NDArray[np.float32]]]
) -> Batch:
    held = {organ: [row for row, crop in enumerate(crops) if organ in crop] for organ in organs}
    held = {organ: rows for organ, rows in held.items() if rows}
    return Batch(
        subjects=subjects,
        organs=organs,
        rows={organ: torch.tensor(rows, dtype=torch.int64) for organ, rows in held.items()},
        volumes={o: torch.from_numpy(np.stack([crops[row][o] for row in rows])) for o, rows in held.items()},
    )
