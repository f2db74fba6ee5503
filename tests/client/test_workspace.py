"""A site's folder as the client sees it: what it offers, what it may train on, and what is said when something is missing."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from client.workspace import TRAINING_SPLITS, open_workspace
from panfm.data.store import TABLE
from panfm.errors import ConfigError, DataError
from panfm.site.policy_file import read_policy, write_policy
from tests.client.small_study import SmallStudy


def _mark(folder: Path, split_of: dict[int, str]) -> list[dict[str, str]]:
    """Give rows of the prepared store's table a split; returns all rows."""
    path = folder / "store" / TABLE
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for place, split in split_of.items():
        rows[place]["split"] = split
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_offers_the_organs_of_policy_and_store_with_their_subjects(study: SmallStudy) -> None:
    folder = study.hospitals["cardiac"]
    rows = _mark(folder, {})
    offered = open_workspace({"site-folder": str(folder)}).subjects()
    assert list(offered) == ["heart", "liver"]
    for organ in offered:
        assert offered[organ] == {row["subject"] for row in rows if row["organ"] == organ}

    write_policy(folder, replace(read_policy(folder), organs=("liver", "kidney")))
    assert list(open_workspace({"site-folder": str(folder)}).subjects()) == ["liver"]


@pytest.mark.parametrize("split", ["probe", "validation", "test", "Test", "train", "pretrain ", "held out"])
def test_rows_marked_for_another_use_never_train_and_never_count(study: SmallStudy, split: str) -> None:
    folder = study.hospitals["abdominal"]
    rows = _mark(folder, {0: split, 1: "pretrain", 2: ""})
    held_out = rows[0]["subject"]

    workspace = open_workspace({"site-folder": str(folder)})

    expected = {row["subject"] for row in rows} - {held_out}
    assert workspace.subjects() == {"liver": expected}
    assert set(workspace.dataset(("liver",), study.config).subjects) == expected
    assert workspace.dataset(("liver",), study.config).num_subjects == {"liver": len(rows) - 1}


def test_subject_of_whom_one_scan_is_held_out_is_held_out(study: SmallStudy) -> None:
    """A person is in one split: the heart of a test subject's liver must not train."""
    folder = study.hospitals["cardiac"]
    rows = _mark(folder, {})
    both = next(s for s in sorted({r["subject"] for r in rows}) if sum(r["subject"] == s for r in rows) == 2)
    place = next(i for i, row in enumerate(rows) if (row["subject"], row["organ"]) == (both, "liver"))
    _mark(folder, {place: "test"})
    offered = open_workspace({"site-folder": str(folder)}).subjects()
    assert both not in offered["heart"] | offered["liver"]


def test_site_whose_scans_are_all_held_out_offers_nothing(study: SmallStudy) -> None:
    folder = study.hospitals["abdominal"]
    _mark(folder, dict.fromkeys(range(len(_mark(folder, {}))), "test"))
    assert open_workspace({"site-folder": str(folder)}).subjects() == {}
    assert "" in TRAINING_SPLITS
    assert "pretrain" in TRAINING_SPLITS


def test_what_is_missing_is_said_in_one_line(study: SmallStudy, tmp_path: Path) -> None:
    folder = study.hospitals["neuro"]
    for config in ({}, {"site-folder": ""}, {"site-folder": str(tmp_path / "absent")}):
        with pytest.raises(ConfigError, match="the node has no site folder; start the SuperNode with"):
            open_workspace(config)
    shutil.move(folder / "store", folder / "put-away")
    with pytest.raises(DataError, match="holds no prepared store"):
        open_workspace({"site-folder": str(folder)})
    (folder / "policy.yaml").unlink()
    with pytest.raises(ConfigError, match=r"the site has no policy\.yaml"):
        open_workspace({"site-folder": str(folder)})
