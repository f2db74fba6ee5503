"""A whole run at the coordinator: complete, repeatable, honest about what it fell short of, and stopped cleanly."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, RecordDict

from client.app import app as client_app
from panfm import recipes, update
from panfm.errors import CheckpointError, ConfigError, RunError
from panfm.export.model_folder import read_model, write_model
from panfm.groups import keep_groups, split_by_group
from panfm.models.build import initial_parameters
from panfm.reporting.record import Event, RoundFinished, RoundStarted, RunFinished, RunStarted, SiteAnswered, SiteJoined
from server.run_folder import RECORD_FILE
from server.run_record import RunRecord
from server.study import first_model, read_settings
from tests.client.small_study import (
    HELD,
    Finished,
    SmallStudy,
    all_bytes,
    app_that_trains,
    fault_at,
    quick_train,
    same_bits,
    site_of,
    tensor_names,
    tensors_in,
)


def test_run_goes_the_whole_way_and_says_so(finished: Finished) -> None:
    study, _ = finished

    (started,), joined = study.events(RunStarted), study.events(SiteJoined)
    assert started.seed == study.config.seed
    assert set(started.group_parameters) == {"trunk", "heads", "brain", "heart", "liver"}
    assert recipes.recipe_from_yaml(started.recipe) == recipes.recipe_of(study.config)
    assert {site.site: tuple(site.organs) for site in joined} == HELD
    assert [event.round for event in study.events(RoundStarted)] == [1, 2]
    answers = study.events(SiteAnswered)
    assert [(a.round, a.site, a.outcome) for a in answers] == [
        (number, site, "accepted") for number in (1, 2) for site in HELD
    ]
    assert all(a.bytes_down > a.bytes_up > 0 and a.num_steps == 2 and a.metrics["loss"] > 0 for a in answers)
    for average in study.events(RoundFinished):
        assert set(average.weights) == {"trunk", "heads", "brain", "heart", "liver"}
        assert all(sum(weights.values()) == pytest.approx(1.0) for weights in average.weights.values())
        assert set(average.weights["brain"]) == {"neuro"}
    (end,) = study.events(RunFinished)
    assert (end.status, end.reason, end.rounds_done, end.model) == ("complete", "", 2, "model")


def test_exported_model_is_the_last_checkpoint_and_moved_from_the_start(finished: Finished) -> None:
    study, _ = finished

    model = read_model(study.folder / "model")
    last = read_model(study.folder / "checkpoints" / "round-0002")
    assert same_bits(model.student, last.student)
    assert same_bits(model.teacher, last.teacher)
    start = initial_parameters(study.config.model, study.config.organs, study.config.seed)
    for part in (model.student, model.teacher):
        for group, tensors in split_by_group(part).items():
            assert not same_bits(tensors, keep_groups(start, [group])), group
    both = {f"{part}/{n}": t for part in ("student", "teacher") for n, t in getattr(model, part).items()}
    assert study.events(RoundFinished)[-1].model_digest == update.digest(both)
    assert model.card.run == study.events(RunStarted)[0].run


def test_same_seed_gives_the_same_bits_and_another_seed_others(finished: Finished, study: SmallStudy) -> None:
    cards = [read_model(finished[0].folder / "model").card]
    for seed in (finished[0].config.seed, 1):
        other = study.with_settings(f"seed={seed}", name=f"seed-{seed}")
        other.conduct()
        cards.append(read_model(other.folder / "model").card)
    first, same, different = [{card.student_digest, card.teacher_digest} for card in cards]
    assert first == same
    assert first.isdisjoint(different)


def test_second_run_of_a_name_is_another_run_to_the_sites(study: SmallStudy) -> None:
    """The same hospitals, the first run's folder removed: their stored answers belong to the first run alone."""
    study = study.with_settings("rounds=1")
    study.conduct()
    first = read_model(study.folder / "model").card
    study.folder.rename(study.runs / "put-away")

    again = study.with_settings("rounds=1", "pretrain.weight_decay=0.1")  # another task for this name's first round
    again.conduct()

    assert [a.outcome for a in again.events(SiteAnswered)] == ["accepted"] * 3
    second = read_model(again.folder / "model").card
    assert first.run != second.run
    assert {first.run.rpartition("-")[0], second.run.rpartition("-")[0]} == {"small"}


