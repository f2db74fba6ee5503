"""Probes inside a site: the scores by another route, under the recipe's names only, and nothing where too few are known."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from panfm.config import EvaluationConfig
from panfm.evaluation.probes import Floats, ridge_scores
from panfm.evaluation.site_probes import FEWEST_SUBJECTS, LOWEST_R2, Labelled, labels_of, site_probes, wants

CONFIG = EvaluationConfig(numbers=["age"], classes=["sex", "cat_"])


def _people(number: int, seed: int) -> Labelled:
    draws = np.random.default_rng(seed)
    embeddings = draws.normal(size=(number, 4)).astype(np.float32)
    noise = draws.normal(size=(3, number))
    labels: dict[str, Floats] = {
        "age": 50 + 10 * embeddings[:, 0] + noise[0],
        "sex": (embeddings[:, 1] + 0.1 * noise[1] > 0).astype(float),
        "cat_a": (embeddings[:, 2] + 0.1 * noise[2] > 0).astype(float),
        "cat_b": (noise[1] > 0).astype(float),
        "height": noise[0],
    }
    labels["age"][0] = np.nan
    return Labelled(embeddings=embeddings, labels=labels)


FIT, HELD_OUT = _people(40, 1), _people(25, 2)


def test_scores_are_those_of_scikit_learn() -> None:
    found = site_probes(CONFIG, FIT, HELD_OUT)
    assert list(found) == ["age", "sex", "cat_"]

    def predicted(column: str) -> Floats:
        (scores,) = ridge_scores(FIT.embeddings, FIT.labels[column][None], HELD_OUT.embeddings)
        return np.asarray(scores)

    known = np.isfinite(HELD_OUT.labels["age"])
    assert found["age"] == pytest.approx(r2_score(HELD_OUT.labels["age"][known], predicted("age")[known]))
    assert found["sex"] == pytest.approx(roc_auc_score(HELD_OUT.labels["sex"], predicted("sex")))
    both = [roc_auc_score(HELD_OUT.labels[name], predicted(name)) for name in ("cat_a", "cat_b")]
    assert found["cat_"] == pytest.approx(np.mean(both))
    assert found["age"] > 0.9
    assert found["sex"] > 0.9


def test_nothing_is_told_that_the_recipe_does_not_name() -> None:
    assert "height" not in site_probes(CONFIG, FIT, HELD_OUT)
    assert site_probes(EvaluationConfig(), FIT, HELD_OUT) == {}
    assert site_probes(EvaluationConfig(classes=["cat"]), FIT, HELD_OUT) == {}, (
        "only an underscore at the end opens a group"
    )
    assert wants(CONFIG, ["cat_z"])
    assert not wants(CONFIG, ["cat", "height"])


@pytest.mark.parametrize("part", ["fit", "held_out"])
@pytest.mark.parametrize("trouble", ["too few", "one value", "no class"])
def test_what_cannot_be_scored_is_not_told(part: str, trouble: str) -> None:
    parts = {"fit": _people(40, 1), "held_out": _people(25, 2)}
    sex = parts[part].labels["sex"]
    if trouble == "too few":
        sex[FEWEST_SUBJECTS - 1 :] = np.nan
    else:
        sex[:] = 1.0 if trouble == "one value" else sex + 1
    assert list(site_probes(CONFIG, **parts)) == ["age", "cat_"]


def test_a_hopeless_r2_has_a_floor() -> None:
    wrong = Labelled(embeddings=-HELD_OUT.embeddings, labels=HELD_OUT.labels)
    assert site_probes(CONFIG, FIT, wrong)["age"] == LOWEST_R2


def test_labels_stand_in_the_order_of_the_subjects(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("subject,visit,age\nb,1,30\na,1,\nb,2,31\n")
    found = labels_of(tmp_path / "labels.csv", ("a", "b", "c"))
    assert np.array_equal(found["age"], [np.nan, 30.0, np.nan], equal_nan=True)
    assert labels_of(tmp_path / "none.csv", ("a",)) == {}
