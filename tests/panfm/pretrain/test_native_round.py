"""Native spacing from the file to the gradient: one weight is trained by 1 mm voxels and 8 mm slices, nothing resampled."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from panfm.config import AugmentConfig, ModelConfig, OrganGrid, PrepareConfig, PretrainConfig, Recipe, Spacing
from panfm.data.augment import augment, moved
from panfm.data.dataset import SubjectDataset
from panfm.data.manifest import ScanRow, write_scan_table
from panfm.data.prepare import prepare_store
from panfm.data.store import PreparedStore
from panfm.errors import DataError
from panfm.evaluation.embedding import embed_subjects, raw_crops
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.models.pan_organ import PanOrganModel
from panfm.pretrain.local_round import TrainedRound, train_round
from panfm.pretrain.step import draw_masks, patch_counts, step_loss, teacher_view
from panfm.randomness import stream

WEIGHT = "organs.heart.patch_embed.weight"


def _recipe(**organs: OrganGrid) -> Recipe:
    grids = organs or {
        "heart": OrganGrid(shape=[16, 16, 16], spacing=Spacing.native),
        "liver": OrganGrid(shape=[8, 8, 16], spacing_mm=[4.0, 4.0, 4.0]),
    }
    return Recipe(
        rounds=1,
        threads=1,
        organs=grids,
        model=ModelConfig(width=24, depth=2, heads=2, mlp_ratio=2.0, adapter_width=4, predictor_width=24, patch=8),
        prepare=PrepareConfig(margin_voxels=1, clip_percentiles=[0, 100]),
        pretrain=PretrainConfig(steps_per_round=3, batch_size=4, warmup_steps=0, augment=AugmentConfig(shift_voxels=1)),
    )


def _phantom(seed: int, slices: int = 6) -> NDArray[np.float32]:
    """A block of tissue in air, every voxel another brightness: 22 x 22 pixels."""
    voxels = np.zeros((22, 22, slices), dtype=np.float32)
    voxels[1:-1, 1:-1, 1:-1] = 500 + np.random.default_rng(seed).uniform(0, 400, (20, 20, slices - 2))
    return voxels


def _write(path: Path, voxels: NDArray[np.float32], spacing_mm: tuple[float, float, float]) -> Path:
    image_class: Any = nib.Nifti1Image
    image_class(voxels, np.diag([*spacing_mm, 1.0])).to_filename(path)
    return path


def _thin(voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.repeat(voxels, 8, axis=2)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Hearts: a and b of 1 mm, c and d of 1 x 1 x 8 mm, e of 8 mm along X. Livers, resampled: a and c."""
    scans = {
        "a": (_phantom(1, slices=40), (1.0, 1.0, 1.0)),
        "b": (_phantom(2, slices=12), (1.0, 1.0, 1.0)),
        "c": (_phantom(3), (1.0, 1.0, 8.0)),
        "d": (_phantom(4), (1.0, 1.0, 8.0)),
        "e": (np.ascontiguousarray(_phantom(5).T), (8.0, 1.0, 1.0)),
    }
    rows = []
    for name, (voxels, spacing_mm) in scans.items():
        path = _write(tmp_path / f"{name}.nii.gz", voxels, spacing_mm)
        rows += [
            ScanRow(subject=name, organ=organ, path=path)
            for organ in ("heart", "liver")
            if organ == "heart" or name in "ac"
        ]
    write_scan_table(tmp_path / "scans.csv", rows)
    return tmp_path


def _prepared(site: Path, recipe: Recipe) -> PreparedStore:
    return prepare_store(site, site / "store", recipe.organs, recipe.prepare)


def _dataset(site: Path, recipe: Recipe) -> SubjectDataset:
    return SubjectDataset(_prepared(site, recipe), tuple(recipe.organs), recipe.organs)


def _start(recipe: Recipe) -> dict[str, Tensor]:
    return initial_parameters(recipe.model, recipe.organs, recipe.seed)


def _model(recipe: Recipe, parameters: Mapping[str, Tensor]) -> PanOrganModel:
    model = build_model(recipe.model, recipe.organs)
    load_parameters(model, parameters)
    return model


