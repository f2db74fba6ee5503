"""Does it learn? Probes on the final model, beside the same probes on controls, on subjects that no site trained on.

Parts of the embedding are probed alone too: the subject token, which only training can fill, and the mean of the patch tokens,
which is what first trials on brains were measured with. Controls: the untrained model (same
architecture and seed), PCA and ridge on the raw crops, and a trivial guess (the mean age; brain volume for sex; nothing for
diseases). What the trained model adds over the untrained one is what pre-training taught; PCA and ridge is the bar that a
linear method sets on the same subjects.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from panfm.config import Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.manifest import read_labels
from panfm.data.store import PreparedStore
from panfm.errors import DataError
from panfm.evaluation.embedding import embed_subjects, raw_crops
from panfm.evaluation.probes import (
    Floats,
    Measure,
    auc,
    bootstrap,
    interval,
    mean_absolute_error,
    pca_ridge_scores,
    r2,
    ridge_scores,
)
from panfm.models.build import initial_parameters
from panfm.randomness import stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Something to read from embeddings: one measure, averaged over some label columns."""

    target: str
    """Name for people, such as "age" or "13 disease categories"."""
    columns: tuple[str, ...]
    metric: str
    measure: Measure
    trivial_column: str = ""
    """A covariate that alone is the trivial guess; empty: the probe subjects' mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Subjects of one split, with labels in the order of the subjects."""

    dataset: SubjectDataset
    labels: dict[str, Floats]
    """column -> [n], NaN where unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One embedding's answer to one question, with its bootstrap samples."""

    embedding: str
    question: Question
    value: float
    samples: Floats
    """[resamples], paired over the embeddings of a question."""


TRAINED, UNTRAINED, PCA_RIDGE, TRIVIAL = "trained model", "untrained model", "PCA + ridge on raw crops", "trivial guess"
PARTS = ("token alone", "patch mean")
"""Parts of a subject's embedding, in its order, each as wide as the model: the subject token, the mean of the patch tokens. Short
words, for they stand beside the axes of the report."""

Scores = dict[str, dict[str, Floats]]
"""embedding -> label column -> [n] predictions for the test subjects."""


def questions_for(columns: Sequence[str]) -> list[Question]:
    """The questions that these label columns allow."""
    groups = {
        "13 disease categories": tuple(name for name in columns if name.startswith("cat_")),
        "14 single diseases": tuple(name for name in columns if name.startswith("dx_")),
    }
    found = [Question(target=t, columns=c, metric="AUC", measure=auc) for t, c in groups.items() if c]
    if "age" in columns:
        found.append(Question(target="age", columns=("age",), metric="R2", measure=r2))
        found.append(Question(target="age", columns=("age",), metric="MAE", measure=mean_absolute_error))
    for sex in ("sex", "sex_male"):
        if sex in columns:
            volume = "brain_ml" if "brain_ml" in columns else ""
            found.append(Question(target="sex", columns=(sex,), metric="AUC", measure=auc, trivial_column=volume))
    return found


def read_held_out(folders: Sequence[Path], recipe: Recipe, split: str) -> HeldOut:
    """The subjects of a split from the one folder that has it.

    Raises: DataError when no folder has subjects of this split.
    """
    for folder in folders:
        store = PreparedStore.open(folder / "store")
        held = {entry.organ for entry in store.entries if entry.split == split}
        if held:
            organs = [organ for organ in recipe.organs if organ in held]
            dataset = SubjectDataset(store, organs, recipe.organs, split)
            return HeldOut(dataset=dataset, labels=_labels(folder, dataset.subjects))
    raise DataError(
        f"no subject of split {split!r} was prepared, so there is nothing to probe; check the cohort's settings"
    )


def check_learning(trained: Mapping[str, Tensor], recipe: Recipe, probe: HeldOut, test: HeldOut) -> list[Answer]:
    """All answers of all embeddings, question by question."""
    scores = embedding_scores(trained, recipe, probe, test)
    answers = []
    for question in questions_for(list(test.labels)):
        for name, by_column in scores.items():
            answers.append(_answer(name, question, np.stack([by_column[c] for c in question.columns]), test, recipe))
        answers.append(_answer(TRIVIAL, question, _trivial(question, probe, test), test, recipe))
    return answers


