"""The model in use gives a raw scan the embedding that its prepared twin in a site's store gets."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import panfm
from panfm.cli.main import app
from panfm.config import ModelConfig, OrganGrid, PrepareConfig, Recipe, Spacing
from panfm.data.dataset import SubjectDataset
from panfm.data.manifest import ScanRow, write_scan_table
from panfm.data.prepare import prepare_store
from panfm.errors import CheckpointError, ConfigError, DataError
from panfm.evaluation.embedding import embed_subjects
from panfm.export.embedding_table import embed_table, write_parquet
from panfm.export.frozen_model import FrozenModel, OrganScan
from panfm.export.model_folder import ModelFolder, make_card, write_model
from panfm.models.build import initial_parameters

SMALL = ModelConfig(width=16, depth=2, heads=2, adapter_width=4, predictor_width=16, patch=4)


def recipe() -> Recipe:
    grids = {organ: OrganGrid(shape=[8, 8, 8], spacing_mm=[3.0, 3.0, 3.0]) for organ in ("brain", "liver", "kidney")}
    grids["kidney"] = replace(grids["kidney"], spacing=Spacing.native, max_degree=1)
    return Recipe(organs=grids, model=SMALL, prepare=PrepareConfig(margin_voxels=2))


@pytest.fixture
def model(tmp_path: Path) -> FrozenModel:
    settings = recipe()
    parameters = initial_parameters(settings.model, settings.organs, seed=3)
    card = make_card("run", 2, parameters, parameters, settings, ("0", "0"))
    folder = ModelFolder(student=parameters, teacher=parameters, recipe=settings, card=card)
    write_model(tmp_path / "model", folder)
    return panfm.load(tmp_path / "model")


def save(voxels: NDArray[np.generic], path: Path, spacing_mm: float) -> None:
    affine = np.diag([spacing_mm] * 3 + [1.0])
    nib.save(nib.Nifti1Image(voxels, affine), path)  # type: ignore[no-untyped-call]


def write_scan(path: Path, seed: int, spacing_mm: float = 2.0) -> Path:
    """A blob of tissue with structure in it, 20 voxels a side."""
    draws = np.random.default_rng(seed)
    distance = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(20) - 9.5] * 3, indexing="ij")), axis=0)
    voxels = np.where(distance < 8, 100 + 20 * draws.normal(size=distance.shape), 0).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(voxels, path, spacing_mm)
    return path


def table_of(folder: Path) -> dict[str, dict[str, Path]]:
    """Three subjects with different organs, and the table that lists them."""
    scans = {
        subject: {organ: write_scan(folder / organ / f"{subject}.nii.gz", seed) for organ in organs}
        for seed, (subject, organs) in enumerate(
            {"a": ("brain", "liver", "kidney"), "b": ("liver",), "c": ("brain", "kidney")}.items()
        )
    }
    rows = [ScanRow(subject=s, organ=o, path=path) for s, own in scans.items() for o, path in own.items()]
    write_scan_table(folder / "scans.csv", rows)
    return scans


def test_raw_scans_get_the_embedding_of_their_prepared_twins(tmp_path: Path, model: FrozenModel) -> None:
    scans = table_of(tmp_path / "site")
    settings = model.recipe
    store = prepare_store(tmp_path / "site", tmp_path / "store", settings.organs, settings.prepare)
    dataset = SubjectDataset(store, model.organs, settings.organs)
    parameters = initial_parameters(settings.model, settings.organs, seed=3)
    expected = dict(zip(dataset.subjects, embed_subjects(parameters, settings, dataset), strict=True))
    for subject, own in scans.items():
        answer = model.embed({organ: str(path) for organ, path in own.items()})
        assert answer.subject == pytest.approx(expected[subject], abs=1e-5)
        assert tuple(answer.organs) == tuple(organ for organ in model.organs if organ in own)
        means = np.mean([np.concatenate((o.mean, o.deviation)) for o in answer.organs.values()], axis=0)
        assert answer.subject[SMALL.width :] == pytest.approx(means, abs=1e-5)
        assert sum(answer.attention_share.values()) == pytest.approx(1)
        assert all(o.token.shape == (SMALL.width,) for o in answer.organs.values())


def test_the_order_in_which_scans_are_given_changes_nothing(tmp_path: Path, model: FrozenModel) -> None:
    own = table_of(tmp_path / "site")["a"]
    turned = dict(reversed(own.items()))
    assert model.embed(own).subject.tobytes() == model.embed(turned).subject.tobytes()


def test_an_organ_is_cut_out_by_its_label_map(tmp_path: Path, model: FrozenModel) -> None:
    body = write_scan(tmp_path / "body.nii.gz", 5)
    labels = np.zeros((20, 20, 20), dtype=np.uint8)
    labels[4:9, 4:9, 4:9] = 7
    save(labels, tmp_path / "labels.nii.gz", 2.0)
    cut = OrganScan(path=body, label_map=(tmp_path / "labels.nii.gz",), label_ids=(7,))
    boxed = OrganScan(path=body, box=((4, 9), (4, 9), (4, 9)))
    whole, by_map, by_box = (model.embed({"liver": scan}).subject for scan in (body, cut, boxed))
    assert by_map == pytest.approx(by_box, abs=1e-6)
    assert np.abs(by_map - whole).max() > 1e-3


@pytest.mark.parametrize("scans", [{}, {"spleen": "x.nii.gz"}, {"liver": "nowhere.nii.gz"}])
def test_what_cannot_be_embedded_is_said_in_one_line(model: FrozenModel, scans: dict[str, str]) -> None:
    with pytest.raises(DataError) as told:
        model.embed(dict(scans))
    assert "\n" not in str(told.value)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model in"):
        panfm.load(tmp_path)


def test_a_table_of_scans_becomes_a_table_of_embeddings(tmp_path: Path, model: FrozenModel) -> None:
    scans = table_of(tmp_path / "site")
    scans["b"]["liver"].write_bytes(b"not a scan")
    scans["c"]["kidney"].write_bytes(b"not a scan")
    answer = embed_table(model, tmp_path / "site")
    assert [refused[:3] for refused in answer.refused] == [("b", "", "liver"), ("c", "", "kidney")]
    write_parquet(tmp_path / "e.parquet", answer.rows)
    rows = pd.read_parquet(tmp_path / "e.parquet").set_index("subject")
    assert rows["organs"].to_dict() == {"a": "brain+liver+kidney", "c": "brain"}
    values = rows[[f"e{place}" for place in range(3 * SMALL.width)]]
    assert values.loc["c"].to_numpy() == pytest.approx(model.embed({"brain": scans["c"]["brain"]}).subject, abs=1e-7)
    assert rows.loc["c", "share_brain"] == 1
    assert rows["share_liver"].isna().to_dict() == {"a": False, "c": True}


def test_the_verb_writes_the_table_and_names_what_it_left_out(tmp_path: Path, model: FrozenModel) -> None:
    scans = table_of(tmp_path / "site")
    scans["c"]["kidney"].write_bytes(b"not a scan")
    out = tmp_path / "made" / "e.parquet"
    words = ["model", "embed", str(tmp_path / "model"), str(tmp_path / "site"), "--out", str(out)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "left out: c / kidney: " in done.stdout
    assert f"{out}: 3 rows, 1 scans left out" in done.stdout
    assert [path.name for path in out.parent.iterdir()] == ["e.parquet"]
    pd.testing.assert_frame_equal(pd.read_parquet(out), embed_table(model, tmp_path / "site").rows)


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--out", "."], DataError, "is a folder"),
        (["--out", "site/scans.csv/e.parquet"], DataError, "choose another place"),
        (["--device", "cuda:99"], ConfigError, "cuda:99 was asked for"),
    ],
)
def test_the_verb_refuses_what_cannot_be_before_it_embeds_anybody(
    tmp_path: Path,
    model: FrozenModel,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    error: type[Exception],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FrozenModel, "embed", lambda *_: pytest.fail("somebody was embedded"))
    table_of(tmp_path / "site")
    with pytest.raises(error, match=said):
        CliRunner().invoke(app, ["model", "embed", "model", "site", *words], catch_exceptions=False)


def test_a_table_of_which_nothing_can_be_used_is_refused(tmp_path: Path, model: FrozenModel) -> None:
    for own in table_of(tmp_path / "site").values():
        for path in own.values():
            path.write_bytes(b"not a scan")
    with pytest.raises(DataError, match="no scan of"):
        embed_table(model, tmp_path / "site")