def _train(recipe: Recipe, dataset: SubjectDataset) -> TrainedRound:
    start = _start(recipe)
    return train_round(start, start, dataset, recipe, site="s", round_number=1)


# The store


def test_native_scans_are_stored_in_their_own_voxels(site: Path) -> None:
    store = _prepared(site, _recipe())
    entries = {(e.subject, e.organ): (e.shape, e.spacing_mm, e.native) for e in store.entries}
    assert entries == {
        ("a", "heart"): ((18, 18, 18), (1.0, 1.0, 1.0), True),
        ("a", "liver"): ((10, 10, 18), (4.0, 4.0, 4.0), False),
        ("b", "heart"): ((18, 18, 18), (1.0, 1.0, 1.0), True),
        ("c", "heart"): ((18, 18, 4), (1.0, 1.0, 8.0), True),
        ("c", "liver"): ((10, 10, 18), (4.0, 4.0, 4.0), False),
        ("d", "heart"): ((18, 18, 4), (1.0, 1.0, 8.0), True),
        ("e", "heart"): ((4, 18, 18), (8.0, 1.0, 1.0), True),
    }
    for entry in store.entries:
        assert np.load(store.folder / entry.file).shape == entry.shape
    # No voxel was mixed with another: brightness and stored value rise together, one for one.
    scan, crop = _phantom(4)[2:20, 2:20, 1:5], store.crop(store.entries[5], (0, 0, 0), (18, 18, 4))
    order = np.argsort(scan, axis=None)
    assert np.all(np.diff(crop.ravel()[order]) >= 0)
    assert np.corrcoef(scan.ravel(), crop.ravel())[0, 1] > 0.99999


def test_a_second_pass_changes_nothing_and_a_change_of_spacing_everything(site: Path) -> None:
    recipe = _recipe()

    def files() -> dict[str, tuple[bytes, int]]:
        paths = sorted((site / "store").rglob("*.npy"))
        return {path.name + path.parent.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}

    table = (_prepared(site, recipe).folder / "table.csv").read_bytes()
    before = files()
    assert (_prepared(site, recipe).folder / "table.csv").read_bytes() == table
    assert files() == before
    other = _recipe(
        heart=OrganGrid(shape=[16, 16, 16], spacing=Spacing.native, max_degree=2), liver=recipe.organs["liver"]
    )
    _prepared(site, other)
    assert {name for name, content in files().items() if content != before[name]} == {
        f"{subject}.npyheart" for subject in "abcde"
    }


def test_a_store_of_the_other_kind_is_refused(site: Path) -> None:
    native, heart = _recipe(), [16, 16, 16]
    resampled = _recipe(heart=OrganGrid(shape=heart, spacing_mm=[1.0, 1.0, 1.0]), liver=native.organs["liver"])
    store = _prepared(site, native)
    with pytest.raises(
        DataError, match=r"a / heart is stored .* in its own spacing, the study wants .* of \[1.0, 1.0, 1.0\]"
    ):
        SubjectDataset(store, ("heart",), resampled.organs)
    store = _prepared(site, resampled)
    with pytest.raises(
        DataError, match=r"a / heart is stored as .*, the study wants \[16, 16, 16\] of its own spacing"
    ):
        SubjectDataset(store, ("heart",), native.organs)
    bigger = {"heart": OrganGrid(shape=[16, 16, 32], spacing=Spacing.native)}
    with pytest.raises(DataError, match=r"the study wants \[16, 16, 32\]"):
        SubjectDataset(_prepared(site, native), ("heart",), bigger)


# The batch


