"""The checks that a scan must pass before it may count, each a small function from facts to findings.

nibabel opens most broken files without a word, so the project looks for itself. A finding carries a stable code, for
tables and tests, its severity, and one line for the person who must mend the file. A check never reads a disk: the
readers do. Rule for what is repaired and what is refused: what the file still says without a doubt is repaired, and
said; what would have to be guessed (an orientation, a unit, a missing byte) is refused.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from panfm.data.geometry import Affine, same_grid
from panfm.errors import ScanError

FEWEST_VOXELS = 4
"""Least voxels along each axis: half a patch of the smallest model, and below any stack that shows an organ (the thinnest
cine stacks have six slices)."""
PLAUSIBLE_SPACING_MM = (0.05, 50.0)
"""Finer than the finest clinical scanner (0.06 mm, HR-pQCT) or coarser than the slices of any scout: another unit."""
LONGEST_SIDE_MM = 3000.0
"""Longer than any table moves: another unit, or a damaged spacing."""
_STEEPEST_TILT_DEG = 45.0
"""CT gantries tilt by 30 degrees at most; twice as much is a damaged matrix."""
_UPRIGHT_DEG = 0.1
"""Headers in float32 lean by less than this."""
_SAME_SPACING = 0.01
"""Relative difference of two spacings that rounding explains."""
_FIRST_ORGAN_CUT = 0.05
"""Share of a drawn organ outside the scan that goes without saying: edges drawn over the last slice."""
_SURELY_ASIDE_MM = 10.0
"""Two organs this far on each other's side are not a matter of breathing or of a drawn edge."""

_MILLIMETRES: Mapping[int, tuple[str, float]] = {
    0: ("no unit", 1.0),
    1: ("metres", 1e3),
    2: ("millimetres", 1.0),
    3: ("micrometres", 1e-3),
}
"""Spatial units of `xyzt_units` (nifti1.h): name and factor to millimetres."""

RIGHT_AND_LEFT = ((2, 3), (5, 1))
"""Pairs of TotalSegmentator labels (CT and MR alike) that lie on the patient's right and left: kidneys; liver and spleen."""


