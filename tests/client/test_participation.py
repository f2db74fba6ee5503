"""How a site takes part: what it tells when it joins, what it refuses, and that it never trains the same task twice."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, tzinfo

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

import panfm
from client import participation
from client.participation import join, take_part
from client.workspace import Workspace, open_workspace
from panfm import recipes, update
from panfm.groups import group_of, keep_groups, split_by_group
from panfm.models.build import initial_parameters
from panfm.pretrain.local_round import train_round
from panfm.protocol import PROTOCOL_VERSION, JoinAnswer, Refusal, SiteUpdate, to_envelope
from panfm.signing import sign
from panfm.site.answers import AnswerStore, Kept
from panfm.wire.parcels import unpack_tensors
from tests.client.small_study import HELD, SmallStudy, signed_task


@pytest.fixture
def workspace(study: SmallStudy) -> Workspace:
    return open_workspace({"site-folder": str(study.hospitals["neuro"])})


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rounds that were really trained."""
    rounds: list[int] = []

    def counted(*arguments: object, **settings: object) -> object:
        rounds.append(settings["round_number"])  # type: ignore[arg-type]  # an int, by train_round's signature
        return train_round(*arguments, **settings)  # type: ignore[arg-type]  # handed through

    monkeypatch.setattr(participation, "train_round", counted)
    return rounds


def _deltas(workspace: Workspace, answer: SiteUpdate) -> dict[str, Tensor]:
    """As the coordinator will decode them."""
    return unpack_tensors(workspace.answers.parcels(answer))


def test_joining_tells_who_the_site_is(workspace: Workspace) -> None:
    counts = {organ: len(subjects) for organ, subjects in workspace.subjects().items()}
    assert join(workspace) == JoinAnswer(
        site="neuro",
        organs=HELD["neuro"],
        protocol_version=PROTOCOL_VERSION,
        panfm_version=panfm.__version__,
        num_subjects=counts,
        torch_version=torch.__version__,
        device="cpu",
        spacing=dict.fromkeys(HELD["neuro"], "resampled"),
    )
    choosy = replace(workspace, policy=replace(workspace.policy, min_subjects_per_organ=max(counts.values()) + 1))
    assert join(choosy).organs == ()


def test_answer_holds_the_groups_that_were_trained_and_true_counts(study: SmallStudy, workspace: Workspace) -> None:
    task = signed_task(study, "neuro")
    answer = take_part(task, workspace)
    assert isinstance(answer, SiteUpdate)
    assert (answer.run, answer.round, answer.site, answer.task_digest) == ("small-1", 1, "neuro", task.digest())
    assert set(split_by_group(_deltas(workspace, answer))) == {"trunk", "heads", "brain", "heart"}
    subjects = workspace.subjects()
    assert answer.organ_subjects == {organ: len(held) for organ, held in subjects.items()}
    assert answer.num_subjects == len(subjects["brain"] | subjects["heart"])
    assert update.norm(_deltas(workspace, answer)) > 0


def test_same_task_again_is_answered_from_the_store(
    study: SmallStudy, workspace: Workspace, trainings: list[int]
) -> None:
    task = signed_task(study, "neuro")
    first = take_part(task, workspace)
    again = take_part(task, open_workspace({"site-folder": str(workspace.folder)}))  # as after a restart
    assert isinstance(first, SiteUpdate)
    assert isinstance(again, SiteUpdate)
    assert trainings == [1]
    assert first == again
    assert first.deltas == {}


def test_same_round_by_another_task_is_refused_and_does_not_train(
    study: SmallStudy, workspace: Workspace, trainings: list[int]
) -> None:
    first = signed_task(study, "neuro")
    take_part(first, workspace)
    moved = {name: tensor + 1 for name, tensor in first.student.items()}
    for other in (signed_task(study, "neuro", student=moved), signed_task(study, "neuro", teacher=moved)):
        answer = take_part(other, workspace)
        assert isinstance(answer, Refusal)
        assert answer.code == "round_answered_otherwise"
    assert trainings == [1]
    assert isinstance(take_part(first, workspace), SiteUpdate), "the first answer stands"


def test_other_runs_and_rounds_are_trained(study: SmallStudy, workspace: Workspace, trainings: list[int]) -> None:
    for run, number in (("small-1", 1), ("small-1", 2), ("small-2", 1)):
        assert isinstance(take_part(signed_task(study, "neuro", run=run, round=number), workspace), SiteUpdate)
    assert trainings == [1, 2, 1]


