"""The organ vocabulary: which organs there are, in which order, and how public label maps number them.

The order fixes the order of tokens, of report columns and of sums, so it is stated once, here. A study with other
organs names them in its recipe (`organs:`); a name is a lower-case word that can stand in a module path.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from panfm.errors import ConfigError
from panfm.groups import SHARED_GROUPS

SEVEN_ORGANS: tuple[str, ...] = ("brain", "heart", "adipose", "liver", "kidney", "spleen", "pancreas")
"""The organs of Pan-FM (arXiv:2605.07055), in the project's order."""

WITHOUT_SIDE: tuple[str, ...] = ("brain", "adipose")
"""Organs whose mirror image could be somebody's. Heart, liver, spleen and pancreas lie on one side, and of the kidneys the
right one is the lower; of an organ that is not named here nobody knows."""

TOTALSEGMENTATOR_CT: dict[str, tuple[int, ...]] = {
    "spleen": (1,),
    "kidney": (2, 3),
    "liver": (5,),
    "pancreas": (7,),
    "heart": (51,),
    "brain": (90,),
}
"""Label ids of each organ in a TotalSegmentator v2 `total` (CT) label map; kidney is right and left. Version 1 numbered
otherwise: there 10 is the pancreas, 50 the brain, and the heart is drawn by its chambers."""

TOTALSEGMENTATOR_MR: dict[str, tuple[int, ...]] = {
    "spleen": (1,),
    "kidney": (2, 3),
    "liver": (5,),
    "pancreas": (7,),
    "heart": (22,),
    "brain": (50,),
}
"""Label ids of each organ in a TotalSegmentator `total_mr` label map."""

TOTALSEGMENTATOR_TISSUE: dict[str, tuple[int, ...]] = {"adipose": (1, 2)}
"""Label ids in a TotalSegmentator `tissue_types` or `tissue_types_mr` label map: subcutaneous and torso fat; 3 is muscle."""

TOTALSEGMENTATOR_MASKS: dict[str, tuple[str, ...]] = {
    "spleen": ("spleen",),
    "kidney": ("kidney_right", "kidney_left"),
    "liver": ("liver",),
    "pancreas": ("pancreas",),
    "heart": (
        "heart",
        # v1 drew the chambers and not the whole
        "heart_myocardium",
        "heart_atrium_left",
        "heart_ventricle_left",
        "heart_atrium_right",
        "heart_ventricle_right",
    ),
    "brain": ("brain",),
    "adipose": ("subcutaneous_fat", "torso_fat"),
}
"""Names of the files of one mask each that TotalSegmentator writes (`segmentations/liver.nii.gz`), CT and MR alike."""

_ORGAN_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


def check_organ_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple, or ConfigError when one is repeated or cannot stand in a module path."""
    checked = tuple(names)
    for name in checked:
        if not _ORGAN_NAME.fullmatch(name) or name in SHARED_GROUPS:
            taken = " and ".join(SHARED_GROUPS)
            raise ConfigError(
                f"organ name {name!r} must be a lower-case word of letters, digits and _, and not {taken}; rename it"
            )
    if len(set(checked)) != len(checked):
        raise ConfigError(f"organ names must differ, got {', '.join(checked)}; remove the repeated one")
    return checked


def in_order(organs: Iterable[str], vocabulary: Sequence[str]) -> tuple[str, ...]:
    """The given organs in the order of the vocabulary.

    Raises: ConfigError when an organ is not in the vocabulary.
    """
    wanted = set(organs)
    unknown = sorted(wanted - set(vocabulary))
    if unknown:
        raise ConfigError(
            f"unknown organ {', '.join(unknown)}: this study knows {', '.join(vocabulary)}; "
            "correct the name or add the organ to the recipe"
        )
    return tuple(organ for organ in vocabulary if organ in wanted)
