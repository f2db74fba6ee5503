"""A hospital's own look back: its page shows its scans and answers, and stays in its folder."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from panfm.data.store import PreparedStore
from panfm.export.model_folder import ModelFolder, read_model
from panfm.site.report import PICTURED_SUBJECTS, make_site_report
from tests.client.small_study import Finished


@pytest.fixture
def site(finished: Finished, tmp_path: Path) -> Path:
    """A copy of a hospital that took part."""
    return Path(shutil.copytree(finished[0].hospitals["neuro"], tmp_path / "neuro"))


@pytest.fixture(scope="module")
def model(finished: Finished) -> ModelFolder:
    return read_model(finished[0].folder / "model")


def test_page_shows_each_organ_and_each_round_of_this_run(site: Path, model: ModelFolder) -> None:
    page = make_site_report(site, model)
    assert page == site / "site_report.html"
    text = page.read_text()
    assert model.card.run in text
    store = PreparedStore.open(site / "store")
    for organ in ("brain", "heart"):
        pictured = sorted({entry.subject for entry in store.entries if entry.organ == organ})[:PICTURED_SUBJECTS]
        assert all(subject in text for subject in pictured), organ
    rows = text.split("<caption>What this site answered, round by round.")[1].split("</table>")[0]
    assert rows.count("update") == 2


def test_same_folder_and_model_give_the_same_page(site: Path, model: ModelFolder) -> None:
    first = make_site_report(site, model).read_bytes()
    assert make_site_report(site, model).read_bytes() == first


def test_organ_that_the_first_subjects_lack_is_pictured_too(site: Path, model: ModelFolder) -> None:
    table = site / "store" / "table.csv"
    header, *rows = table.read_text().splitlines(keepends=True)
    subjects = sorted({row.split(",")[0] for row in rows})
    late = set(subjects[PICTURED_SUBJECTS:])
    table.write_text(header + "".join(row for row in rows if ",brain," not in row or row.split(",")[0] in late))
    hearts_first = {row.split(",")[0] for row in rows if ",heart," in row}
    assert len(hearts_first - late) >= PICTURED_SUBJECTS - 1, "the first subjects hold hearts, so they come first"

    text = make_site_report(site, model).read_text()
    brains = sorted(row.split(",")[0] for row in rows if ",brain," in row and row.split(",")[0] in late)
    assert brains
    assert brains[0] in text
