"""A hospital's own look back at a study: its prepared scans as the model saw them, with one draw of masks over them.

Made at the site from its own store, the model and its stored answers. The page shows scans and stays in the site's folder.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import numpy as np

import panfm
from panfm.config import Recipe
from panfm.data.dataset import Batch, SubjectDataset
from panfm.data.native_batch import on_grid
from panfm.data.store import REFUSED, PreparedStore
from panfm.export.model_folder import ModelFolder
from panfm.models.build import build_model, load_parameters
from panfm.pretrain.step import Masks, draw_masks, patch_counts, teacher_view
from panfm.randomness import stream
from panfm.reporting.site_report import (
    AnsweredRound,
    MissedScan,
    PreparedOrgan,
    SiteSummary,
    read_refused,
    write_site_report,
)
from panfm.reporting.slices import OrganPicture
from panfm.site.answers import AnswerStore
from panfm.site.policy_file import read_policy

PICTURED_SUBJECTS = 4


def make_site_report(folder: Path, model: ModelFolder) -> Path:
    """Write the site's `site_report.html`; returns where it lies.

    Args:
        folder: the site's folder, with policy, store and state.
        model: the model that chooses what is masked.
    """
    policy, store, recipe = read_policy(folder), PreparedStore.open(folder / "store"), model.recipe
    organs = tuple(organ for organ in recipe.organs if organ in policy.organs)
    dataset = SubjectDataset(store, organs, recipe.organs)
    answers, pictures = AnswerStore(folder / "state" / "answers"), _pictures(dataset, store, model, policy.site)
    summary = SiteSummary(
        run=model.card.run,
        panfm_version=panfm.__version__,
        prepared=[_prepared(store, dataset, organ, recipe) for organ in dataset.num_subjects],
        refused=read_refused(folder / "store" / REFUSED),
        missed=_missed(answers, model, dataset),
        rounds=_rounds(answers, model),
    )
    return write_site_report(folder, policy.site, pictures, summary)


def _prepared(store: PreparedStore, dataset: SubjectDataset, organ: str, recipe: Recipe) -> PreparedOrgan:
    grid = recipe.organs[organ]
    return PreparedOrgan(
        organ=organ,
        num_subjects=dataset.num_subjects[organ],
        num_scans=sum(entry.organ == organ for entry in store.entries),
        shape=(grid.shape[0], grid.shape[1], grid.shape[2]),
        spacing_mm=_middle_spacing(store, organ),
    )


def _middle_spacing(store: PreparedStore, organ: str) -> tuple[float, float, float]:
    """Median spacing of the organ's stored scans: the grid's, unless they keep their own."""
    x, y, z = np.median([entry.spacing_mm for entry in store.entries if entry.organ == organ], axis=0).tolist()
    return x, y, z


def _missed(answers: AnswerStore, model: ModelFolder, dataset: SubjectDataset) -> list[MissedScan]:
    """Scans that the rounds of this run did without, and those that cannot be pictured now."""
    numbered = [(f"round {n}", answers.dropped(model.card.run, n)) for n in range(1, model.card.round + 1)]
    return [
        MissedScan(when=when, subject=scan.subject, visit=scan.visit, organ=scan.organ, reason=scan.reason)
        for when, scans in (*numbered, ("this report", dataset.dropped))
        for scan in scans
    ]


def _rounds(answers: AnswerStore, model: ModelFolder) -> list[AnsweredRound]:
    numbers = [n for n in range(1, model.card.round + 1) if answers.digest(model.card.run, n) is not None]
    given = [answers.read(model.card.run, number) for number in numbers]
    return [
        AnsweredRound(
            round=answer.round,
            answer="update",
            loss=answer.metrics.loss_patch,
            collapse_loss=answer.metrics.collapse_loss,
            seconds=answer.metrics.seconds,
        )
        for answer in given
        if answer.metrics is not None
    ]


def _pictures(dataset: SubjectDataset, store: PreparedStore, model: ModelFolder, site: str) -> list[OrganPicture]:
    """One draw of masks by the final teacher, for the first subjects of each organ."""
    recipe = model.recipe
    chosen = _first_of_each(dataset, store)
    # With generators: a scan that changed since is left out, and named in the report, rather than ending it.
    batch = dataset.batch(
        chosen, [stream(recipe.seed, site, "site report", dataset.subjects[i], "visit") for i in chosen]
    )
    network = build_model(recipe.model, {organ: recipe.organs[organ] for organ in dataset.organs})
    load_parameters(network, {name: model.teacher[name] for name, _ in network.named_parameters()})
    _, saliency = teacher_view(network, batch, recipe.pretrain.organ_mask.saliency_blocks)
    draws = [
        [stream(recipe.seed, site, "site report", name, purpose) for name in batch.subjects]
        for purpose in ("organ mask", "patch mask")
    ]
    counts = {organ: patch_counts(recipe.organs[organ], recipe.model.patch) for organ in batch.rows}
    masks = draw_masks(batch, saliency, counts, recipe.pretrain.organ_mask, recipe.pretrain.patch_mask, *draws)
    return [
        _picture(batch, masks, recipe, organ, place)
        for organ in batch.rows
        for place in range(batch.rows[organ].numel())
    ]


def _first_of_each(dataset: SubjectDataset, store: PreparedStore) -> list[int]:
    """Places of the first few subjects of each organ: an organ that the very first ones lack is pictured too."""
    holders = {organ: sorted({e.subject for e in store.entries if e.organ == organ}) for organ in dataset.organs}
    chosen = {subject for subjects in holders.values() for subject in subjects[:PICTURED_SUBJECTS]}
    return [place for place, subject in enumerate(dataset.subjects) if subject in chosen]


def _picture(batch: Batch, masks: Masks, recipe: Recipe, organ: str, place: int) -> OrganPicture:
    row, grid = int(batch.rows[organ][place]), recipe.organs[organ]
    native = batch.native.get(organ)
    # Thick voxels are repeated and as much shorter, so that patches have as many voxels in every direction as in the model.
    x, y, z = grid.spacing_mm if native is None else native.repeated_spacing_mm()[place].tolist()
    return OrganPicture(
        organ=organ,
        subject=batch.subjects[row],
        volume=on_grid(batch.scans[organ])[place].numpy().astype(np.float32),
        spacing_mm=(x, y, z),
        patch=recipe.model.patch,
        masked_patches=masks.patches[organ][place].reshape(patch_counts(grid, recipe.model.patch)).numpy(),
        organ_masked=bool(masks.organs[row, batch.organs.index(organ)]),
    )