def test_who_may_not_ask_gets_no_training(study: SmallStudy, workspace: Workspace, trainings: list[int]) -> None:
    task = signed_task(study, "neuro")
    stranger = Ed25519PrivateKey.generate()
    refused = {
        "unsigned": task.signed(""),
        "no hexadecimal": task.signed("ü" * 128),
        "another coordinator": task.signed(sign(stranger, task.digest())),
        "changed on the way": replace(task, round=2),
        "for another site": signed_task(study, "neuro", site="cardiac"),
        "past the last round": signed_task(study, "neuro", round=3),
        "before the first": signed_task(study, "neuro", round=0),
        "another protocol": signed_task(study, "neuro", protocol_version=PROTOCOL_VERSION + 1),
        "no recipe": signed_task(study, "neuro", recipe="rounds: many"),
    }
    codes = {}
    for name, asked in refused.items():
        answer = take_part(asked, workspace)
        assert isinstance(answer, Refusal)
        codes[name] = answer.code
    assert codes == {
        "unsigned": "signature",
        "no hexadecimal": "signature",
        "another coordinator": "signature",
        "changed on the way": "signature",
        "for another site": "wrong_site",
        "past the last round": "wrong_round",
        "before the first": "wrong_round",
        "another protocol": "protocol",
        "no recipe": "recipe",
    }
    assert trainings == []


def test_recipe_is_not_read_before_the_signature(study: SmallStudy, workspace: Workspace) -> None:
    """What a stranger sends is hashed and nothing else."""
    answer = take_part(signed_task(study, "neuro", recipe="a: &a [*a]").signed("00"), workspace)
    assert isinstance(answer, Refusal)
    assert answer.code == "signature"


def test_run_id_enters_no_bit_of_what_is_trained(study: SmallStudy, workspace: Workspace) -> None:
    answers = [take_part(signed_task(study, "neuro", run=run), workspace) for run in ("small-1", "other-2")]
    assert all(isinstance(answer, SiteUpdate) for answer in answers)
    first, second = (answer for answer in answers if isinstance(answer, SiteUpdate))
    assert first.parcels == second.parcels


def test_organ_whose_scans_are_gone_is_left_alone(study: SmallStudy, workspace: Workspace) -> None:
    """The coordinator still sends it, as it was offered when the site joined."""
    hearts = tuple(entry for entry in workspace.store.entries if entry.organ == "heart")
    poorer = replace(workspace, store=replace(workspace.store, entries=hearts))
    answer = take_part(signed_task(study, "neuro"), poorer)
    assert isinstance(answer, SiteUpdate)
    assert set(split_by_group(_deltas(workspace, answer))) == {"trunk", "heads", "heart"}
    assert set(answer.organ_subjects) == {"heart"}


def test_organ_that_was_not_sent_is_not_trained(study: SmallStudy, workspace: Workspace) -> None:
    """Its scans came after the site joined."""
    recipe = recipes.recipe_of(study.config)
    parameters = initial_parameters(recipe.model, recipe.organs, recipe.seed)
    brain = keep_groups(parameters, ["trunk", "heads", "brain"])
    answer = take_part(signed_task(study, "neuro", student=brain, teacher=brain), workspace)
    assert isinstance(answer, SiteUpdate)
    assert set(split_by_group(_deltas(workspace, answer))) == {"trunk", "heads", "brain"}
    assert set(answer.organ_subjects) == {"brain"}
    assert not torch.equal(_deltas(workspace, answer)["trunk.norm.weight"], torch.zeros(recipe.model.width))


