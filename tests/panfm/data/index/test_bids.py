"""BIDS: which file of a subject is taken, and that what was not taken is listed with its reason."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from tests.panfm.data.index.site_folders import KEY, Index, WriteVolume, listed, reasons


def test_one_scan_of_each_subject_and_visit(write_volume: WriteVolume, index: Index) -> None:
    taken = {
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_run-2_T1w.nii.gz",
        "sub-02/anat/sub-02_run-01_T1w.nii.gz",
    }
    refused = {
        "sub-01/ses-a/anat/sub-01_ses-a_T2w.nii.gz": "less_preferred",
        "sub-01/ses-b/anat/sub-01_ses-b_run-10_T1w.nii.gz": "later_run",
        "sub-02/anat/sub-02_run-02_T1w.nii.gz": "later_run",
        "sub-02/anat/sub-02_run-01_part-phase_T1w.nii.gz": "no_magnitude",
        "sub-02/func/sub-02_task-rest_bold.nii.gz": "other_suffix",
        "sub-03/anat/sub-03_acq-a_T1w.nii.gz": "several_scans",
        "sub-03/anat/sub-03_acq-b_T1w.nii.gz": "several_scans",
        "sub-04/anat/sub-05_T1w.nii.gz": "bids_name",
        "stray_T1w.nii.gz": "not_understood",
    }
    for name in (*taken, *refused, "derivatives/tool/sub-01/anat/sub-01_T1w.nii.gz"):
        write_volume(f"bids/{name}")
    found = index("bids", organ=("brain",), suffixes=("T1w", "T2w"))
    assert {row.path.as_posix().split("/bids/")[1] for row in found.rows} == taken
    assert reasons(found) == refused
    assert found.layout.value == "bids"


def test_a_second_choice_where_the_first_is_missing(write_volume: WriteVolume, index: Index) -> None:
    write_volume("bids/sub-01/anat/sub-01_T2w.nii.gz")
    found = index("bids", organ=("brain",), suffixes=("T1w", "T2w"))
    assert listed(found) == {(KEY.subject("01"), "", "brain", "sub-01_T2w.nii.gz")}


def test_organs_by_rule_and_choice_by_rule(write_volume: WriteVolume, index: Index) -> None:
    for name in ("acq-liver", "acq-mprage", "acq-space", "acq-knee"):
        write_volume(f"bids/sub-01/anat/sub-01_{name}_T1w.nii.gz")
    found = index("bids", organ=("liver=*acq-liver*", "brain=*acq-mprage*"))
    assert {row.organ for row in found.rows} == {"brain", "liver"}
    assert set(reasons(found).values()) == {"unknown_organ"}
    torn = index("bids", organ=("liver=*acq-liver*", "brain"))
    assert reasons(torn)["sub-01/anat/sub-01_acq-liver_T1w.nii.gz"] == "ambiguous_organ"
    chosen = index("bids", organ=("brain",), left_out=("*acq-space*", "*acq-knee*", "*acq-liver*"))
    assert [row.path.name for row in chosen.rows] == ["sub-01_acq-mprage_T1w.nii.gz"]
    assert set(reasons(chosen).values()) == {"left_out"}


def test_label_maps_below_derivatives(write_volume: WriteVolume, index: Index) -> None:
    for subject in ("01", "02"):
        write_volume(f"bids/sub-{subject}/anat/sub-{subject}_T1w.nii.gz")
    write_volume("bids/derivatives/ts/sub-01/anat/sub-01_dseg.nii.gz", labels=(5, 22))
    found = index("bids", label_map=("derivatives/ts/sub-{subject}/anat/*_dseg=totalsegmentator_mr",))
    assert {(row.subject, row.organ) for row in found.rows} == {
        (KEY.subject("01"), organ) for organ in ("liver", "heart")
    }
    assert reasons(found) == {"sub-02/anat/sub-02_T1w.nii.gz": "no_label_map"}
