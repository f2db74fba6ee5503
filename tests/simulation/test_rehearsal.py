"""A whole rehearsal, from nothing to the reports, and what is left of one that was stopped or fell short."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console

from panfm import recipes
from panfm.config import RunConfig, Spacing
from panfm.data.native import thickness_of
from panfm.data.store import PreparedStore
from panfm.errors import CheckpointError, ConfigError, DataError, PortInUseError, RunError
from panfm.export.model_folder import read_model
from panfm.models.build import build_model, load_parameters
from panfm.reporting.record import (
    AnswersAccepted,
    ProbeTable,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
    SiteAnswered,
    SiteJoined,
    read_record,
)
from panfm.site.audit_chain import head_from
from panfm.site.audit_log import inspect_folder
from panfm.site.identity import read_public_key
from panfm.site.report import make_site_report
from simulation import rehearsal
from simulation.hospitals import RehearsalCohort
from simulation.progress import Display
from simulation.rehearsal import named, probe_lines, rehearse
from tests.client.small_study import HELD, SmallStudy


def _rehearse(config: RunConfig) -> tuple[Path, str]:
    """The report, and what a person saw."""
    seen = io.StringIO()
    with Display(Console(file=seen, width=200)) as display:
        report = rehearse(config, display)
    return report, seen.getvalue()


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a rehearsal that went to its end, and what a person saw of it."""
    runs = tmp_path_factory.mktemp("runs")
    report, seen = _rehearse(recipes.load(["recipe=smoke", "name=whole", f"runs={runs}"]))
    assert report == runs / "whole" / "report.html"
    return report.parent, seen


def test_record_tells_the_whole_way_in_order(rehearsed: tuple[Path, str]) -> None:
    events = list(read_record(rehearsed[0] / "record.jsonl"))
    kinds = [type(event) for event in events]
    one_round = [RoundStarted, *[SiteAnswered] * 3, AnswersAccepted, RoundFinished]
    assert kinds == [RunStarted, *[SiteJoined] * 3, *one_round, *one_round, RunFinished, ProbeTable]
    assert [event.status for event in events if isinstance(event, RunFinished)] == ["complete"]
    assert {event.outcome for event in events if isinstance(event, SiteAnswered)} == {"accepted"}


def test_exported_model_can_be_built_and_filled(rehearsed: tuple[Path, str]) -> None:
    exported = read_model(rehearsed[0] / "model")
    network = build_model(exported.recipe.model, exported.recipe.organs)
    for parameters in (exported.student, exported.teacher):
        load_parameters(network, parameters)
    assert exported.card.round == 2
    assert exported.recipe.recipe == "smoke"


def test_reports_of_the_run_and_of_each_hospital_are_there(rehearsed: tuple[Path, str]) -> None:
    folder = rehearsed[0]
    page = (folder / "report.html").read_text()
    assert "</html>" in page
    for site in HELD:
        own = (folder / "hospitals" / site / "site_report.html").read_text()
        assert "</html>" in own
        assert f"hospitals/{site}/site_report.html" in page
        assert "sub-0" in own
    assert "sub-0" not in page


def test_each_hospital_has_an_audit_log_that_the_run_is_a_witness_of(rehearsed: tuple[Path, str]) -> None:
    folder = rehearsed[0]
    answers = [event for event in read_record(folder / "record.jsonl") if isinstance(event, SiteAnswered)]
    for site in HELD:
        own = folder / "hospitals" / site
        heads = [head_from(answer.audit_head) for answer in answers if answer.site == site]
        found = inspect_folder(own, read_public_key(own), heads)
        assert found.fault is None
        one_round = ["task_received", "answer_sent"]
        assert [entry.event for entry in found.entries] == ["log_opened", "answer_sent", *one_round, *one_round]
        assert found.head == heads[-1]
        content = (own / "state" / "audit.log").read_bytes()
        for secret in (b"sub-", b".nii", b".npy", str(folder).encode()):
            assert secret not in content
    keys = {read_public_key(folder / "hospitals" / site) for site in HELD}
    assert len(keys) == len(HELD), "each has a key of its own"


def test_person_sees_each_round_and_the_probes(rehearsed: tuple[Path, str]) -> None:
    lines = rehearsed[1].splitlines()
    assert any(line.startswith("3 hospitals ready after") for line in lines)
    assert sum(line.startswith("round ") for line in lines) == 2
    assert "run whole is complete after 2 rounds" in rehearsed[1]
    (table,) = (e for e in read_record(rehearsed[0] / "record.jsonl") if isinstance(e, ProbeTable))
    assert [line.rstrip() for line in probe_lines(table)] == [line for line in lines if line in set(probe_lines(table))]
    embeddings = {"trained model", "untrained model", "PCA + ridge on raw crops", "trivial guess"}
    assert {row["embedding"] for row in table.rows} >= embeddings


