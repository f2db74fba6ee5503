"""What the numbers and the file names of label maps mean: a public tool's list by name, or a small file of the site's own.

The file is YAML, one line per organ: `kidney: [2, 3]` by number, `kidney: [kidney_left, kidney_right]` by the name of mask
files; the two may be mixed.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import yaml

from panfm.data.index.found import LabelList
from panfm.data.index.patterns import LabelPattern, compile_pattern
from panfm.errors import ConfigError
from panfm.organs import (
    TOTALSEGMENTATOR_CT,
    TOTALSEGMENTATOR_MASKS,
    TOTALSEGMENTATOR_MR,
    TOTALSEGMENTATOR_TISSUE,
    in_order,
)

_Label = TypeVar("_Label", int, str)
"""A label's number in a map, or the name of a mask's file."""

_KNOWN: dict[str, LabelList] = {
    "totalsegmentator_ct": LabelList(TOTALSEGMENTATOR_CT, TOTALSEGMENTATOR_MASKS),
    "totalsegmentator_mr": LabelList(TOTALSEGMENTATOR_MR, TOTALSEGMENTATOR_MASKS),
    "totalsegmentator_tissue": LabelList(TOTALSEGMENTATOR_TISSUE, TOTALSEGMENTATOR_MASKS),
}


def label_list(text: str, vocabulary: Sequence[str]) -> LabelList:
    """A list by its name or from a YAML file, limited to the study's organs.

    Raises: ConfigError when there is no such list, or the file is not as described above.
    """
    known = _KNOWN.get(text)
    if known is None:
        return _from_file(Path(text), vocabulary)
    return LabelList(_of_study(known.ids, vocabulary), _of_study(known.names, vocabulary))


def label_pattern(text: str, vocabulary: Sequence[str]) -> LabelPattern:
    """`PATTERN=LIST`, `PATTERN=ORGAN`, or `PATTERN` alone for masks whose organ the scan or `{organ}` names.

    Raises: ConfigError when the pattern or the list cannot be read.
    """
    pattern, _, meaning = text.partition("=")
    compiled = compile_pattern(pattern)
    if not meaning:
        return LabelPattern(compiled, None)
    if meaning in vocabulary:
        return LabelPattern(compiled, None, organ=meaning)
    return LabelPattern(compiled, label_list(meaning, vocabulary))


def _of_study(labels: Mapping[str, tuple[_Label, ...]], vocabulary: Sequence[str]) -> dict[str, tuple[_Label, ...]]:
    return {organ: found for organ, found in labels.items() if organ in vocabulary}


def _from_file(path: Path, vocabulary: Sequence[str]) -> LabelList:
    known = ", ".join(_KNOWN)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else "it cannot be read"
        raise ConfigError(
            f"label list {str(path)!r} should be {known}, an organ or a YAML file, but {reason}; correct it"
        ) from error
    if not isinstance(content, dict) or not all(_is_list(values) for values in content.values()):
        raise ConfigError(f"{path.name} should map organs to lists of labels, such as `kidney: [2, 3]`; correct it")
    in_order([str(organ) for organ in content], vocabulary)
    return LabelList(
        ids={
            organ: ids for organ, values in content.items() if (ids := tuple(v for v in values if isinstance(v, int)))
        },
        names={
            organ: names
            for organ, values in content.items()
            if (names := tuple(v for v in values if isinstance(v, str)))
        },
    )


def _is_list(values: object) -> bool:
    # YAML's true and false are whole numbers to Python.
    return isinstance(values, list) and all(isinstance(v, int | str) and not isinstance(v, bool) for v in values)
