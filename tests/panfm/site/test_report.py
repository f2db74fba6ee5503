"""A hospital's own look back: its page shows its scans and answers, and stays in its folder."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from panfm.config import OrganGrid, Recipe, Spacing
from panfm.data.dataset import Batch, DroppedScan
from panfm.data.native import Crop
from panfm.data.native_batch import collate_native
from panfm.data.store import PreparedStore
from panfm.export.model_folder import ModelFolder, read_model
from panfm.pretrain.step import Masks
from panfm.reporting.slices import views
from panfm.site.answers import AnswerStore
from panfm.site.report import PICTURED_SUBJECTS, _picture, make_site_report
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


def test_scans_that_changed_stand_on_the_page_and_do_not_end_it(site: Path, model: ModelFolder) -> None:
    volume = sorted((site / "store" / "brain").glob("*.npy"))[0]
    volume.write_bytes(volume.read_bytes()[:-1] + b"\x7f")
    lost = DroppedScan(subject="sub-77777", visit="1", organ="heart", reason="it was missing")
    answers = AnswerStore(site / "state" / "answers")
    answer = answers.read(model.card.run, 1)
    answers.commit(answer, answers.parcels(answer), dropped=[lost])
    rows = (
        make_site_report(site, model)
        .read_text()
        .split("<caption>Prepared scans that were missing")[1]
        .split("</table>")[0]
    )
    assert all(word in rows for word in ("sub-77777", "it was missing", "round 1"))
    assert all(word in rows for word in (volume.name.partition("@")[0], "has changed since", "this report"))


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


def test_native_scan_is_pictured_as_long_as_it_is_with_all_its_patches() -> None:
    """16 pixels of 1 mm, 2 slices of 8 mm: a cube of 16 mm with 2 patches a side, each slice one patch thick."""
    slices = np.arange(16 * 16 * 2, dtype=np.float32).reshape(16, 16, 2)
    recipe = Recipe(organs={"heart": OrganGrid(shape=[16, 16, 16], spacing=Spacing.native)})
    native = {"heart": collate_native([Crop(slices, (1.0, 1.0, 8.0))], max_degree=3)}
    batch = Batch(("s",), ("heart",), {"heart": torch.tensor([0])}, {}, native)
    hidden = torch.tensor([[True, False] * 4])
    picture = _picture(batch, Masks(organs=torch.tensor([[False]]), patches={"heart": hidden}), recipe, "heart", 0)
    np.testing.assert_array_equal(picture.volume, np.repeat(slices, 8, axis=2))
    assert picture.spacing_mm == (1.0, 1.0, 1.0)
    assert picture.masked_patches[..., 0].all()
    assert not picture.masked_patches[..., 1].any()
    assert {(view.width_mm, view.height_mm) for view in views(picture)} == {(16.0, 16.0)}
