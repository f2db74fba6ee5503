"""The exported model in use: raw scans of any non-empty set of organs in, embeddings out. `panfm.load(folder)` opens one.

A scan goes through the very steps that its hospital's scans went through before training (`panfm.data.prepare`), with the grids
and settings of the model's own recipe, and the teacher encodes it. Nothing is imputed for an organ that is not given.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panfm.config import OrganGrid, PrepareConfig, Spacing
from panfm.data.manifest import ScanRow, VoxelBox
from panfm.data.native import Crop, crop_shape
from panfm.data.native_batch import NativeVolumes, collate_native, stacked
from panfm.data.prepare import prepare_native, prepare_scan
from panfm.errors import DataError
from panfm.evaluation.embedding import subject_embedding
from panfm.export.model_folder import ModelCard, ModelFolder, read_model
from panfm.models.build import build_model, load_parameters
from panfm.models.device import check_device
from panfm.models.pan_organ import Features, PanOrganModel
from panfm.organs import in_order


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganScan:
    """A scan that shows more than its organ, and where the organ is in it; the fields are those of `scans.csv`."""

    path: Path | str
    volume: int | None = None
    """Which volume of a 4D file, counted from 0."""
    label_map: tuple[Path | str, ...] = ()
    label_ids: tuple[int, ...] = ()
    """Labels that are the organ; empty: every non-zero voxel."""
    box: VoxelBox | None = None
    window: tuple[float, float] | None = None


Scan = Path | str | OrganScan
"""A file that shows its organ alone, or more about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganEmbedding:
    """What the model says of one organ; each [E], float32."""

    token: NDArray[np.float32]
    """The organ token."""
    mean: NDArray[np.float32]
    """Mean of the patch tokens."""
    deviation: NDArray[np.float32]
    """Standard deviation of the patch tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectEmbedding:
    """What the model says of one subject."""

    subject: NDArray[np.float32]
    """[3E]: the subject token, then the mean over the organs of their patch tokens' mean and deviation. What probes are given."""
    organs: dict[str, OrganEmbedding]
    attention_share: dict[str, float]
    """The subject token's attention to each organ, among the organs given; sums to 1."""


class FrozenModel:
    """A model for use; it is not trained any more."""

    def __init__(self, folder: ModelFolder, device: str = "cpu") -> None:
        """Put the teacher of an exported model on a device, such as "cpu" or "cuda"."""
        self.card: ModelCard = folder.card
        self.recipe = folder.recipe
        self._device = device
        self._model: PanOrganModel = build_model(folder.recipe.model, folder.recipe.organs).to(device).eval()
        load_parameters(self._model, folder.teacher)

    @property
    def organs(self) -> tuple[str, ...]:
        """Organs that the model knows, in its order."""
        return tuple(self.recipe.organs)

    @torch.inference_mode()
    def embed(self, scans: Mapping[str, Scan]) -> SubjectEmbedding:
        """Embed one subject.

        Args:
            scans: organ -> a NIfTI file or the folder of a DICOM series; at least one organ.
        Raises: DataError when no organ is given, one is unknown to the model, or a scan cannot be used.
        """
        organs = self._known(scans)
        rows = {organ: torch.zeros(1, dtype=torch.int64, device=self._device) for organ in organs}
        volumes = {organ: self._volumes(organ, scans[organ]) for organ in organs}
        blocks = self.recipe.pretrain.organ_mask.saliency_blocks
        features = self._model(volumes, rows, 1, saliency_blocks=min(blocks, self.recipe.model.depth))
        return _told(features, rows)

    def _known(self, scans: Mapping[str, Scan]) -> tuple[str, ...]:
        known = ", ".join(self.organs)
        if not scans:
            raise DataError(f"no scan was given; give at least one of {known}")
        if unknown := sorted(scans.keys() - set(self.organs)):
            raise DataError(f"the model does not know {', '.join(unknown)}; it knows {known}")
        return in_order(tuple(scans), self.organs)

    def _volumes(self, organ: str, scan: Scan) -> Tensor | NativeVolumes:
        grid, prepare = self.recipe.organs[organ], self.recipe.prepare
        crop = _prepared(_row(organ, scan), grid, prepare)
        if grid.spacing is Spacing.native:
            return collate_native([crop], grid.max_degree).to(self._device)
        return stacked([crop]).to(self._device)


def load(folder: Path | str, device: str = "cpu") -> FrozenModel:
    """The exported model in a folder, ready to embed scans.

    Raises: ConfigError when this machine has no such device; CheckpointError when there is no model, or it is damaged or of a
        newer panfm.
    """
    check_device(device)
    return FrozenModel(read_model(Path(folder)), device)


def _row(organ: str, scan: Scan) -> ScanRow:
    given = scan if isinstance(scan, OrganScan) else OrganScan(path=scan)
    path = Path(given.path)
    if not path.exists():
        raise DataError(f"{organ}: no scan at {path}; name a NIfTI file or the folder of a DICOM series")
    return ScanRow(
        subject=organ,  # nobody is named: what goes wrong is told by the organ
        organ=organ,
        path=path,
        volume=given.volume,
        label_map=tuple(Path(label_map) for label_map in given.label_map),
        label_ids=given.label_ids,
        box=given.box,
        window=given.window,
    )


def _prepared(row: ScanRow, grid: OrganGrid, prepare: PrepareConfig) -> Crop:
    """The centre of the scan as it would stand in a site's store, cut to what the model sees."""
    if grid.spacing is Spacing.native:
        crop = prepare_native(row, grid, prepare)
    else:
        millimetres = (grid.spacing_mm[0], grid.spacing_mm[1], grid.spacing_mm[2])
        crop = Crop(prepare_scan(row, grid, prepare), millimetres)
    shape = crop_shape(grid, crop.spacing_mm)
    start = [(stored - seen) // 2 for stored, seen in zip(crop.voxels.shape, shape, strict=True)]
    x, y, z = (slice(first, first + side) for first, side in zip(start, shape, strict=True))
    return Crop(
        crop.voxels[x, y, z].astype(np.float16), crop.spacing_mm
    )  # the precision of the stores it was trained on


def _told(features: Features, rows: Mapping[str, Tensor]) -> SubjectEmbedding:
    attention = {organ: float(mass[0]) for organ, mass in features.attention.items()}
    total = sum(attention.values())
    return SubjectEmbedding(
        subject=_vector(subject_embedding(features, rows)[0]),
        organs={
            organ: OrganEmbedding(
                token=_vector(features.organ[organ][0]),
                mean=_vector(patches[0].mean(0)),
                deviation=_vector(patches[0].std(0, unbiased=False)),
            )
            for organ, patches in features.patches.items()
        },
        attention_share={organ: mass / total if total else 1 / len(attention) for organ, mass in attention.items()},
    )


def _vector(tensor: Tensor) -> NDArray[np.float32]:
    vector: NDArray[np.float32] = tensor.float().cpu().numpy()
    return vector
