"""Subjects with the organs that they have, as batches: ragged, nothing imputed, nothing padded.

A subject is one example, whatever its visits and organs. What is drawn at random for a subject comes from that
subject's own generator, so a batch does not depend on who else is in it.
Legend: B subjects in the batch, O organs of the vocabulary, n_o subjects that have organ o, XYZ voxels (RAS+).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from panfm.config import OrganGrid, Spacing
from panfm.data.native import Crop, crop_shape
from panfm.data.native_batch import NativeVolumes, collate_native, stacked
from panfm.data.store import PreparedStore, StoreEntry
from panfm.errors import DataError, ScanError
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
    """For the same organs, native ones excepted: their volumes, float32 [n_o, X, Y, Z], in the order of `rows`."""
    native: dict[str, NativeVolumes] = field(default_factory=dict)
    """The same for organs whose scans keep their own voxels, and so have crops of several shapes."""

    @property
    def scans(self) -> dict[str, Tensor | NativeVolumes]:
        """`volumes` and `native` together: what a model takes."""
        return {**self.volumes, **self.native}

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
        native = {organ: volumes.to(device) for organ, volumes in self.native.items()}
        return Batch(self.subjects, self.organs, rows, volumes, native)


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedScan:
    """A stored scan that training had to do without; it is named to the site and to nobody else."""

    subject: str
    visit: str
    organ: str
    reason: str
    """One line for the people of the site."""


class SubjectDataset:
    """The subjects of a prepared store, by index, in the order of their names.

    A scan whose file is missing or not the one that was prepared is dropped where a batch is drawn at random, as in
    training, and named in `dropped`; its subject goes on with the other organs. A batch without generators holds all that
    was asked for, or is refused: a table of results must not lose a row unseen.
    """

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
        self._grids = {organ: grids[organ] for organ in self.organs}
        self._scans = _scans_by_subject(store.entries, self.organs, split)
        self._dropped: dict[str, DroppedScan] = {}
        self.subjects: tuple[str, ...] = tuple(sorted(self._scans))
        _refuse_empty(self.subjects, store, self.organs, split)
        for entry in (entry for scans in self._scans.values() for visits in scans.values() for entry in visits):
            _refuse_other_grid(entry, grids[entry.organ])

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def organs_of(self) -> tuple[frozenset[str], ...]:
        """The organs of each subject, in the order of `subjects`; those whose every scan was dropped are not in it."""
        return tuple(
            frozenset(organ for organ, visits in self._scans[subject].items() if self._is_left(visits))
            for subject in self.subjects
        )

    @property
    def num_subjects(self) -> dict[str, int]:
        """Subjects that have each organ (not scans, not visits); organs that nobody has are not in it."""
        organs_of = self.organs_of  # looked for anew each time, as scans may be dropped meanwhile
        counts = {organ: sum(organ in held for held in organs_of) for organ in self.organs}
        return {organ: count for organ, count in counts.items() if count}

    @property
    def dropped(self) -> tuple[DroppedScan, ...]:
        """The scans that were dropped so far, by subject, visit and organ."""
        return tuple(sorted(self._dropped.values(), key=lambda scan: (scan.subject, scan.visit, scan.organ)))

    def batch(
        self,
        indices: Sequence[int],
        generators: Sequence[np.random.Generator] | None = None,
        shift_voxels: int = 0,
    ) -> Batch:
        """Read some subjects; several threads may do so at once.

        Args:
            indices: which subjects, in the order in which they shall stand in the batch.
            generators: one per index: it picks the subject's visit and a shift for each organ. None: the first visit
                and the centre of the stored volume.
            shift_voxels: largest shift along each axis, at most the stored margin; of a native organ in its own voxels.
        Raises: DataError when the margin is too small, or, without generators, when a scan's file is missing or changed
            since it was prepared; with generators such a scan is dropped, and a subject without any other is not in the
            batch.
        """
        names = [self.subjects[index] for index in indices]
        if generators is None:
            crops = [
                {organ: self._crop(visits[0], (0, 0, 0)) for organ, visits in self._scans[name].items()}
                for name in names
            ]
        else:
            pairs = zip(names, generators, strict=True)
            crops = [self._drawn(self._scans[name], generator, shift_voxels) for name, generator in pairs]
        held = [(name, own) for name, own in zip(names, crops, strict=True) if own]
        return _collate(tuple(name for name, _ in held), self._grids, [own for _, own in held])

    def _drawn(
        self, scans: dict[str, list[StoreEntry]], generator: np.random.Generator, shift_voxels: int
    ) -> dict[str, Crop]:
        """One number picks the visit of every organ, so that organs imaged together come together.

        A shift is drawn for dropped scans too: what a subject gets does not depend on when a scan was found changed.
        """
        share = generator.random()
        crops = {}
        for organ, visits in scans.items():
            shift = generator.integers(-shift_voxels, shift_voxels + 1, size=3).tolist()
            first = int(share * len(visits))
            crop = self._first_sound([*visits[first:], *visits[:first]], shift)
            if crop is not None:
                crops[organ] = crop
        return crops

    def _first_sound(self, visits: Sequence[StoreEntry], shift_XYZ: Sequence[int]) -> Crop | None:
        """The first of these scans that can be read; those before it are dropped."""
        for entry in visits:
            if entry.file not in self._dropped:
                try:
                    return self._crop(entry, shift_XYZ)
                except ScanError as error:
                    self._dropped[entry.file] = DroppedScan(
                        subject=entry.subject, visit=entry.visit, organ=entry.organ, reason=str(error)
                    )
        return None

    def _is_left(self, visits: Sequence[StoreEntry]) -> bool:
        return any(entry.file not in self._dropped for entry in visits)

    def _crop(self, entry: StoreEntry, shift_XYZ: Sequence[int]) -> Crop:
        shape = crop_shape(self._grids[entry.organ], entry.spacing_mm)
        sides = zip(entry.shape, shape, shift_XYZ, strict=True)
        start = [(stored - seen) // 2 + shift for stored, seen, shift in sides]
        return Crop(self._store.view(entry, start, shape), entry.spacing_mm)


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
    shape = crop_shape(grid, entry.spacing_mm)
    native = grid.spacing is Spacing.native
    fits = all(stored >= seen for stored, seen in zip(entry.shape, shape, strict=True))
    same = entry.native if native else not entry.native and list(entry.spacing_mm) == list(grid.spacing_mm)
    if not (fits and same):
        raise DataError(
            f"{entry.subject} / {entry.organ} is stored as {list(entry.shape)} voxels of {list(entry.spacing_mm)} mm"
            f"{' in its own spacing' if entry.native else ''}, the study wants {list(shape)} of "
            f"{'its own spacing' if native else f'{list(grid.spacing_mm)} mm'}; prepare the store again"
        )


def _collate(subjects: tuple[str, ...], grids: Mapping[str, OrganGrid], crops: Sequence[Mapping[str, Crop]]) -> Batch:
    held = {organ: [row for row, crop in enumerate(crops) if organ in crop] for organ in grids}
    held = {organ: rows for organ, rows in held.items() if rows}
    native = [organ for organ in held if grids[organ].spacing is Spacing.native]
    return Batch(
        subjects=subjects,
        organs=tuple(grids),
        rows={organ: torch.tensor(rows, dtype=torch.int64) for organ, rows in held.items()},
        volumes={
            organ: stacked([crops[row][organ] for row in rows]) for organ, rows in held.items() if organ not in native
        },
        native={o: collate_native([crops[row][o] for row in held[o]], grids[o].max_degree) for o in native},
    )