def test_a_name_is_used_once(rehearsed: tuple[Path, str]) -> None:
    config = recipes.load(["recipe=smoke", "name=whole", f"runs={rehearsed[0].parent}"])
    before = sorted(rehearsed[0].rglob("*"))
    with pytest.raises(ConfigError, match=r"run called whole in .* already; give another name="):
        _rehearse(config)
    (rehearsed[0].parent / "half").mkdir()
    with pytest.raises(ConfigError, match=r"there is a folder .*half already"):
        _rehearse(replace(config, name="half"))
    assert sorted(rehearsed[0].rglob("*")) == before


def test_run_without_a_name_is_called_by_recipe_and_time() -> None:
    config = recipes.load(["recipe=smoke"])
    noon = datetime(2026, 3, 4, 12, 0, 5)
    assert named(config, noon).name == "smoke-20260304-120005"
    assert named(replace(config, name="mine"), noon).name == "mine"


def test_port_in_use_is_said_before_any_work(tmp_path: Path, taken_port: int) -> None:
    settings = ["recipe=smoke", "name=x", f"runs={tmp_path}", "engine=loopback", f"port={taken_port}"]
    with pytest.raises(PortInUseError, match=f"port {taken_port} on 127.0.0.1 is in use; stop the program"):
        _rehearse(recipes.load(settings))
    assert list(tmp_path.iterdir()) == []


# ---- after a run that did not end well ----------------------------------------------------------------------------------


@pytest.fixture
def prepared(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> SmallStudy:
    """A rehearsal whose hospitals are there already."""
    cohort = RehearsalCohort(hospitals=study.hospitals, evaluation=())
    monkeypatch.setattr(rehearsal, "make_cohort", lambda *_arguments: cohort)
    return replace(study, config=replace(study.config, runs=str(study.runs)))


def test_stopped_run_has_a_report_and_waits_for_no_probe(prepared: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("client.app.take_part", stop)
    monkeypatch.setattr(rehearsal, "check_learning", lambda *_: pytest.fail("nobody waits for probes"))
    with pytest.raises(KeyboardInterrupt):
        _rehearse(prepared.config)
    assert "stopped" in (prepared.folder / "report.html").read_text()
    assert [end.status for end in prepared.events(RunFinished)] == ["stopped"]


def test_incomplete_run_tells_its_own_reason(prepared: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the probes, which fail too when there is nobody to probe."""

    def broken(*_arguments: object) -> None:
        raise DataError("no scans")

    monkeypatch.setattr("client.app.take_part", broken)
    with pytest.raises(RunError, match="nobody's training counted in any round"):
        _rehearse(prepared.config)


def test_model_to_start_from_is_looked_at_before_any_work(
    prepared: SmallStudy, rehearsed: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "make_cohort", lambda *_: pytest.fail("minutes later"))
    with pytest.raises(CheckpointError, match="no model in /nowhere"):
        _rehearse(replace(prepared.config, init_from="/nowhere"))
    wider = replace(prepared.config, model=replace(prepared.config.model, width=48))
    with pytest.raises(CheckpointError, match="this recipe needs"):
        _rehearse(replace(wider, init_from=str(rehearsed[0] / "model")))


def test_model_to_start_from_is_found_from_where_the_person_stands(
    prepared: SmallStudy, rehearsed: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's programs work in folders of their own."""
    seen: list[str] = []
    monkeypatch.setattr(rehearsal, "run_in_process", lambda config, *_: seen.append(config.init_from))
    monkeypatch.chdir(rehearsed[0])
    _rehearse(replace(prepared.config, init_from="model"))
    assert seen == [str(rehearsed[0] / "model")]


def test_site_report_needs_only_the_sites_folder_and_the_model(rehearsed: tuple[Path, str]) -> None:
    folder, model = rehearsed[0] / "hospitals" / "neuro", read_model(rehearsed[0] / "model")
    before = (folder / "site_report.html").read_bytes()
    assert make_site_report(folder, model).read_bytes() == before


@pytest.mark.slow
def test_a_study_with_a_native_organ_goes_the_whole_way(tmp_path: Path) -> None:
    """Hearts in the voxels of each hospital's scanner beside two resampled organs; seed 8 gives one of them thick slices."""
    native = ["organs.heart.spacing=native", f"runs={tmp_path}", "name=native", "seed=8"]
    report, _ = _rehearse(recipes.load(["recipe=smoke", *native]))
    folder = report.parent
    (end,) = (event for event in read_record(folder / "record.jsonl") if isinstance(event, RunFinished))
    assert end.status == "complete"
    hearts = [
        entry
        for store in sorted((folder / "hospitals").glob("*/store"))
        for entry in PreparedStore.open(store).entries
        if entry.organ == "heart"
    ]
    assert all(entry.native for entry in hearts)
    assert {thickness_of(entry.spacing_mm, 3) for entry in hearts} == {(1, 1, 1), (2, 1, 1)}
    for page in (folder / "hospitals").glob("*/site_report.html"):
        assert "</html>" in page.read_text()
    organs = read_model(folder / "model").recipe.organs
    assert {organ: grid.spacing for organ, grid in organs.items()} == {
        "brain": Spacing.resample,
        "heart": Spacing.native,
        "liver": Spacing.resample,
    }
