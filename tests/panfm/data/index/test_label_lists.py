"""Label lists by name agree with the tool's own, and a site's file says what it should."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest

from panfm.data.index.label_lists import label_list, label_pattern
from panfm.errors import ConfigError
from panfm.organs import SEVEN_ORGANS


def test_lists_by_name() -> None:
    # From the class maps of TotalSegmentator 2 (totalsegmentator/map_to_binary.py): total, total_mr, tissue_types.
    ct, mr = label_list("totalsegmentator_ct", SEVEN_ORGANS), label_list("totalsegmentator_mr", SEVEN_ORGANS)
    assert ct.ids == {"spleen": (1,), "kidney": (2, 3), "liver": (5,), "pancreas": (7,), "heart": (51,), "brain": (90,)}
    assert mr.ids == {"spleen": (1,), "kidney": (2, 3), "liver": (5,), "pancreas": (7,), "heart": (22,), "brain": (50,)}
    assert label_list("totalsegmentator_tissue", SEVEN_ORGANS).ids == {"adipose": (1, 2)}
    assert ct.names["kidney"] == ("kidney_right", "kidney_left")
    assert label_list("totalsegmentator_ct", ("liver",)).ids == {"liver": (5,)}, "organs of the study alone"


def test_numbers_and_names_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text("kidney: [4, 5]\nliver: [hepar]\nspleen: [1, lien]\n")
    found = label_list(str(path), SEVEN_ORGANS)
    assert found.ids == {"kidney": (4, 5), "spleen": (1,)}
    assert found.names == {"liver": ("hepar",), "spleen": ("lien",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("knee: [4]", "unknown organ knee"),
        ("liver: 4", "should map organs to lists"),
        ("liver: [true]", "should map organs to lists"),
        ("- liver", "should map organs to lists"),
        ("liver: [", "cannot be read"),
    ],
)
def test_files_that_are_no_list(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        label_list(str(tmp_path / "labels.yaml"), SEVEN_ORGANS)


def test_patterns_with_their_meaning() -> None:
    assert label_pattern("{subject}_gt=heart", SEVEN_ORGANS).organ == "heart"
    assert label_pattern("{subject}_gt", SEVEN_ORGANS).labels is None
    with pytest.raises(ConfigError, match=r"should be totalsegmentator_ct, .* no such file"):
        label_pattern("{subject}_gt=totalsegmentor_ct", SEVEN_ORGANS)
