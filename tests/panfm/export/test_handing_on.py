"""A model that is handed on is the run's own, checked, with a card that says where it comes from."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from panfm.cli.main import app
from panfm.config import ModelConfig, OrganGrid, PrivacyConfig, PrivacyMode, Recipe
from panfm.errors import CheckpointError
from panfm.export.handing_on import card_of, export_run
from panfm.export.model_card import CARD_FILE, card_text
from panfm.export.model_folder import ModelFolder, make_card, read_model, write_model
from panfm.models.build import initial_parameters
from panfm.reporting.record import Event, RoundEvaluated, RunFinished, RunStarted, SiteAnswered, SiteJoined, to_line

SMALL = ModelConfig(width=16, depth=2, heads=2, adapter_width=4, predictor_width=16, patch=4)


def model(round_number: int) -> ModelFolder:
    grids = {organ: OrganGrid(shape=[8, 8, 8], spacing_mm=[3.0, 3.0, 3.0]) for organ in ("brain", "liver")}
    recipe = Recipe(organs=grids, model=SMALL)
    parameters = initial_parameters(recipe.model, recipe.organs, seed=round_number)
    card = make_card("liver-study", round_number, parameters, parameters, recipe, ("0", "0"))
    return ModelFolder(student=parameters, teacher=parameters, recipe=recipe, card=card)


def evaluated(best: int) -> RoundEvaluated:
    return RoundEvaluated(
        round=best, sites=["north"], metrics={}, score=0.5, best_round=best, model_digest="0", seconds=1.0
    )


def events(best: int | None) -> list[Event]:
    answered = [
        SiteAnswered(round=number, site="north", outcome=outcome, num_subjects=12)
        for number, outcome in ((1, "accepted"), (2, "left_out"), (3, "accepted"))
    ]
    return [
        SiteJoined(site="north", organs=["brain", "liver"], panfm_version="0"),
        *answered,
        *([evaluated(best)] if best else []),
        RunFinished(status="complete", reason="", rounds_done=3, seconds=1.0, model="model"),
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three rounds, the second of which was the best."""
    folder = tmp_path / "runs" / "study"
    write_model(folder / "model", model(3))
    write_model(folder / "best" / "round-0002", model(2))
    (folder / "record.jsonl").write_text("".join(to_line(event) + "\n" for event in events(best=2)))
    return folder


@pytest.mark.parametrize(("best", "round_number"), [(False, 3), (True, 2)])
def test_the_model_is_the_runs_and_its_card_says_who_trained_it(
    run: Path, tmp_path: Path, best: bool, round_number: int
) -> None:
    out = export_run(run, tmp_path / "handed on", best=best)
    handed = read_model(out)
    assert handed.card == model(round_number).card
    card = (out / CARD_FILE).read_text()
    assert card == card_of(out)
    assert f"round {round_number}" in card.splitlines()[0]
    assert "| north | brain, liver | 2 | 12 |" in card
    assert "The run is complete." in card
    assert handed.card.teacher_digest in card


def test_a_card_inside_a_run_knows_its_record_and_another_does_not(run: Path, tmp_path: Path) -> None:
    assert "| north |" in card_of(run / "model")
    write_model(tmp_path / "alone", model(1))
    assert "north" not in card_of(tmp_path / "alone")


def private_events() -> list[Event]:
    """Two sites with noise: one with a ledger, which was also charged for an answer that did not count, and one without."""
    spent = [
        SiteAnswered(
            round=n, site="north", outcome=o, num_subjects=1, epsilon=e, epsilon_delta=1e-6, epsilon_budget=3.0
        )
        for n, o, e in ((1, "accepted", 0.83219), (2, "left_out", 1.41646))
    ]
    started = RunStarted(
        run="r",
        recipe="",
        seed=0,
        rounds=2,
        panfm_version="0",
        torch_version="0",
        flower_version="0",
        group_parameters={},
        init_from="/start/model",
    )
    return [
        started,
        *(SiteJoined(site=site, organs=["liver"], panfm_version="0") for site in ("north", "south")),
        *spent,
        SiteAnswered(round=1, site="south", outcome="accepted", num_subjects=1),
    ]


def test_a_card_says_of_privacy_what_was_told_of_it() -> None:
    """And of a private model nothing of a number of subjects, for what a site sends then is no count."""
    open_, private = model(2), model(2)
    private.recipe.privacy = PrivacyConfig(mode=PrivacyMode.dp_adapters, noise_multiplier=4.25)
    words = card_text(private, "m", private_events())
    assert "Trained with subject-level differential privacy (`dp_adapters`, noise multiplier 4.25," in words
    assert "without differential privacy" not in words
    assert "| site | organs | rounds that counted | epsilon told, at delta |" in words
    assert "| north | liver | 1 | 1.42 at 1e-06 |" in words
    assert "| south | liver | 1 | none |" in words
    assert "It began from another model" in words
    assert "/start" not in words
    assert "The run has not ended." in words
    told = card_text(open_, "m", events(best=None))
    assert "Trained without differential privacy" in told
    assert "epsilon" not in told


def test_what_is_there_is_not_written_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(CheckpointError, match="already"):
        export_run(run, tmp_path / "taken")


def test_a_run_without_evaluations_has_no_best_round(run: Path, tmp_path: Path) -> None:
    (run / "record.jsonl").write_text("".join(to_line(event) + "\n" for event in events(best=None)))
    with pytest.raises(CheckpointError, match="no best round"):
        export_run(run, tmp_path / "out", best=True)
    assert not (tmp_path / "out").exists()


def test_a_damaged_model_is_not_handed_on(run: Path, tmp_path: Path) -> None:
    path = run / "model" / "teacher.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="digest"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_verbs_print_what_they_made(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported = CliRunner().invoke(app, ["model", "export", str(run), str(out)])
    assert (exported.exit_code, exported.stdout) == (0, f"{out}\n")
    shown = CliRunner().invoke(app, ["model", "card", str(out)])
    assert shown.stdout == (out / CARD_FILE).read_text()