class Severity(Enum):
    """What a finding means for the scan."""

    repaired = "repaired"
    refused = "refused"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a scan."""

    code: str
    """Stable word for tables and tests."""
    message: str
    """What was expected, what came, what to do, or what was done."""
    severity: Severity = Severity.refused


Findings = tuple[Finding, ...]


def kept(name: str, findings: Iterable[Finding]) -> Findings:
    """The repairs among the findings.

    Raises: ScanError for the first finding that refuses; `name` is the file's.
    """
    repairs = []
    for finding in findings:
        if finding.severity is Severity.refused:
            raise ScanError(f"{name}: {finding.message} [{finding.code}]", finding.code)
        repairs.append(finding)
    return tuple(repairs)


def _repaired(code: str, message: str) -> Findings:
    return (Finding(code, message, Severity.repaired),)


# ---- one file: how much, of what ------------------------------------------------------------------------------------


def shape_findings(shape: Sequence[int], volume: int | None = None) -> Findings:
    """One volume of three dimensions, or a chosen one of four; singletons behind are dropped."""
    text = _by(shape)
    extra = [side for side in shape[3:] if side != 1]
    if len(shape) < 3:
        return (Finding("not_3d", f"a volume needs three axes, got {text}; export the whole series"),)
    if min(shape) < 1:
        return (Finding("empty", f"every axis needs at least one voxel, got {text}; export the scan again"),)
    if len(extra) > 1 or (extra and (volume is None or shape[3] == 1)):
        return (Finding("not_3d", f"one volume expected, got {text}; choose one (column volume) or save it alone"),)
    if volume is not None and not 0 <= volume < (shape[3] if len(shape) > 3 else 1):
        held = shape[3] if len(shape) > 3 else 1
        return (Finding("no_such_volume", f"volume {volume} asked for, the file holds {held}, counted from 0"),)
    if extra:
        return _repaired("volume_chosen", f"volume {volume} of {shape[3]} is used, as the table says")
    return _repaired("singletons", f"{text}: axes of length 1 were dropped") if len(shape) > 3 else ()


def thin_findings(shape: Sequence[int]) -> Findings:
    """Enough voxels along each axis to show an organ in three dimensions."""
    if min(shape) >= FEWEST_VOXELS:
        return ()
    if min(shape) == 1 < max(shape):
        return (Finding("single_slice", f"a volume is needed, got one slice, {_by(shape)}; export the whole series"),)
    message = f"at least {FEWEST_VOXELS} voxels along each axis are needed, got {_by(shape)}; export the whole series"
    return (Finding("too_small", message),)


def dtype_findings(dtype: np.dtype[np.generic]) -> Findings:
    """Plain numbers: no colour, no complex values."""
    if dtype.fields is not None:
        return (Finding("colour", "voxels are RGB colours, not intensities; export the grey-scale scan"),)
    if dtype.kind == "c":
        return (Finding("complex", "voxels are complex numbers; export the magnitude image"),)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        return (Finding("dtype", "voxels are of a type that cannot be read; export the scan as int16 or float32"),)
    return ()


def bits_findings(dtype: np.dtype[np.generic], bits: int) -> Findings:
    """The header says twice how large a voxel is; where it disagrees with itself, one of the two is damaged."""
    if bits == dtype.itemsize * 8:
        return ()
    return (
        Finding(
            "bitpix", f"voxels of type {dtype} have {dtype.itemsize * 8} bits, the header says {bits}; export again"
        ),
    )


def size_findings(claimed_bytes: int, available_bytes: int) -> Findings:
    """A header that claims no more than the file can hold; looked at before any memory is taken."""
    if claimed_bytes <= available_bytes:
        return ()
    message = f"the header claims {claimed_bytes:,} bytes but the file holds at most {available_bytes:,}; copy it again"
    return (Finding("too_short", message),)


def trailing_findings(shape: Sequence[int], voxel_bytes: int, extra_bytes: int) -> Findings:
    """Bytes behind the last voxel: padding, unless there are so many that an axis may have lost a layer."""
    if extra_bytes == 0:
        return ()
    layer = math.prod(shape) // max(shape) * voxel_bytes
    if extra_bytes < layer:
        return _repaired("trailing_bytes", f"{extra_bytes:,} bytes behind the last voxel were ignored")
    message = (
        f"{extra_bytes:,} bytes more than {_by(shape)} voxels need; the header's shape may be damaged, export again"
    )
    return (Finding("too_long", message),)


# ---- one file: where in the world -----------------------------------------------------------------------------------


def affine_findings(affine: Affine) -> Findings:
    """A finite, invertible map from voxels to millimetres."""
    if not np.isfinite(affine).all():
        return (Finding("affine_not_finite", "the affine holds NaN or infinity; restore sform or qform"),)
    if _is_flat(affine):
        return (Finding("affine_singular", "the affine squeezes the volume flat; restore sform or qform"),)
    return ()


def _is_flat(affine: Affine) -> bool:
    """Whether the map has no inverse; relative, so that neither microscopy nor a scout passes or fails by its scale."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if not (np.isfinite(lengths).all() and (lengths > 0).all()):
            return True
        return abs(float(np.linalg.det(affine[:3, :3] / lengths))) <= 1e-6


def form_code_findings(sform_code: int, qform_code: int) -> Findings:
    """Codes of sform and qform that the standard knows: 0 (not set) to 5 (another template)."""
    for name, code in (("sform", sform_code), ("qform", qform_code)):
        if not 0 <= code <= 5:
            message = f"the code of the {name} should be 0 to 5, got {code}; the header is damaged, export again"
            return (Finding("header", message),)
    return ()


def orientation_findings(sform: Affine | None, qform: Affine | None, shape: Sequence[int]) -> Findings:
    """A file that says where left is, and says it once. The sform counts where there is one, as the standard has it.

    Args:
        sform: the map of a positive sform code, else None.
        qform: the same of the qform; NaN where it cannot be computed.
        shape: voxels XYZ, for how far the two lie apart.
    """
    if sform is None and qform is None:
        message = "neither sform nor qform says which way is left; convert the scan again from its source"
        return (Finding("no_orientation", message),)
    if sform is None or qform is None or affine_findings(sform):
        return ()
    if affine_findings(qform):
        return _repaired("qform_differs", "the qform is damaged; the sform was used")
    if axis_codes(sform) != axis_codes(qform):
        message = f"sform says {axis_codes(sform)}, qform {axis_codes(qform)}; find out which is right and set both"
        return (Finding("orientation_conflict", message),)
    apart = float(np.abs(_corners(shape) @ (sform - qform)[:3].T).max())
    voxel = float(np.linalg.norm(sform[:3, :3], axis=0).min())
    if apart <= 0.5 * voxel:
        return ()
    return _repaired("qform_differs", f"qform and sform lie up to {apart:.1f} mm apart; the sform was used")