def test_only_the_needed_groups_travel_in_both_directions(finished: Finished) -> None:
    _, grid = finished

    for direction in (grid.sent, grid.received):
        trained = {(site, len(tensor_names(message)) > 0) for site, message in direction}
        assert {site for site, has_tensors in trained if has_tensors} == set(HELD)
        for site, message in direction:
            absent = {"brain", "heart", "liver"} - set(HELD[site])
            names = tensor_names(message)
            assert not [name for name in names for organ in absent if f"organs.{organ}." in name]
            if names:
                held = {name.rpartition("/")[2].split(".")[1] for name in names if "organs." in name}
                assert held == set(HELD[site])


def test_all_sites_failing_keeps_the_model_and_is_incomplete(study: SmallStudy) -> None:
    def fail(message: Message, context: Context) -> Message:
        raise OSError("no space left")

    with pytest.raises(RunError, match=r"incomplete: nobody's training counted in any round") as caught:
        study.conduct(app_that_trains(fail))

    assert caught.value.exit_code != 0
    (end,) = study.events(RunFinished)
    assert end.status == "incomplete"
    assert {a.outcome for a in study.events(SiteAnswered)} == {"failed"}
    model = read_model(study.folder / "model")
    start = initial_parameters(study.config.model, study.config.organs, study.config.seed)
    assert same_bits(model.student, start)
    assert same_bits(model.teacher, start)


def test_too_few_accepted_sites_change_nothing_in_that_round(study: SmallStudy) -> None:
    def fail(message: Message, context: Context) -> Message:
        raise RuntimeError("one of three")

    strict = study.with_settings("rounds=1", "federation.min_sites=3")
    with pytest.raises(RunError, match="nobody's training counted in any round"):
        strict.conduct(fault_at("neuro", fail))

    start = initial_parameters(study.config.model, study.config.organs, study.config.seed)
    assert same_bits(read_model(strict.folder / "model").student, start)
    assert all(
        set(f.unchanged_groups) == {"trunk", "heads", "brain", "heart", "liver"} for f in strict.events(RoundFinished)
    )


def test_an_organ_that_never_trained_is_not_called_complete(study: SmallStudy) -> None:
    def fail(message: Message, context: Context) -> Message:
        raise RuntimeError("the only brains")

    study = study.with_settings("rounds=1")
    with pytest.raises(RunError, match="nobody's training of brain counted"):
        study.conduct(fault_at("neuro", fail))

    start = initial_parameters(study.config.model, study.config.organs, study.config.seed)
    model = read_model(study.folder / "model")
    assert same_bits(keep_groups(model.student, ["brain"]), keep_groups(start, ["brain"]))
    assert not same_bits(keep_groups(model.student, ["liver"]), keep_groups(start, ["liver"]))


def test_stopped_by_a_person_in_round_two_exports_round_one(study: SmallStudy) -> None:
    calls: list[str] = []

    def stop(message: Message, context: Context) -> Message:
        calls.append(site_of(context))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return client_app(message, context)

    with pytest.raises(KeyboardInterrupt):
        study.conduct(app_that_trains(stop))

    (end,) = study.events(RunFinished)
    assert (end.status, end.rounds_done, end.model) == ("stopped", 1, "model")
    kept, exported = (read_model(study.folder / place) for place in ("checkpoints/round-0001", "model"))
    assert exported.card == kept.card


