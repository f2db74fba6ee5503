"""`panfm evaluate` from an exported model and prepared stores to files, and into the report of a run."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from panfm.cli.main import app
from panfm.config import ModelConfig, OrganGrid, Recipe
from panfm.data.manifest import LabelTable, write_labels
from panfm.data.store import StoreEntry, write_table
from panfm.errors import ConfigError, DataError
from panfm.export.model_folder import ModelFolder, make_card, write_model
from panfm.models.build import initial_parameters
from panfm.reporting.record import RunFinished, read_record, to_line

ORGANS = ("heart", "liver")


def _write_model(folder: Path) -> str:
    """A model that was never trained; returns the digest of its teacher."""
    grids = {organ: OrganGrid(shape=[8, 8, 8], spacing_mm=[2.0, 2.0, 2.0]) for organ in ORGANS}
    model = ModelConfig(width=16, depth=1, heads=2, adapter_width=4, predictor_width=16, patch=4)
    recipe = Recipe(organs=grids, model=model)
    parameters = initial_parameters(model, grids, seed=3)
    card = make_card("trial", 2, parameters, parameters, recipe, ("0", "0"))
    write_model(folder, ModelFolder(student=parameters, teacher=parameters, recipe=recipe, card=card))
    return card.teacher_digest


def _write_site(folder: Path, subjects: int) -> Path:
    """Half of the subjects to fit probes on, half to test them."""
    entries = []
    for place in range(subjects):
        for organ in ORGANS:
            path = folder / "store" / f"sub-{place}_{organ}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.random.default_rng(place).normal(place % 2, 1, size=(8, 8, 8)).astype(np.float16))
            entries.append(
                StoreEntry(
                    subject=f"sub-{place}",
                    visit="1",
                    organ=organ,
                    file=path.name,
                    shape=(8, 8, 8),
                    spacing_mm=(2.0, 2.0, 2.0),
                    source_digest="0" * 64,
                    digest=hashlib.sha256(path.read_bytes()).hexdigest(),
                    split="probe" if place < subjects // 2 else "test",
                )
            )
    write_table(folder / "store", entries)
    names = tuple(f"sub-{place}" for place in range(subjects))
    values = np.array([[place % 2, 50 + place] for place in range(subjects)], dtype=np.float64)
    write_labels(
        folder / "labels.csv",
        LabelTable(names=("cat_a", "age"), subjects=names, visits=("1",) * subjects, values=values),
    )
    return folder


def test_files_and_the_report_of_the_run(tmp_path: Path) -> None:
    digest = _write_model(tmp_path / "model")
    site = _write_site(tmp_path / "north", 40)
    run = tmp_path / "run"
    run.mkdir()
    end = RunFinished(status="complete", reason="", rounds_done=2, seconds=1.0)
    (run / "record.jsonl").write_text(to_line(end) + "\n")
    arguments = ["--out", str(tmp_path / "out"), "--resamples", "20", "--run", str(run), "--dominant", "heart"]
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "model"), str(site), *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    assert "20 subjects to fit, 20 to test, 20 swept" in done.stdout
    assert "without heart" in done.stdout
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert told["model_digest"] == digest
    assert told["settings"] == {"fit": "probe", "test": "test", "resamples": 20, "seed": 0}
    assert (tmp_path / "out" / "sweep.png").is_file()
    assert [type(event).__name__ for event in read_record(run / "record.jsonl")] == ["RunFinished", "ModelEvaluated"]
    assert "Model trial, round 2" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--test", "probe"], DataError, "20 subjects are among those who fit the probes"),
        (["--dominant", "heart,livre"], ConfigError, "got livre"),
        (["--device", "gpu"], ConfigError, "cpu, cuda or cuda:N"),
        (["--run", "nowhere"], DataError, "no record at"),
    ],
)
def test_what_would_be_said_wrongly_or_in_vain_is_refused_before_anything_is_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], error: type[Exception], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("panfm.evaluation.evaluate.embed_cohort", lambda *_: pytest.fail("somebody was embedded"))
    _write_model(tmp_path / "model")
    site = _write_site(tmp_path / "north", 40)
    with pytest.raises(error, match=said):
        CliRunner().invoke(app, ["evaluate", "model", str(site), *words], catch_exceptions=False)
    assert not (tmp_path / "evaluation").exists()


def test_a_split_that_nobody_has_is_named(tmp_path: Path) -> None:
    _write_model(tmp_path / "model")
    site = _write_site(tmp_path / "north", 4)
    with pytest.raises(DataError, match="validation"):
        CliRunner().invoke(
            app, ["evaluate", str(tmp_path / "model"), str(site), "--test", "validation"], catch_exceptions=False
        )
