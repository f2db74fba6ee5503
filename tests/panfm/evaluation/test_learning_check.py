"""Does-it-learn tables: the right questions, honest controls, nothing fitted on test subjects."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from panfm.config import Missingness, ModelConfig, PrepareConfig, Recipe
from panfm.data.prepare import prepare_store
from panfm.data.synthetic import CATEGORIES, DISEASES, SyntheticSite, recommended_grids, write_synthetic_site
from panfm.errors import DataError
from panfm.evaluation.embedding import embed_subjects
from panfm.evaluation.learning_check import (
    PARTS,
    PCA_RIDGE,
    TRAINED,
    TRIVIAL,
    UNTRAINED,
    Answer,
    check_learning,
    embedding_scores,
    part_of,
    questions_for,
    read_held_out,
    to_rows,
)
from panfm.evaluation.probes import ridge_scores
from panfm.models.build import initial_parameters

ORGANS = ("heart", "adipose")


@pytest.fixture(scope="module")
def study() -> Recipe:
    grids = {organ: grid for organ, grid in recommended_grids(16).items() if organ in ORGANS}
    return Recipe(organs=grids, model=ModelConfig(width=16, depth=1, heads=2, adapter_width=4, predictor_width=16))


@pytest.fixture(scope="module")
def folders(study: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = []
    for place, split in enumerate(("probe", "test")):
        folder = tmp_path_factory.mktemp(split)
        site = SyntheticSite(name="held-out", organs=ORGANS, num_subjects=24)
        write_synthetic_site(
            folder,
            site,
            seed=1,
            voxels=16,
            missingness=Missingness.mcar,
            missing_rate=0.0,
            first_subject=100 * place,
            split=split,
        )
        prepare_store(folder, folder / "store", study.organs, PrepareConfig())
        made.append(folder)
    return made


@pytest.fixture(scope="module")
def answers(study: Recipe, folders: list[Path]) -> list[Answer]:
    parameters = initial_parameters(study.model, study.organs, seed=99)
    probe, test = (read_held_out(folders, study, split) for split in ("probe", "test"))
    return check_learning(parameters, study, probe, test)


def test_labels_stand_in_the_order_of_the_subjects(study: Recipe, folders: list[Path]) -> None:
    held_out = read_held_out(folders, study, "test")
    lines = (folders[1] / "labels.csv").read_text().splitlines()
    age = lines[0].split(",").index("age")
    by_subject = {line.split(",")[0]: float(line.split(",")[age]) for line in lines[1:]}
    assert held_out.labels["age"].tolist() == [by_subject[name] for name in held_out.dataset.subjects]
    assert not set(held_out.dataset.subjects) & set(read_held_out(folders, study, "probe").dataset.subjects)


def test_an_absent_split_is_said(study: Recipe, folders: list[Path]) -> None:
    with pytest.raises(DataError, match="split 'validation'"):
        read_held_out(folders, study, "validation")


def test_questions_follow_from_the_columns() -> None:
    synthetic = [question.target for question in questions_for(["age", "sex", *CATEGORIES, *DISEASES])]
    assert synthetic == ["13 disease categories", "14 single diseases", "age", "age", "sex"]
    (sex,) = [q for q in questions_for(["age", "sex_male", "brain_ml"]) if q.target == "sex"]
    assert sex.trivial_column == "brain_ml"


def test_every_embedding_answers_every_question(answers: list[Answer]) -> None:
    given = {(answer.embedding, answer.question.target, answer.question.metric) for answer in answers}
    assert len(given) == len(answers) == 8 * 5
    parts = {part_of(whole, part) for whole in (TRAINED, UNTRAINED) for part in PARTS}
    assert {name for name, _, _ in given} == {TRAINED, UNTRAINED, PCA_RIDGE, TRIVIAL} | parts


def test_a_part_is_probed_as_if_it_were_all_there_is(study: Recipe, folders: list[Path]) -> None:
    probe, test = (read_held_out(folders, study, split) for split in ("probe", "test"))
    itself = initial_parameters(study.model, study.organs, study.seed)
    scores = embedding_scores(itself, study, probe, test)
    whole = [embed_subjects(itself, study, part.dataset) for part in (probe, test)]
    width = study.model.width
    for place, part in enumerate(PARTS):
        train, other = (embedding[:, place * width : (place + 1) * width] for embedding in whole)
        (expected,) = ridge_scores(train, probe.labels["age"][None], other)
        assert scores[part_of(TRAINED, part)]["age"] == pytest.approx(expected)


def test_a_trivial_guess_knows_nothing(answers: list[Answer]) -> None:
    trivial = {(a.question.target, a.question.metric): a.value for a in answers if a.embedding == TRIVIAL}
    assert trivial["13 disease categories", "AUC"] == 0.5
    assert trivial["age", "R2"] <= 0.0


def test_an_untrained_model_against_itself_gains_nothing(study: Recipe, folders: list[Path]) -> None:
    probe, test = (read_held_out(folders, study, split) for split in ("probe", "test"))
    itself = initial_parameters(study.model, study.organs, study.seed)
    rows = [
        row for row in to_rows(check_learning(itself, study, probe, test)) if row["embedding"].startswith("untrained")
    ]
    assert [row["gain"] for row in rows] == pytest.approx([0.0] * len(rows), abs=1e-9)
    assert all(row["gain_low"] <= 0.0 <= row["gain_high"] for row in rows)


def test_rows_say_value_interval_and_gain(answers: list[Answer]) -> None:
    rows = to_rows(answers)
    for row, answer in zip(rows, answers, strict=True):
        assert row["low"] <= row["high"]
        shown = next((part_of(TRAINED, part) for part in PARTS if part in answer.embedding), TRAINED)
        trained = next(a for a in answers if a.embedding == shown and a.question == answer.question)
        assert row["gain"] == pytest.approx(trained.value - answer.value)
        assert np.isfinite([row["value"], row["low"], row["high"]]).all()