def embedding_scores(trained: Mapping[str, Tensor], recipe: Recipe, probe: HeldOut, test: HeldOut) -> Scores:
    """What probes, fitted on the probe subjects' embeddings, say of the test subjects."""
    untrained = initial_parameters(recipe.model, recipe.organs, recipe.seed)
    inputs = {
        TRAINED: [embed_subjects(trained, recipe, part.dataset) for part in (probe, test)],
        UNTRAINED: [embed_subjects(untrained, recipe, part.dataset) for part in (probe, test)],
        PCA_RIDGE: [raw_crops(part.dataset) for part in (probe, test)],
    }
    for place, part in enumerate(PARTS):
        columns = slice(place * recipe.model.width, (place + 1) * recipe.model.width)
        for whole in (TRAINED, UNTRAINED):
            inputs[part_of(whole, part)] = [embedding[:, columns] for embedding in inputs[whole]]
    asked = sorted({column for question in questions_for(list(test.labels)) for column in question.columns})
    targets = np.stack([probe.labels[column] for column in asked])
    scores: Scores = {}
    for name, (train, other) in inputs.items():
        predict = pca_ridge_scores if name == PCA_RIDGE else ridge_scores
        scores[name] = dict(zip(asked, predict(train, targets, other), strict=True))
    return scores


def part_of(whole: str, part: str) -> str:
    """What a part of the trained or untrained model's embedding is called."""
    return f"{whole.removesuffix(' model')}, {part}"


def to_rows(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """The answers as rows of a `panfm.reporting.record.ProbeTable`.

    Beside its own value and interval each row says by how much the trained model exceeds it (`gain`), with the interval of
    that difference on the same resampled subjects. For an error, a negative gain is the better one.
    """
    given = {(a.embedding, a.question.target, a.question.metric): a for a in answers}
    return [_row(a, given[counterpart(a.embedding), a.question.target, a.question.metric]) for a in answers]


def counterpart(embedding: str) -> str:
    """What the trained model has to show against this embedding: part against part, all else against the whole."""
    own = [part for part in PARTS if embedding.endswith(part)]
    return part_of(TRAINED, own[0]) if own else TRAINED


def _row(answer: Answer, trained: Answer) -> dict[str, Any]:
    low, high = interval(answer.samples)
    gain_low, gain_high = interval(trained.samples - answer.samples)
    return {
        "embedding": answer.embedding,
        "target": answer.question.target,
        "metric": answer.question.metric,
        "value": answer.value,
        "low": low,
        "high": high,
        "gain": trained.value - answer.value,
        "gain_low": gain_low,
        "gain_high": gain_high,
    }


def _answer(name: str, question: Question, scores: Floats, test: HeldOut, recipe: Recipe) -> Answer:
    targets = np.stack([test.labels[column] for column in question.columns])
    known = np.isfinite(targets).all(0)
    targets, scores = targets[:, known], scores[:, known]
    resampling = stream(recipe.seed, "bootstrap", question.target, question.metric)
    return Answer(
        embedding=name,
        question=question,
        value=float(np.nanmean(question.measure(targets, scores))),
        samples=bootstrap(question.measure, targets, scores, resampling),
    )


def _trivial(question: Question, probe: HeldOut, test: HeldOut) -> Floats:
    number = len(test.dataset)
    if question.trivial_column:
        return np.stack([test.labels[question.trivial_column]] * len(question.columns))
    return np.stack([np.full(number, np.nanmean(probe.labels[column])) for column in question.columns])


def _labels(folder: Path, subjects: Sequence[str]) -> dict[str, Floats]:
    table = read_labels(folder / "labels.csv")
    row_of = {subject: row for row, subject in reversed(list(enumerate(table.subjects)))}
    missing = [subject for subject in subjects if subject not in row_of]
    if missing:
        raise DataError(
            f"labels.csv has no line for {missing[0]} and {len(missing) - 1} more; add them or drop the scans"
        )
    rows = [row_of[subject] for subject in subjects]
    return {name: table.values[rows, column] for column, name in enumerate(table.names)}
