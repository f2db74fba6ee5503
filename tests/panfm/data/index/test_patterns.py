"""Patterns find what their text says, join scans with their own label maps, and leave nothing without a word."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.data.index.patterns import compile_pattern
from panfm.errors import ConfigError
from tests.panfm.data.index.site_folders import KEY, Index, WriteVolume, listed, reasons

NAME = st.text(st.characters(codec="utf-8", exclude_characters="/_"), min_size=1, max_size=8)


@given(subject=NAME, visit=NAME)
def test_a_pattern_reads_back_what_was_written_into_it(subject: str, visit: str) -> None:
    match = compile_pattern("in/{subject}_{visit}/x{subject}.nii.gz").match(f"in/{subject}_{visit}/x{subject}")
    assert match == {"subject": subject, "visit": visit}


@pytest.mark.parametrize(
    ("pattern", "stem", "expected"),
    [
        ("{subject}", "a/b", None),
        ("{subject}_{visit}", "one_two_ED", {"subject": "one_two", "visit": "ED"}),
        ("{subject}/*_e1", "s1/0044_x_e1", {"subject": "s1"}),
        ("{subject}/*_e1", "s1/deep/0044_x_e1", None),
        ("**/{subject}.t1", "a/b/s.t1", {"subject": "s"}),
        ("{subject}.t1", "sxt1", None),
        ("{subject}/{subject}", "a/b", None),
    ],
)
def test_what_fits(pattern: str, stem: str, expected: dict[str, str] | None) -> None:
    assert compile_pattern(pattern).match(stem) == expected


@pytest.mark.parametrize("text", ["{patient}/ct", "ct", "{visit}"])
def test_patterns_that_say_too_little(text: str) -> None:
    with pytest.raises(ConfigError, match="subject"):
        compile_pattern(text)


def test_organ_folders(write_volume: WriteVolume, index: Index) -> None:
    for name in ("liver/s1.nii.gz", "liver/s2.nii", "spleen/s1.nii.gz", "kidney/s1/v1.nii.gz", "lung/s1.nii.gz"):
        write_volume(f"site/{name}")
    found = index("site")
    assert listed(found) == {
        (KEY.subject("s1"), "", "liver", "s1.nii.gz"),
        (KEY.subject("s2"), "", "liver", "s2.nii"),
        (KEY.subject("s1"), "", "spleen", "s1.nii.gz"),
        (KEY.subject("s1"), KEY.visit("s1", "v1"), "kidney", "v1.nii.gz"),
    }
    assert reasons(found) == {"lung/s1.nii.gz": "unknown_organ"}
    assert listed(index("site", organ=("liver=Leber*",))) == listed(found), (
        "rules are for what is not in the vocabulary"
    )


def test_folders_in_other_words(write_volume: WriteVolume, index: Index) -> None:
    write_volume("site/Leber/s1.nii.gz")
    found = index("site", "organs", organ=("liver=Leber",))
    assert listed(found) == {(KEY.subject("s1"), "", "liver", "s1.nii.gz")}


def test_a_label_map_is_no_scan_even_where_a_scan_pattern_fits_it(write_volume: WriteVolume, index: Index) -> None:
    for name in ("a_ED", "a_ES", "b_ED"):
        write_volume(f"site/{name}.nii.gz")
    for name in ("a_ED", "b_ED"):
        write_volume(f"site/{name}_gt.nii.gz", labels=(1, 2))
    found = index("site", scan=("{subject}_{visit}",), label_map=("{subject}_{visit}_gt=heart",))
    assert listed(found) == {
        (KEY.subject(person), KEY.visit(person, "ED"), "heart", f"{person}_ED.nii.gz") for person in "ab"
    }
    assert [row.label_map[0].name for row in found.rows] == [f"{row.path.name[:4]}_gt.nii.gz" for row in found.rows]
    assert reasons(found) == {"a_ES.nii.gz": "no_label_map"}


def test_masks_of_one_structure_each_are_united_by_organ(write_volume: WriteVolume, index: Index) -> None:
    write_volume("site/s1/scan.nii.gz")
    for name in ("kidney_left", "kidney_right", "liver", "aorta"):
        write_volume(f"site/s1/masks/{name}.nii.gz", labels=(1,))
    write_volume("site/s1/masks/spleen.nii.gz", labels=(0,))
    found = index("site", scan=("{subject}/scan",), label_map=("{subject}/masks/{label}=totalsegmentator_mr",))
    drawn = {row.organ: [path.name for path in row.label_map] for row in found.rows}
    assert drawn == {"kidney": ["kidney_left.nii.gz", "kidney_right.nii.gz"], "liver": ["liver.nii.gz"]}
    assert reasons(found) == {}


def test_a_folder_of_slices_is_a_scan_like_a_file(
    write_volume: WriteVolume, index: Index, write_series: WriteVolume
) -> None:
    root = write_volume("site/liver/s1.nii.gz").parents[1]
    write_series(root / "liver" / "s2")
    found = index("site")
    assert {row.path.name for row in found.rows} == {"s1.nii.gz", "s2"}
    write_series(root / "liver" / "s1")
    assert reasons(index("site")) == {"liver/s1": "several_scans", "liver/s1.nii.gz": "several_scans"}


def test_ct_and_mr_that_share_a_map_are_both_left_out(write_volume: WriteVolume, index: Index) -> None:
    for name in ("ct", "mri"):
        write_volume(f"site/s1/{name}.nii.gz")
    write_volume("site/s1/segmentations.nii.gz", labels=(22, 51))
    write_volume("site/s2/ct.nii.gz")
    write_volume("site/s2/segmentations.nii.gz", labels=(5, 51, 52))
    found = index("site")
    assert {(row.subject, row.organ) for row in found.rows} == {
        (KEY.subject("s2"), organ) for organ in ("liver", "heart")
    }
    assert {row.organ: row.label_ids for row in found.rows} == {"liver": (5,), "heart": (51,)}
    assert reasons(found) == {"s1/ct.nii.gz": "ambiguous_label_map", "s1/mri.nii.gz": "ambiguous_label_map"}