def spacing_findings(spacing_mm: Sequence[float]) -> Findings:
    """Positive, finite distances between voxels."""
    if all(math.isfinite(step) and step > 0 for step in spacing_mm):
        return ()
    text = " x ".join(f"{step:g}" for step in spacing_mm)
    return (Finding("spacing", f"voxel spacing should be positive millimetres, got {text}; correct the header"),)


def spacing_agreement_findings(spacing_mm: Sequence[float], stated_mm: Sequence[float]) -> Findings:
    """The header's own list of spacings against the affine, which counts."""
    pairs = zip(spacing_mm, stated_mm, strict=True)
    if all(abs(used - stated) <= _SAME_SPACING * used for used, stated in pairs):
        return ()
    message = f"the affine says {_mm(spacing_mm)}, the list of spacings {_mm(stated_mm)}; the affine was used"
    return _repaired("spacing_differs", message)


def unit_factor(code: int) -> float:
    """Millimetres per spatial unit of `xyzt_units`; 1 where the code is unknown."""
    return _MILLIMETRES.get(code, ("", 1.0))[1]


def unit_findings(code: int) -> Findings:
    """Millimetres, or nothing said."""
    if code in (0, 2):
        return ()
    if code not in _MILLIMETRES:
        return _repaired("unit_unknown", f"the header's unit {code} is none that NIfTI knows; read as millimetres")
    return _repaired("unit_converted", f"the header counts in {_MILLIMETRES[code][0]}; converted to millimetres")


def plausibility_findings(shape: Sequence[int], spacing_mm: Sequence[float]) -> Findings:
    """Spacings and sides that a scanner for people makes."""
    finest, coarsest = PLAUSIBLE_SPACING_MM
    longest = max(side * step for side, step in zip(shape, spacing_mm, strict=True))
    if finest <= min(spacing_mm) and max(spacing_mm) <= coarsest and longest <= LONGEST_SIDE_MM:
        return ()
    message = f"{_by(shape)} voxels of {_mm(spacing_mm)} fit no person; correct the spacing or the unit in the header"
    return (Finding("implausible_spacing", message),)


def shear_findings(affine: Affine) -> Findings:
    """Axes at right angles; those of a tilted gantry are not, and the affine says by how much."""
    tilt = tilt_deg(affine)
    if tilt <= _UPRIGHT_DEG:
        return ()
    if tilt <= _STEEPEST_TILT_DEG:
        return _repaired("gantry_tilt", f"slices are sheared by {tilt:.1f} degrees (gantry tilt); the affine undoes it")
    return (Finding("sheared", f"axes lean by {tilt:.0f} degrees, no gantry does; restore sform or qform"),)