def test_a_mixed_batch_gives_each_scan_the_tokens_that_it_has_alone(site: Path) -> None:
    """In fp64, where the order in which a product is summed does not show; features in fp32, as they are used."""
    recipe = _recipe()
    dataset, model = _dataset(site, recipe), _model(recipe, _start(recipe))
    exact = _model(recipe, _start(recipe)).group("heart").patch_embed.double()
    batch = dataset.batch(range(5))
    assert sorted(block.thickness for block in batch.native["heart"].blocks) == [(1, 1, 1), (1, 1, 8), (8, 1, 1)]
    assert sorted(batch.volumes) == ["liver"]
    tokens = exact(batch.native["heart"].changed(lambda block: block.volumes.double()))
    together = model(batch.scans, batch.rows, 5)
    for index in range(5):
        own = dataset.batch([index])
        alone = model(own.scans, own.rows, 1)
        alone_tokens = exact(own.native["heart"].changed(lambda block: block.volumes.double()))
        torch.testing.assert_close(tokens[index], alone_tokens[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(together.patches["heart"][index], alone.patches["heart"][0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.subject[index], alone.subject[0], rtol=0, atol=1e-5)


def test_features_are_those_of_the_whole_kernel_on_repeated_voxels(site: Path) -> None:
    recipe = _recipe()
    batch, model = _dataset(site, recipe).batch(range(5)), _model(recipe, _start(recipe))
    hidden = {
        organ: torch.rand(len(rows), n, generator=torch.Generator().manual_seed(n)) < 0.5
        for (organ, rows), n in zip(batch.rows.items(), (8, 2), strict=True)
    }
    native = model(batch.scans, batch.rows, 5, hidden, saliency_blocks=1)
    repeated = {**batch.volumes, "heart": batch.native["heart"].repeated()}
    whole = model(repeated, batch.rows, 5, hidden, saliency_blocks=1)
    torch.testing.assert_close(native.subject, whole.subject, rtol=0, atol=1e-5)
    for organ in batch.rows:
        for part in ("organ", "patches", "attention"):
            torch.testing.assert_close(getattr(native, part)[organ], getattr(whole, part)[organ], rtol=0, atol=1e-5)


def test_shifted_crops_and_augmentation_do_not_depend_on_who_else_is_there(site: Path) -> None:
    recipe = _recipe()
    config = replace(recipe.pretrain.augment, rotation_deg=20.0, translation_mm=2.0, blur_mm=1.0, bias=0.1)
    dataset = _dataset(site, recipe)

    def seen(indices: list[int]) -> dict[str, Tensor]:
        names = [dataset.subjects[index] for index in indices]
        batch = dataset.batch(indices, [stream(0, name, "crop") for name in names], shift_voxels=1)
        batch = moved(batch, config, [stream(0, name, "move") for name in names], recipe.organs)
        batch = augment(batch, config, [stream(0, name, "augment") for name in names], recipe.organs)
        return dict(zip(names, batch.native["heart"].repeated(), strict=True))

    together = seen([4, 2, 0, 3, 1])
    for index in range(5):
        ((name, alone),) = seen([index]).items()
        assert torch.equal(together[name], alone)
    assert not torch.equal(together["c"], dataset.batch([2]).native["heart"].repeated()[0])


# Training


def test_a_round_trains_one_weight_on_thin_and_thick_scans(site: Path) -> None:
    recipe = _recipe()
    trained = _train(recipe, _dataset(site, recipe))
    assert math.isfinite(trained.metrics.loss)
    assert trained.organ_subjects == {"heart": 5, "liver": 2}
    assert [name for name in trained.deltas if name.endswith("patch_embed.weight")] == [
        WEIGHT,
        WEIGHT.replace("heart", "liver"),
    ]
    for name, delta in trained.deltas.items():
        assert torch.isfinite(delta).all(), name
    assert trained.deltas[WEIGHT].abs().max() > 0


@pytest.mark.parametrize("subject", ["a", "c", "e"])
def test_each_kind_of_scan_gives_a_gradient_to_the_weight(site: Path, subject: str) -> None:
    """a has voxels of 1 mm, c slices of 8 mm across Z, e across X: taps under one thick voxel learn the same."""
    recipe = _recipe()
    dataset, model = _dataset(site, recipe), _model(recipe, _start(recipe))
    batch = dataset.batch([dataset.subjects.index(subject)])
    target, saliency = teacher_view(_model(recipe, _start(recipe)), batch, 1)
    counts = {organ: patch_counts(recipe.organs[organ], recipe.model.patch) for organ in batch.rows}
    draws = [[stream(0, purpose)] for purpose in ("organ", "patch")]
    only_patches = replace(recipe.pretrain.organ_mask, rate=0.0)
    masks = draw_masks(batch, saliency, counts, only_patches, recipe.pretrain.patch_mask, *draws)
    torch.autograd.backward(step_loss(model, batch, target, masks, recipe.pretrain.loss).total)
    gradient = model.group("heart").patch_embed.weight.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
    same = {axis for axis in range(3) if torch.equal(gradient.narrow(axis + 2, 0, 1).expand_as(gradient), gradient)}
    assert same == {"a": set(), "c": {2}, "e": {0}}[subject]


def test_the_same_round_again_gives_the_same_bits(site: Path) -> None:
    recipe = _recipe()
    first, second = (_train(recipe, _dataset(site, recipe)).deltas for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_gpu_gives_the_same_training(site: Path) -> None:
    recipe = _recipe()
    here, start = _train(recipe, _dataset(site, recipe)), _start(recipe)
    there = train_round(start, start, _dataset(site, recipe), recipe, site="s", round_number=1, device="cuda")
    assert there.metrics.loss == pytest.approx(here.metrics.loss, rel=1e-3)


# What it is for


def test_a_phantom_stored_thick_or_thin_has_the_same_embedding(tmp_path: Path) -> None:
    """One body, once as 8 mm slices and once as 1 mm voxels that repeat them: the same embedding, with 1/8 of the voxels."""
    voxels = _phantom(7)
    rows = [
        ScanRow(subject="thick", organ="heart", path=_write(tmp_path / "thick.nii", voxels, (1.0, 1.0, 8.0))),
        ScanRow(subject="thin", organ="heart", path=_write(tmp_path / "thin.nii", _thin(voxels), (1.0, 1.0, 1.0))),
    ]
    write_scan_table(tmp_path / "scans.csv", rows)
    recipe = _recipe(heart=OrganGrid(shape=[16, 16, 16], spacing=Spacing.native))
    recipe.prepare.margin_voxels = recipe.pretrain.augment.shift_voxels = 0
    dataset = _dataset(tmp_path, recipe)
    thick, thin = embed_subjects(_start(recipe), recipe, dataset)
    np.testing.assert_allclose(thick, thin, rtol=0, atol=1e-5)
    assert np.abs(thick).max() > 0.1
    blocks = {block.thickness: block.volumes.numel() for block in dataset.batch([0, 1]).native["heart"].blocks}
    assert blocks == {(1, 1, 1): 16**3, (1, 1, 8): 16**3 // 8}
    # The linear control reads what the whole kernel would read.
    table = raw_crops(dataset)
    assert table.shape == (2, 16**3)
    np.testing.assert_allclose(table[0], table[1], rtol=0, atol=1e-3)


def test_real_brains_and_cardiac_slices_in_one_store(real_data: Path, tmp_path: Path) -> None:
    """2 mm isotropic brains beside 1.3 x 1.3 x 8 to 10 mm hearts, each in its own voxels."""
    hearts = sorted((real_data / "heart_sunnybrook").glob("*_E?.nii.gz"))
    if not hearts:
        pytest.skip("no cardiac scans among the real data")
    brains = sorted((real_data / "brain_ixi").glob("*_T1brain.nii.gz"))[:3]
    rows = [ScanRow(subject=p.name[:10], visit=p.name[11:13], organ="heart", path=p) for p in hearts]
    rows += [ScanRow(subject=p.name[:6], organ="brain", path=p, window=(1, 255)) for p in brains]
    write_scan_table(tmp_path / "scans.csv", rows)
    recipe = _recipe(
        brain=OrganGrid(shape=[32, 32, 32], spacing=Spacing.native),
        heart=OrganGrid(shape=[32, 32, 32], spacing=Spacing.native),
    )
    dataset = _dataset(tmp_path, recipe)
    batch = dataset.batch(range(len(dataset)))
    # Short-axis slices are oblique; their normal lies closest to the front in all three.
    assert {o: [b.thickness for b in v.blocks] for o, v in batch.native.items()} == {
        "brain": [(1, 1, 1)],
        "heart": [(1, 4, 1)],
    }
    trained = _train(recipe, dataset)
    assert math.isfinite(trained.metrics.loss)
    for organ in ("brain", "heart"):
        delta = trained.deltas[f"organs.{organ}.patch_embed.weight"]
        assert torch.isfinite(delta).all()
        assert delta.abs().max() > 0
