"""Which pretend hospital images which organs: different, overlapping sets that together cover the study."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

from panfm.data.synthetic import SyntheticSite
from panfm.organs import SEVEN_ORGANS, in_order

HOSPITALS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("neuro", ("brain", "heart", "adipose")),
    ("cardiac", ("heart", "adipose", "liver")),
    ("abdominal", ("liver", "kidney", "spleen", "pancreas")),
    ("metabolic", ("brain", "adipose", "liver", "kidney", "pancreas")),
    ("renal", ("kidney", "spleen", "heart")),
    ("wholebody", ("brain", "heart", "adipose", "liver", "kidney", "spleen", "pancreas")),
)
"""Name and organs of the first hospitals; further ones repeat the pattern."""


def synthetic_hospitals(number: int, subjects_per_site: int, vocabulary: Sequence[str]) -> tuple[SyntheticSite, ...]:
    """The first `number` hospitals; what none of them images is added to the last, so that every organ is held.

    Hospitals that image none of the study's organs are passed over.
    Raises: ConfigError when an organ of the vocabulary is not one that can be synthesised.
    """
    in_order(vocabulary, SEVEN_ORGANS)
    patterns = [pattern for pattern in HOSPITALS if set(pattern[1]) & set(vocabulary)]
    names = [_name(place, patterns) for place in range(number)]
    organs = [list(patterns[place % len(patterns)][1]) for place in range(number)]
    held = {organ for some in organs for organ in some}
    organs[-1] += [organ for organ in vocabulary if organ not in held]
    return tuple(
        SyntheticSite(
            name=name,
            organs=tuple(organ for organ in vocabulary if organ in some),
            num_subjects=subjects_per_site,
        )
        for name, some in zip(names, organs, strict=True)
    )


def _name(place: int, patterns: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    turn, pattern = divmod(place, len(patterns))
    name = patterns[pattern][0]
    return f"{name}{turn + 1}" if turn else name