@pytest.mark.parametrize("moment", ["write_checkpoint", "RunRecord.write"])
def test_stopped_at_the_end_of_a_round_leaves_no_round_on_record_without_its_model(
    study: SmallStudy, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Ctrl-C at the worst moments: while the first round's model is written, and while the round is put on record."""
    real, stopped = RunRecord.write, []

    def stop(*_arguments: object) -> None:
        stopped.append(True)
        raise KeyboardInterrupt

    def stop_at_the_round(record: RunRecord, event: Event) -> None:
        if isinstance(event, RoundFinished) and not stopped:
            stop()
        real(record, event)

    if moment == "write_checkpoint":
        monkeypatch.setattr("server.study.write_checkpoint", stop)
    else:
        monkeypatch.setattr(RunRecord, "write", stop_at_the_round)
    with pytest.raises(KeyboardInterrupt):
        study.conduct(app_that_trains(quick_train))

    assert stopped
    assert study.events(RoundFinished) == []
    (end,) = study.events(RunFinished)
    if end.rounds_done:
        assert read_model(study.folder / "model").card.round == end.rounds_done == 1
    else:
        assert not (study.folder / "model").exists()


def test_stopped_before_any_round_exports_nothing(study: SmallStudy) -> None:
    def stop(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.conduct(app_that_trains(stop))

    (end,) = study.events(RunFinished)
    assert (end.status, end.rounds_done, end.model) == ("stopped", 0, "")
    assert not (study.folder / "model").exists()


def test_a_defect_ends_the_record_without_its_words(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("at /home/coordinator/secret")

    monkeypatch.setattr("server.study.write_checkpoint", broken)
    with pytest.raises(ZeroDivisionError):
        study.conduct()
    (end,) = study.events(RunFinished)
    assert end.status == "incomplete"
    assert "ZeroDivisionError" in end.reason
    assert "secret" not in (study.folder / RECORD_FILE).read_text()


def test_nobody_joins_is_one_clear_line(study: SmallStudy) -> None:
    lonely = study.with_settings("federation.min_sites=4", "federation.join_timeout_s=0.6")
    with pytest.raises(RunError, match=r"3 of at least 4 sites joined within 1 s; start the missing sites"):
        lonely.conduct()
    assert [end.status for end in lonely.events(RunFinished)] == ["incomplete"]
    assert not lonely.events(RoundStarted)


def test_federation_that_collapsed_twice_stops(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "server.rounds.collapse_reason", lambda _metrics, _objective: "its features collapsed: said the test"
    )
    long = study.with_settings("rounds=5")
    with pytest.raises(RunError, match="collapsed in 2 rounds"):
        long.conduct()
    assert [end.rounds_done for end in long.events(RunFinished)] == [2]
    assert {(a.outcome, a.reason) for a in long.events(SiteAnswered)} == {
        ("left_out", "its features collapsed: said the test")
    }


def test_a_run_is_not_written_into_another(study: SmallStudy) -> None:
    study = study.with_settings("rounds=1")
    study.conduct()
    before = (study.folder / RECORD_FILE).read_bytes()
    with pytest.raises(ConfigError, match=r"run called small .* already"):
        study.conduct()
    assert (study.folder / RECORD_FILE).read_bytes() == before


@pytest.mark.parametrize("name", ["", "..", "a/b", "/tmp/x", ".hidden", "a b", "x" * 101])
def test_run_needs_a_name_that_can_be_a_folder(study: SmallStudy, name: str) -> None:
    unnamed = replace(study, config=replace(study.config, name=name))
    with pytest.raises(ConfigError, match=r"name= should be"):
        unnamed.conduct()
    assert sorted(path.name for path in study.runs.iterdir()) == ["coordinator.key"]


# ---- the start --------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the model that a run exported."""
    return Path(shutil.copytree(finished[0].folder / "model", tmp_path / "exported"))


def test_init_from_takes_over_groups_and_seeds_the_rest(study: SmallStudy, exported: Path) -> None:
    config = recipes.load(["recipe=smoke", "seed=7"])
    config.organs["spleen"] = config.organs["liver"]
    del config.organs["brain"]

    model = first_model(recipes.recipe_of(config), str(exported))

    source, seeded = read_model(exported), initial_parameters(config.model, config.organs, 7)
    taken = ("trunk", "heads", "heart", "liver")
    assert same_bits(keep_groups(model.student, taken), keep_groups(source.student, taken))
    assert same_bits(keep_groups(model.teacher, taken), keep_groups(source.teacher, taken))
    for part in (model.student, model.teacher):
        assert same_bits(keep_groups(part, ["spleen"]), keep_groups(seeded, ["spleen"]))
    assert set(split_by_group(model.student)) == {"trunk", "heads", "heart", "liver", "spleen"}


def test_run_starts_from_an_exported_model(study: SmallStudy, exported: Path) -> None:
    second = study.with_settings("rounds=1", f"init_from={exported}", name="second")
    grid = second.conduct()

    task = next(message for site, message in grid.sent if site == "neuro" and tensor_names(message))
    sent = {name: tensor.numpy() for name, tensor in tensors_in(task).items()}
    source = read_model(exported)
    for part, tensors in (("student", source.student), ("teacher", source.teacher)):
        for name, tensor in keep_groups(tensors, ["trunk", "heads", "brain", "heart"]).items():
            assert sent[f"{part}/{name}"].tobytes() == tensor.numpy().tobytes()
    assert second.events(RunStarted)[0].init_from == str(exported)


def test_init_from_a_model_of_another_size(study: SmallStudy, exported: Path) -> None:
    other = study.with_settings("model.width=48", f"init_from={exported}", name="other")
    with pytest.raises(CheckpointError, match=r"has \S+ of shape \(.*\), this recipe needs \(.*\); use its recipe"):
        other.conduct()
    assert [end.status for end in other.events(RunFinished)] == ["incomplete"]


def test_init_from_nothing_and_from_a_damaged_file(study: SmallStudy, exported: Path) -> None:
    for place in ("", "student.safetensors"):
        if place:
            file = bytearray((exported / place).read_bytes())
            file[-5] ^= 1
            (exported / place).write_bytes(file)
        source = exported if place else exported / "absent"
        with pytest.raises(CheckpointError, match="has digest .* its card says" if place else "no model in"):
            study.with_settings(f"init_from={source}", name=f"from-{place or 'nothing'}").conduct()


def test_init_from_a_model_without_a_common_parameter(study: SmallStudy, exported: Path) -> None:
    model = read_model(exported)
    strange = {"organs.eye.token": torch.zeros(1)}
    card = replace(model.card, student_digest=update.digest(strange), teacher_digest=update.digest(strange))
    write_model(exported, replace(model, student=strange, teacher=strange, card=card))
    with pytest.raises(CheckpointError, match="has no parameter of this recipe"):
        first_model(recipes.recipe_of(study.config), str(exported))


# ---- what the program was started with ----------------------------------------------------------------------------------


def _context(run_config: Mapping[str, str], node_config: Mapping[str, str]) -> Context:
    return Context(run_id=1, node_id=1, node_config={**node_config}, state=RecordDict(), run_config={**run_config})


def test_settings_come_from_the_run_config_and_the_coordinators_own_place(
    study: SmallStudy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    composed = {"composed": recipes.to_yaml(study.config)}
    monkeypatch.delenv("PANFM_RUNS_DIR", raising=False)
    assert read_settings(_context(composed, {"runs-dir": str(study.runs)})) == study.settings()
    with pytest.raises(ConfigError, match="no folder for runs"):
        read_settings(_context(composed, {}))
    monkeypatch.setenv("PANFM_RUNS_DIR", str(tmp_path))
    assert read_settings(_context(composed, {})).runs == tmp_path
    with pytest.raises(ConfigError, match="no composed recipe"):
        read_settings(_context({}, {}))


def test_no_path_and_no_pseudonym_leaves_a_hospital(finished: Finished) -> None:
    study, grid = finished
    record = (study.folder / RECORD_FILE).read_bytes()
    assert b"sub-0" not in record
    assert str(study.runs.parent).encode() not in record
    for _site, message in grid.received:
        assert str(study.runs.parent).encode() not in all_bytes(message)
        assert b"sub-0" not in all_bytes(message)


def test_conduct_is_what_the_server_app_runs(study: SmallStudy) -> None:
    from server.app import app

    study = study.with_settings("rounds=1")
    grid = study.grid()
    app(grid, grid.server_context)
    assert [end.status for end in study.events(RunFinished)] == ["complete"]