def test_scans_that_changed_are_named_at_the_site_and_only_counted_elsewhere(
    study: SmallStudy, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    volumes = sorted((workspace.folder / "store" / "brain").glob("*.npy"))
    volumes[0].write_bytes(volumes[0].read_bytes()[:-1] + b"\x7f")
    volumes[1].unlink()
    answer = take_part(signed_task(study, "neuro"), workspace)
    assert isinstance(answer, SiteUpdate)
    lost = [volume.name.partition("@")[0] for volume in volumes[:2]]
    assert answer.metrics is not None
    assert answer.metrics.dropped_scans == 2
    assert answer.organ_subjects["brain"] == len(workspace.subjects()["brain"]) - 2
    assert not any(name in to_envelope(answer).header for name in lost)
    kept = AnswerStore(workspace.folder / "state" / "answers").dropped(answer.run, answer.round)
    assert [(scan.subject, scan.organ) for scan in kept] == [(name, "brain") for name in lost]
    assert "has changed since it was prepared" in kept[0].reason
    assert [record.levelname for record in caplog.records if lost[1] in record.getMessage()] == ["WARNING"]


def _kept(workspace: Workspace, number: int, *groups: str) -> Kept:
    return workspace.answers.kept("small-1", dict.fromkeys(groups, number))


def _answered(study: SmallStudy, workspace: Workspace, number: int, **voted: int) -> dict[str, Tensor]:
    """The deltas of one more round from the same parameters."""
    answer = take_part(signed_task(study, "neuro", round=number, voted=voted), workspace)
    assert isinstance(answer, SiteUpdate)
    return _deltas(workspace, answer)


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_what_rounding_took_away_goes_with_the_next_answer_of_a_group_that_counted(
    study: SmallStudy, workspace: Workspace, encoding: str
) -> None:
    """Round 2 is trained from the same parameters three times: after round 1 counted for no group, for all, and for some."""
    exact = _answered(study.with_settings(name="exact"), _elsewhere(study, workspace, "exact"), 2)
    study = study.with_settings(f"federation.wire.up={encoding}")
    rounded = {}
    for name, groups in {"none": (), "all": ("trunk", "heads", "brain", "heart"), "some": ("trunk",)}.items():
        site = _elsewhere(study, workspace, name)
        first = _answered(study, site, 1)
        residual = _kept(site, 1, "trunk", "heads", "brain", "heart").residual
        assert residual.keys() == first.keys()
        rounded[name] = _answered(study, site, 2, **dict.fromkeys(groups, 1))
        for parameter, after in _kept(site, 2, "trunk", "heads", "brain", "heart").residual.items():
            before = residual[parameter] if group_of(parameter) in groups else torch.zeros(())
            meant = exact[parameter] + before
            torch.testing.assert_close(rounded[name][parameter] + after, meant, rtol=1e-5, atol=1e-8)
    for parameter in exact:
        counted = "all" if group_of(parameter) == "trunk" else "none"
        assert torch.equal(rounded["some"][parameter], rounded[counted][parameter]), parameter
    assert update.digest(rounded["all"]) != update.digest(rounded["none"]) != update.digest(exact)


def _elsewhere(study: SmallStudy, workspace: Workspace, name: str) -> Workspace:
    """The same site with a state of its own."""
    return replace(workspace, answers=AnswerStore(study.runs / name))


def test_moments_go_on_from_the_round_that_counted(study: SmallStudy, workspace: Workspace) -> None:
    def steps(site: Workspace) -> dict[str, float]:
        counts = _kept(site, 2, "trunk", "heads", "brain", "heart").moments["step"]
        return {group: float(counts[name]) for name in sorted(counts) for group in [group_of(name)]}

    def counted(**voted: int) -> tuple[Workspace, dict[str, Tensor]]:
        site = _elsewhere(study, workspace, "-".join(["state", *voted]))
        _answered(keeping, site, 1)
        return site, _answered(keeping, site, 2, **voted)

    keeping = study.with_settings("pretrain.keep_moments=1")
    afresh, by_afresh = counted()
    carried, by_carried = counted(trunk=1, brain=1)
    assert steps(afresh) == {"trunk": 2.0, "heads": 2.0, "brain": 2.0, "heart": 2.0}
    assert steps(carried) == {"trunk": 4.0, "heads": 2.0, "brain": 4.0, "heart": 2.0}
    assert update.digest(by_afresh) != update.digest(by_carried)
    plain = _elsewhere(study, workspace, "plain")
    _answered(study, plain, 1)
    assert not any(_kept(plain, 1, "trunk").moments.values()), "nothing is kept that nobody asked for"


def test_answer_of_long_ago_is_refused_and_not_trained_again(
    study: SmallStudy, workspace: Workspace, trainings: list[int]
) -> None:
    study = study.with_settings("rounds=6")
    for number in range(1, 7):
        _answered(study, workspace, number)
    codes = []
    for number in range(1, 7):
        answer = take_part(signed_task(study, "neuro", round=number), workspace)
        codes.append(answer.code if isinstance(answer, Refusal) else "")
    assert codes == ["answer_gone"] * 3 + [""] * 3
    assert trainings == [1, 2, 3, 4, 5, 6]


def test_day_has_as_many_rounds_as_the_policy_says(
    study: SmallStudy, workspace: Workspace, trainings: list[int]
) -> None:
    twice = replace(workspace, policy=replace(workspace.policy, rounds_per_day=2))
    answers = [take_part(signed_task(study, "neuro", run=run), twice) for run in ("a-1", "b-1", "c-1", "a-1")]
    assert [answer.code if isinstance(answer, Refusal) else "" for answer in answers] == ["", "", "rounds_per_day", ""]
    assert trainings == [1, 1], "and the last was answered from the store"
    for path in (workspace.folder / "state" / "answers").glob("*/*/answer.json"):
        os.utime(path, (path.stat().st_mtime - 86_401,) * 2)
    assert isinstance(take_part(signed_task(study, "neuro", run="c-1"), twice), SiteUpdate), "the next day"


def test_night_is_by_the_sites_own_clock(
    study: SmallStudy, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Noon:
            return cls(2026, 1, 15, 12, 0, tzinfo=UTC).astimezone(tz)

    monkeypatch.setattr(participation, "datetime", Noon)
    codes = []
    for zone in ("UTC", "Pacific/Auckland"):  # there it is one in the night
        policy = replace(workspace.policy, hours=("22:00-06:00",), time_zone=zone)
        answer = take_part(signed_task(study, "neuro"), replace(workspace, policy=policy))
        codes.append(answer.code if isinstance(answer, Refusal) else "")
    assert codes == ["hours", ""]


def test_memory_is_asked_of_the_policys_device(
    study: SmallStudy, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def free(device: str) -> float:
        asked.append(device)
        return 3.9

    monkeypatch.setattr(participation, "free_memory_gib", free)
    policy = replace(workspace.policy, device="cuda:1", min_free_memory_gib=4.0)
    answer = take_part(signed_task(study, "neuro"), replace(workspace, policy=policy))
    assert isinstance(answer, Refusal)
    assert (answer.code, asked) == ("memory", ["cuda:1"])