def tilt_deg(affine: Affine) -> float:
    """Largest departure of two voxel axes from a right angle (degrees)."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = (directions.T @ directions)[np.triu_indices(3, 1)]
    return float(np.degrees(np.arcsin(min(1.0, float(np.abs(cosines).max())))))


# ---- one file: intensities ------------------------------------------------------------------------------------------


def scaling_findings(slope: float, intercept: float) -> Findings:
    """A finite slope and intercept. NIfTI: a slope of 0 (or, by custom, NaN) means that nothing is scaled."""
    if slope == 0 or math.isnan(slope):
        if intercept == 0 or math.isnan(intercept):
            return ()
        return _repaired("unscaled", f"slope {slope:g} means not scaled; the intercept {intercept:g} was ignored")
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        return (
            Finding("scaling", f"intensities scaled by {slope:g} and {intercept:g} mean nothing; correct the header"),
        )
    if slope < 0:
        return _repaired(
            "slope_negative", f"the slope {slope:g} turns dark to bright; it was applied, look at the scan"
        )
    return ()


def content_findings(voxels: NDArray[np.float32]) -> Findings:
    """Finite intensities that differ from each other."""
    low, high = float(voxels.min()), float(voxels.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        return (Finding("not_finite", "some voxels are NaN or infinite; export the scan again or set them to 0"),)
    if low == high:
        return (Finding("constant", f"every voxel is {low:g}; there is no image, export the scan again"),)
    if all(((layer == low) | (layer == high)).all() for layer in voxels.T):
        message = f"only the intensities {low:g} and {high:g}; if this is a mask, give the scan itself"
        return _repaired("two_values", message)
    return ()


def label_findings(labels: NDArray[np.float32]) -> Findings:
    """Finite whole numbers; a map may hold one label only, or none."""
    if not math.isfinite(float(labels.min()) + float(labels.max())):
        return (Finding("not_finite", "some labels are NaN or infinite; save the label map again"),)
    if all((np.rint(layer) == layer).all() for layer in labels.T):
        return ()
    return (Finding("not_labels", "labels should be whole numbers; give the label map and not a probability map"),)


# ---- a scan and its label map ---------------------------------------------------------------------------------------


def organ_findings(organ: str, drawn_voxels: int) -> Findings:
    """More than one voxel of the organ."""
    if drawn_voxels == 0:
        return (Finding("organ_empty", f"nothing of the {organ} found; check label map, label ids and window"),)
    if drawn_voxels == 1:
        return (Finding("organ_one_voxel", f"one voxel is no {organ}; check the label map and the label ids"),)
    return ()


def grid_findings(map_shape: Sequence[int], map_affine: Affine, shape: Sequence[int], affine: Affine) -> Findings:
    """A label map on the scan's grid, or on another one that covers the scan in the world.

    A map of the scan's own shape whose axes run the other way, and which does not cover the same place when they do, was
    drawn on the scan and lost its orientation afterwards: through the affine left would become right.
    """
    if same_grid(map_shape, map_affine, shape, affine):
        return ()
    same_shape = tuple(map_shape) == tuple(shape)
    ours, theirs = _world_box(shape, affine), _world_box(map_shape, map_affine)
    if (theirs[0] > ours[1]).any() or (ours[0] > theirs[1]).any():
        message = "label map and scan lie in different places; pair the label map with its own scan"
        return (Finding("label_map_outside", message),)
    ours_codes, theirs_codes = axis_codes(affine), axis_codes(map_affine)
    apart = float(np.abs(ours - theirs).max())
    if same_shape and ours_codes != theirs_codes and apart > float(np.linalg.norm(affine[:3, :3], axis=0).max()):
        message = (
            f"the label map has the scan's shape but runs {theirs_codes} where the scan runs {ours_codes}, "
            f"{apart:.0f} mm aside; its orientation was lost, draw or export it again"
        )
        return (Finding("label_map_mirrored", message),)
    return _repaired(
        "label_map_resampled",
        f"the label map's grid ({_by(map_shape)}, {theirs_codes}) is not the scan's ({_by(shape)}, {ours_codes}); "
        "carried over through both affines",
    )


def overlap_findings(organ: str, share_inside: float) -> Findings:
    """An organ that lies in the scan, or the share of it that does (0 to 1)."""
    if share_inside == 0:
        message = f"the drawn {organ} lies outside the scan; pair the label map with its own scan"
        return (Finding("organ_outside", message),)
    if share_inside >= 1 - _FIRST_ORGAN_CUT:
        return ()
    cut = 100 * (1 - share_inside)
    return _repaired("organ_cut", f"{cut:.0f} % of the drawn {organ} lie outside the scan; the rest is used")


def side_findings(right_minus_left_mm: Sequence[float]) -> Findings:
    """What belongs to the patient's right lies there (RAS+: x grows to the right).

    Args:
        right_minus_left_mm: for each pair of `RIGHT_AND_LEFT`, how far its first label lies right of its second.
    """
    if not all(distance < -_SURELY_ASIDE_MM for distance in right_minus_left_mm):
        return ()
    message = "kidneys, liver and spleen lie on the wrong sides: left and right are swapped; correct the affine"
    return (Finding("left_right", message),)


def contrast_findings(organ: str, reference: NDArray[np.float32]) -> Findings:
    """Tissue with contrast where the organ is."""
    if reference.size >= 2 and reference.min() < reference.max():
        return ()
    message = f"the {organ}'s {reference.size} tissue voxels have no contrast; check label ids, box and window"
    return (Finding("no_contrast", message),)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)


def _mm(spacing_mm: Sequence[float]) -> str:
    return f"{' x '.join(f'{step:.4g}' for step in spacing_mm)} mm"


def _corners(shape: Sequence[int]) -> NDArray[np.float64]:
    """The corner voxels in homogeneous coordinates, shape (8, 4)."""
    return np.array([(*corner, 1.0) for corner in product(*[(0.0, side - 1.0) for side in shape])])


def _world_box(shape: Sequence[int], affine: Affine) -> NDArray[np.float64]:
    """Lowest and highest world coordinates of the corner voxels' centres, shape (2, 3)."""
    corners = _corners(shape) @ affine[:3].T
    return np.stack([corners.min(axis=0), corners.max(axis=0)])


def axis_codes(affine: Affine) -> str:
    """The directions into which the voxel axes grow, as three letters such as RAS; finite affines only."""
    codes: Any = nib.aff2axcodes
    return "".join(letter or "?" for letter in codes(affine))
