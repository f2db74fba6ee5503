"""The egress gate: what leaves is what the policy declares public, in the task's own names, and never more."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import panfm
from panfm.config import Encoding
from panfm.errors import AuditError, CheckpointError, ConfigError, DataError, ProtocolError, RunError, ScanError
from panfm.protocol import (
    PROTOCOL_VERSION,
    AnswerParcel,
    EvaluateTask,
    EvaluationMetrics,
    JoinAnswer,
    ParcelKept,
    ParcelRequest,
    PrivacySpent,
    Refusal,
    Signed,
    SiteReport,
    SiteUpdate,
    TaskParcel,
    TrainMetrics,
    TrainTask,
)
from panfm.site.egress import EgressError, Released, release, released_error
from panfm.site.parcel_shelf import ShelfError
from panfm.site.policy import Policy, PrivacyDemand, PrivacyMode, Public, TaskKind
from panfm.site.refusals import reason_of, sayable
from panfm.wire.parcels import Parcel, pack, pack_tensors, parcel_of
from tests.client.small_study import packed

NAMES = ("trunk.a", "heads.a", "organs.brain.a", "organs.heart.a")
SECRET = "/srv/scans/sub-31415_brain.nii"
EVERYTHING = tuple(Public)


def _policy(*public: Public, **changes: Any) -> Policy:
    said: dict[str, Any] = {
        "site": "north",
        "coordinator_keys": ("ab" * 32,),
        "organs": ("brain", "heart"),
        "tasks": (TaskKind.pretrain,),
        "privacy": PrivacyDemand(mode=PrivacyMode.none),
        "public": public,
    }
    return Policy(**(said | changes))


def _task(**changes: Any) -> TrainTask:
    parameters = {name: torch.zeros(2, 3) for name in NAMES}
    values: dict[str, Any] = {"run": "r", "round": 1, "site": "north", "recipe": "rounds: 1", "student": parameters}
    return TrainTask(**(values | {"teacher": {}} | changes))


def _metrics(**changes: Any) -> TrainMetrics:
    told: dict[str, Any] = {
        "loss": 0.123456789,
        "loss_patch": 1234.56789,
        "loss_organ": None,
        "collapse_loss": 2 / 3,
        "gradient_norm": 1e-9,
        "share": {"brain": 1 / 3, "heart": 2 / 3},
        "lift": {"brain": 1.0},
        "masked_rate": {"heart": 5 / 17},
        "share_entropy": 0.98764,
        "effective_rank": {"brain": 23.456},
        "spread": {},
        "seconds": 12.3456,
        "dropped_scans": 3,
    }
    return TrainMetrics(**(told | changes))


def _update(task: TrainTask, **changes: Any) -> SiteUpdate:
    values: dict[str, Any] = {
        "run": task.run,
        "round": task.round,
        "site": task.site,
        "task_digest": task.digest(),
        "deltas": {name: torch.full((2, 3), 0.5) for name in NAMES},
        "num_subjects": 27,
        "organ_subjects": {"brain": 27, "heart": 11},
        "num_steps": 4,
        "metrics": _metrics(),
    }
    return SiteUpdate(**(values | changes))


def _release(answer: SiteUpdate, policy: Policy, task: TrainTask | None) -> Released:
    """An update at the gate, with its deltas in a parcel."""
    stored, parcels = packed(answer)
    return release(stored, policy, task, parcels)


def _left(answer: SiteUpdate, policy: Policy, task: TrainTask) -> SiteUpdate:
    released = _release(answer, policy, task).answer
    assert isinstance(released, SiteUpdate)
    return released


def test_everything_public_leaves_with_metrics_rounded() -> None:
    task = _task()
    answer = _update(task)
    left = _left(answer, _policy(*EVERYTHING), task)
    stored, (parcel,) = packed(answer)
    assert replace(left, metrics=None) == replace(stored, metrics=None)
    assert _release(answer, _policy(*EVERYTHING), task).parcel == parcel
    assert left.metrics == _metrics(
        loss=0.1235,
        loss_patch=1235.0,
        collapse_loss=0.6667,
        gradient_norm=0.0,
        share={"brain": 0.3333, "heart": 0.6667},
        masked_rate={"heart": 0.2941},
        share_entropy=0.9876,
        effective_rank={"brain": 23.46},
        seconds=12.35,
    )


def test_counts_that_are_not_public_leave_as_a_nominal_number() -> None:
    task = _task()
    left = _left(_update(task), _policy(Public.updates, Public.metrics, nominal_subjects=100), task)
    assert (left.num_subjects, left.organ_subjects) == (100, {"brain": 100, "heart": 100})
    assert left.metrics is not None
    assert left.metrics.dropped_scans == 0
    assert left.metrics.masked_rate == {"heart": 0.29}, "17 scans could not be told from its denominator"
    none_of_one = _left(_update(task, organ_subjects={"brain": 27, "heart": 0}), _policy(Public.updates), task)
    assert none_of_one.organ_subjects == {"brain": 1, "heart": 0}, "an organ that was not trained has no say"


def test_metrics_that_are_not_public_stay() -> None:
    task = _task()
    assert _left(_update(task), _policy(Public.updates, Public.counts), task).metrics is None


@pytest.mark.parametrize(
    "policy",
    [
        _policy(Public.counts, Public.metrics),
        _policy(*EVERYTHING, privacy=PrivacyDemand(mode=PrivacyMode.dp, epsilon=1.0, delta=1e-6)),
    ],
)
def test_update_without_noise_leaves_only_where_it_is_declared_public(policy: Policy) -> None:
    """Admission has refused such a task before; the gate does not rely on it, and today's policy counts for old answers."""
    with pytest.raises(EgressError, match="without noise"):
        _release(_update(_task()), policy, _task())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": SECRET}, "another run or round"),
        ({"round": 2}, "another run or round"),
        ({"site": SECRET}, "another name"),
        ({"task_digest": "00" * 32}, "another task"),
        ({"audit_head": SECRET}, "words where"),
        ({"deltas": {"trunk.sub-31415": torch.zeros(2, 3)}}, "did not hold"),
        ({"deltas": {"organs.liver.a": torch.zeros(2, 3)}}, "did not hold"),
        ({"deltas": {"trunk.a": torch.zeros(2, 4)}}, "another shape"),
        ({"deltas": {"trunk.a": torch.full((2, 3), math.nan)}}, "not finite"),
        ({"deltas": {"trunk.a": torch.full((2, 3), math.inf)}}, "not finite"),
        ({"organ_subjects": {"sub-31415": 1}}, "no organ"),
        ({"organ_subjects": {"brain": -1}}, "no whole number"),
        ({"organ_subjects": {"brain": 0.5}}, "no whole number"),
        ({"organ_subjects": {"brain": True}}, "no whole number"),
        ({"num_subjects": 0}, "number of subjects"),
        ({"num_subjects": 1.5}, "number of subjects"),
        ({"num_steps": 0}, "number of steps"),
        ({"num_steps": "4"}, "number of steps"),
        ({"metrics": _metrics(loss=math.nan)}, "no finite number"),
        ({"metrics": _metrics(loss=None)}, "no finite number"),
        ({"metrics": _metrics(loss="sub-31415")}, "no finite number"),
        ({"metrics": _metrics(loss=1.1e9)}, "larger than"),
        ({"metrics": _metrics(share={"sub-31415": 0.5})}, "no organ"),
        ({"metrics": _metrics(share={"liver": 0.5})}, "no organ"),
        ({"metrics": _metrics(share=0.5)}, "not by organ"),
        ({"metrics": _metrics(spread={"brain": [1.0]})}, "no finite number"),
        ({"metrics": _metrics(dropped_scans=0.5)}, "dropped_scans"),
        ({"metrics": _metrics(dropped_scans=-1)}, "dropped_scans"),
    ],
)
def test_what_may_not_leave_stops_the_answer(changes: dict[str, Any], words: str) -> None:
    task = _task()
    with pytest.raises(EgressError, match=words):
        _release(_update(task, **changes), _policy(*EVERYTHING), task)


@pytest.mark.parametrize(
    "parcels",
    [
        (),
        (parcel_of(b"junk"),),
        tuple(pack({"trunk.a": torch.ones(2, 3)})),
        tuple(pack({name: torch.ones(2, 3) for name in NAMES})) * 2,
    ],
    ids=["none", "junk", "another", "one more"],
)
def test_update_leaves_with_the_parcels_that_it_names_and_no_others(parcels: tuple[Parcel, ...]) -> None:
    task = _task()
    stored, _ = packed(_update(task))
    with pytest.raises(EgressError, match="names other parcels"):
        release(stored, _policy(*EVERYTHING), task, parcels)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"trunk.a": torch.zeros(2, 3, dtype=torch.float64)}, "fp32, bf16 or int8"),
        ({"trunk.a": torch.zeros(2, 3, dtype=torch.int8)}, "scales"),
        ({"trunk.a#scales": torch.zeros(1)}, "belong to no tensor"),
        ({"trunk.a": torch.ones(6, dtype=torch.int8), "trunk.a#scales": torch.ones(1)}, "another shape"),
        ({"trunk.a": torch.ones(2, 3, dtype=torch.int8), "trunk.a#scales": torch.full((1,), math.inf)}, "not finite"),
        ({"trunk.a": torch.full((2, 3), math.nan, dtype=torch.bfloat16)}, "not finite"),
    ],
)
def test_encoded_tensors_are_looked_at_as_the_coordinator_will_read_them(raw: dict[str, Tensor], words: str) -> None:
    task = _task()
    parcels = tuple(pack(raw))
    answer = replace(_update(task), deltas={}, parcels=tuple(parcel.label for parcel in parcels))
    with pytest.raises((EgressError, ProtocolError), match=words):
        release(answer, _policy(*EVERYTHING), task, parcels)


def test_deltas_outside_the_parcels_do_not_leave() -> None:
    task = _task()
    stored, parcels = packed(_update(task))
    secret = replace(stored, deltas={"trunk.sub-31415": torch.ones(9)})
    left = release(secret, _policy(*EVERYTHING), task, parcels).answer
    assert left == replace(stored, metrics=_left(_update(task), _policy(*EVERYTHING), task).metrics)


def _asked_for(parcel: Parcel, **changes: Any) -> tuple[ParcelRequest, AnswerParcel]:
    values: dict[str, Any] = {"run": "r", "round": 1, "site": "north", "sha256": parcel.sha256}
    return ParcelRequest(**values), AnswerParcel(**(values | changes))


@pytest.mark.parametrize("encoding", list(Encoding))
def test_further_parcel_leaves_by_todays_policy(encoding: Encoding) -> None:
    parcels = list(pack_tensors({name: torch.randn(600) for name in NAMES}, encoding, limit_bytes=1_000))
    assert len(parcels) > 3
    for parcel in parcels:
        asked, answer = _asked_for(parcel)
        assert release(answer, _policy(*EVERYTHING), asked, [parcel]) == Released(answer=answer, parcel=parcel)
    private = _policy(*EVERYTHING, privacy=PrivacyDemand(mode=PrivacyMode.dp, epsilon=1.0, delta=1e-6))
    for policy, words in ((_policy(Public.metrics), "without noise"), (private, "without noise")):
        with pytest.raises(EgressError, match=words):
            release(answer, policy, asked, [parcel])
    (heart,) = pack({"organs.heart.a": torch.ones(3)})
    asked, answer = _asked_for(heart)
    with pytest.raises(EgressError, match="does not offer"):
        release(answer, _policy(*EVERYTHING, organs=("brain",)), asked, [heart])


def test_parcel_that_was_not_asked_for_stays() -> None:
    one, other = (parcel_of(body) for body in (b"one", b"other"))
    asked, answer = _asked_for(one)
    wrong: list[tuple[AnswerParcel | ParcelKept, Signed | None, list[Parcel]]] = [
        (answer, asked, [other]),
        (replace(answer, sha256=other.sha256), asked, [other]),
        (replace(answer, site=SECRET), asked, [one]),
        (replace(answer, round=2), asked, [one]),
        (answer, None, [one]),
        (answer, _task(), [one]),
        (ParcelKept(run="r", round=1, site="north", sha256=one.sha256), asked, []),
    ]
    for said, about, parcels in wrong:
        with pytest.raises(EgressError):
            release(said, _policy(*EVERYTHING), about, parcels)


def test_word_that_a_parcel_is_kept_leaves() -> None:
    asked = TaskParcel(run="r", round=1, site="north", sha256="ab" * 32)
    kept = ParcelKept(run="r", round=1, site="north", sha256="ab" * 32)
    assert release(kept, _policy(), asked) == Released(answer=kept)
    with pytest.raises(EgressError, match="another parcel"):
        release(replace(kept, sha256="cd" * 32), _policy(), asked)


def test_organ_that_the_policy_has_withdrawn_leaves_no_more() -> None:
    """A stored answer is sent again by today's policy."""
    task = _task()
    with pytest.raises(EgressError, match="a tensor of an organ that the policy does not offer"):
        _release(_update(task), _policy(*EVERYTHING, organs=("brain",)), task)


def test_answers_to_nothing_do_not_leave() -> None:
    with pytest.raises(EgressError, match="no task"):
        _release(_update(_task()), _policy(*EVERYTHING), None)
    refusal = Refusal(run="r", round=1, site="north", code="hours", reason=reason_of("hours"))
    with pytest.raises(EgressError, match="no task"):
        release(refusal, _policy(), None)


def _joined(**changes: Any) -> JoinAnswer:
    values: dict[str, Any] = {
        "site": "north",
        "organs": ("brain",),
        "protocol_version": PROTOCOL_VERSION,
        "panfm_version": panfm.__version__,
        "num_subjects": {"brain": 27},
        "torch_version": torch.__version__,
        "device": "cpu",
        "spacing": {"brain": "thick_4"},
    }
    return JoinAnswer(**(values | changes))


def test_join_answer_tells_counts_only_where_they_are_public() -> None:
    assert release(_joined(), _policy(Public.counts), None).answer == _joined()
    silent = _joined(num_subjects={}, spacing={})
    assert release(_joined(), _policy(Public.updates, Public.metrics), None).answer == silent


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "sub-31415"},
        {"organs": ("brain", "liver")},
        {"panfm_version": SECRET},
        {"protocol_version": 31415},
        {"num_subjects": {"heart": 3}},
        {"num_subjects": {"brain": 2.5}},
        {"torch_version": SECRET},
        {"device": "cuda"},
        {"device": SECRET},
        {"spacing": {"brain": SECRET}},
        {"spacing": {"heart": "even"}},
    ],
)
def test_join_answer_in_other_words_does_not_leave(changes: dict[str, Any]) -> None:
    with pytest.raises(EgressError):
        release(_joined(**changes), _policy(*EVERYTHING), None)


def test_refusal_leaves_in_the_words_of_the_table_only() -> None:
    task = _task()
    for code, reason in sorted(sayable()):
        answer = Refusal(run="r", round=1, site="north", code=code, reason=reason)
        assert release(answer, _policy(), task).answer == answer
    good = {"run": "r", "round": 1, "site": "north", "code": "hours", "reason": reason_of("hours")}
    for change in (
        {"code": "sub-31415"},
        {"reason": SECRET},
        {"reason": reason_of("hours") + " 31415"},
        {"code": "recipe_out_of_bounds", "reason": reason_of("recipe_out_of_bounds", SECRET)},
        {"run": SECRET},
        {"round": 31415},
        {"site": SECRET},
    ):
        with pytest.raises(EgressError):
            release(Refusal(**(good | change)), _policy(), task)  # type: ignore[arg-type]  # fields by name


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(SECRET), "site_config"),
        (DataError(SECRET), "site_data"),
        (ScanError(SECRET, "sub-31415"), "site_data"),
        (ProtocolError(SECRET), "site_protocol"),
        (CheckpointError(SECRET), "site_parameters"),
        (RunError(SECRET), "site_training"),
        (AuditError(SECRET), "site_audit"),
        (ShelfError(SECRET, "parcels_missing"), "parcels_missing"),
        (ShelfError(SECRET, "parcels_full"), "parcels_full"),
        (MemoryError(SECRET), "site_memory"),
        (torch.OutOfMemoryError(SECRET), "site_memory"),
        (EgressError(SECRET), "site_egress"),
        (KeyError(SECRET), "site_error"),
        (BaseException(SECRET), "site_error"),
        (SystemExit(SECRET), "site_error"),
    ],
)
def test_of_a_failure_a_code_and_a_fixed_line_leave(error: BaseException, code: str) -> None:
    answer = released_error(error).answer
    assert answer == Refusal(run="", round=0, site="", code=code, reason=reason_of(code))


def test_summary_says_what_left_and_no_more() -> None:
    task = _task()
    about = _release(_update(task), _policy(*EVERYTHING), task).summary()
    _, (parcel,) = packed(_update(task))
    assert (about["kind"], about["parcels"], about["parcel_bytes"]) == ("site_update", 1, len(parcel.body))
    assert about["parcels_sha256"] == hashlib.sha256(parcel.sha256.encode()).hexdigest()
    assert "code" not in about
    said = released_error(ConfigError(SECRET)).summary()
    assert (said["kind"], said["code"], said["parcels"]) == ("refusal", "site_config", 0)


def test_only_an_update_takes_the_head_of_the_audit_log_along() -> None:
    task, head = _task(), "ab" * 32 + ":7"
    released = _release(_update(task), _policy(*EVERYTHING), task)
    assert released.witnessed(head).parcel == released.parcel
    witnessed = released.witnessed(head).answer
    assert isinstance(witnessed, SiteUpdate)
    assert witnessed.audit_head == head
    joined = release(_joined(), _policy(), None)
    assert joined.witnessed(head) == joined
    with pytest.raises(EgressError):
        released.witnessed(SECRET)


# A metric is a release: how much can be told by one.

doubles = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
"""Every bit pattern: whoever would hide a voxel in a metric chooses freely."""


@given(value=doubles | st.floats(-1e9, 1e9), share=doubles | st.floats(0, 1))
def test_metric_leaves_as_one_of_few_values_or_stops_the_answer(value: float, share: float) -> None:
    task = _task()
    answer = _update(task, metrics=_metrics(loss=value, share={"brain": share}))
    try:
        left = _left(answer, _policy(*EVERYTHING), task).metrics
    except EgressError:
        assert not (abs(value) <= 1e9 and abs(share) <= 1e9)
        return
    assert left is not None
    for before, after in ((value, left.loss), (share, left.share["brain"])):
        assert float(f"{after:.4g}") == after, "four digits say it all"
        assert after == 0 or 1e-6 <= abs(after) <= 1e9
        assert math.isclose(before, after, rel_tol=5.1e-4, abs_tol=1e-6)


def test_bits_of_all_metrics_together_are_bounded() -> None:
    """The figure of the threat model: at most 19 bits a number, seven numbers and five an organ."""
    values = 2 * 9000 * 16 + 1  # sign, mantissa 1.000 to 9.999, exponent -6 to 9; and zero
    assert values < 2**19
    kinds = [str(f.type) for f in fields(TrainMetrics)]
    assert kinds.count("dict[str, float]") == 5
    assert kinds.count("float") + kinds.count("float | None") == 7
    assert kinds.count("int") == len(kinds) - 12 == 1, "dropped_scans, a count"


@given(
    extra=st.dictionaries(st.sampled_from([f.name for f in fields(TrainMetrics)]), st.none() | st.text() | st.floats()),
    public=st.sets(st.sampled_from(EVERYTHING)),
)
def test_gate_answers_or_stops_whatever_it_is_given(extra: dict[str, Any], public: set[Public]) -> None:
    task = _task()
    try:
        left = _release(_update(task, metrics=_metrics(**extra)), _policy(*public), task)
    except EgressError:
        return
    assert isinstance(left, Released)
    assert isinstance(left.answer, SiteUpdate)
    told = asdict(left.answer.metrics) if left.answer.metrics else {}
    assert not any(isinstance(value, str) for value in told.values())


def test_nothing_that_was_given_is_changed() -> None:
    task = _task()
    answer = _update(task)
    before = asdict(replace(answer, deltas={}))
    _release(answer, _policy(Public.updates), task)
    assert asdict(replace(answer, deltas={})) == before


# With privacy: noised and charged, and all besides follows from what is public.

DP = PrivacyDemand(mode=PrivacyMode.dp, epsilon=3.0, delta=1e-6)
SPENT = PrivacySpent(epsilon=1.5, delta=1e-6, budget=3.0, ledger_head="cd" * 32 + ":5")
TRAINED = ("heads.organ_predictor.a", "heads.patch_predictor.a", "organs.brain.adapters.0", "organs.heart.adapters.0")


def _noised_task(mode: str = "dp_adapters") -> TrainTask:
    parameters = {name: torch.zeros(2, 3) for name in (*NAMES, *TRAINED)}
    return _task(recipe=f"privacy: {{mode: {mode}}}\npretrain: {{steps_per_round: 4}}", student=parameters)


def _noised(task: TrainTask, **changes: Any) -> SiteUpdate:
    values: dict[str, Any] = {
        "deltas": {name: torch.randn(2, 3) for name in TRAINED},
        "num_subjects": 50,
        "organ_subjects": {"brain": 50, "heart": 50},
        "metrics": None,
        "privacy": SPENT,
    }
    return _update(task, **(values | changes))


def test_noised_and_charged_update_leaves_where_nothing_is_public() -> None:
    task, policy = _noised_task(), _policy(privacy=DP, nominal_subjects=50)
    answer = _noised(task)
    stored, (parcel,) = packed(answer)
    assert _release(answer, policy, task) == Released(answer=stored, parcel=parcel)
    full = _noised_task("dp_full")
    names = (*NAMES, *TRAINED)
    left = _left(_noised(full, deltas={name: torch.randn(2, 3) for name in names}), policy, full)
    assert left.privacy == SPENT


@pytest.mark.parametrize("public", [(), EVERYTHING])
def test_counts_and_metrics_beside_noise_do_not_leave_though_they_be_public(public: tuple[Public, ...]) -> None:
    task, policy = _noised_task(), _policy(*public, privacy=DP, nominal_subjects=50)
    telling = _noised(task, num_subjects=27, organ_subjects={"brain": 27, "heart": 11}, metrics=_metrics())
    left = _left(telling, policy, task)
    assert (left.num_subjects, left.organ_subjects, left.metrics) == (50, {"brain": 50, "heart": 50}, None)


def _but(name: str, *more: str) -> dict[str, Tensor]:
    return {other: torch.ones(2, 3) for other in (*TRAINED, *more) if other != name}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"deltas": _but("heads.patch_predictor.a")}, "other tensors than those"),
        ({"deltas": _but("", "trunk.a")}, "other tensors than those"),
        ({"deltas": _but("organs.heart.adapters.0")}, "other tensors than those"),
        ({"organ_subjects": {"brain": 50}}, "other tensors than those"),
        ({"organ_subjects": {"brain": 50, "heart": 0}}, "an organ of nobody"),
        ({"num_steps": 3}, "another number of steps"),
        ({"privacy": None}, "without a charge"),
        ({"privacy": replace(SPENT, epsilon=math.nan)}, "no number"),
        ({"privacy": replace(SPENT, epsilon=3.1)}, "above its budget"),
        ({"privacy": replace(SPENT, delta=-1.0)}, "no number"),
        ({"privacy": replace(SPENT, budget=math.inf)}, "no number"),
        ({"privacy": replace(SPENT, ledger_head=SECRET)}, "head of the privacy ledger"),
    ],
)
def test_what_tells_more_than_the_noise_stops_the_answer(changes: dict[str, Any], words: str) -> None:
    task = _noised_task()
    with pytest.raises(EgressError, match=words):
        _release(_noised(task, **changes), _policy(privacy=DP), task)


def test_charge_for_a_recipe_without_privacy_is_none() -> None:
    task = _task()
    for policy in (_policy(*EVERYTHING), _policy(privacy=DP)):
        with pytest.raises(EgressError, match="a recipe without privacy"):
            _release(_update(task, privacy=SPENT), policy, task)


def test_noise_that_nobody_was_charged_for_leaves_where_none_is_needed() -> None:
    task = _noised_task()
    left = _left(_noised(task, privacy=None), _policy(*EVERYTHING, nominal_subjects=50), task)
    assert (left.privacy, left.metrics, left.num_subjects) == (None, None, 50)


def test_further_parcel_of_a_charged_answer_leaves_and_no_other() -> None:
    task = _noised_task()
    stored, (parcel,) = packed(_noised(task))
    asked, answer = _asked_for(parcel)
    policy = _policy(privacy=DP)
    assert release(answer, policy, asked, [parcel], stored).parcel == parcel
    for other in (None, replace(stored, privacy=None), replace(stored, parcels=())):
        with pytest.raises(EgressError, match="without noise"):
            release(answer, policy, asked, [parcel], other)


EVALUATION = "federation: {evaluation: {every: 1, numbers: [age], classes: [sex]}}"


def _evaluation(**changes: Any) -> EvaluateTask:
    values: dict[str, Any] = {"run": "r", "round": 1, "site": "north", "recipe": EVALUATION}
    return EvaluateTask(**(values | {"student": {}, "teacher": {}} | changes))


def _evaluated(**changes: Any) -> EvaluationMetrics:
    told: dict[str, Any] = {
        "loss": 0.123456789,
        "loss_patch": 1234.56789,
        "loss_organ": None,
        "collapse_loss": 2 / 3,
        "share": {"brain": 1 / 3},
        "lift": {"brain": 1e-9},
        "share_entropy": 0.98764,
        "probes": {"age": -0.123456, "sex": 2 / 3},
        "seconds": 12.3456,
        "dropped_scans": 3,
    }
    return EvaluationMetrics(**(told | changes))


def _report(task: EvaluateTask, **changes: Any) -> SiteReport:
    values: dict[str, Any] = {
        "run": task.run,
        "round": task.round,
        "site": task.site,
        "task_digest": task.digest(),
        "num_subjects": 27,
        "organ_subjects": {"brain": 27, "heart": 0},
        "metrics": _evaluated(),
    }
    return SiteReport(**(values | changes))


def test_report_leaves_with_its_numbers_rounded() -> None:
    task = _evaluation()
    left = release(_report(task), _policy(*EVERYTHING), task).answer
    assert left == _report(
        task,
        metrics=_evaluated(
            loss=0.1235,
            loss_patch=1235.0,
            collapse_loss=0.6667,
            share={"brain": 0.3333},
            lift={"brain": 0.0},
            share_entropy=0.9876,
            probes={"age": -0.1235, "sex": 0.6667},
            seconds=12.35,
        ),
    )


def test_report_without_public_counts_is_coarser_and_nominal() -> None:
    task = _evaluation()
    left = release(_report(task), _policy(Public.metrics, nominal_subjects=50), task).answer
    assert isinstance(left, SiteReport)
    assert (left.num_subjects, left.organ_subjects) == (50, {"brain": 50, "heart": 0})
    assert (left.metrics.probes, left.metrics.dropped_scans) == ({"age": -0.12, "sex": 0.67}, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": "other"}, "another run or round"),
        ({"round": 2}, "another run or round"),
        ({"site": SECRET}, "another name"),
        ({"task_digest": "0" * 64}, "another task"),
        ({"audit_head": SECRET}, "audit log"),
        ({"organ_subjects": {"sub-31415": 1}}, "no organ"),
        ({"num_subjects": 0}, "below 1"),
        ({"metrics": _evaluated(probes={SECRET: 0.5})}, "no probe of the recipe"),
        ({"metrics": _evaluated(share={SECRET: 0.5})}, "no organ of the site"),
        ({"metrics": _evaluated(loss=math.nan)}, "finite"),
        ({"metrics": _evaluated(probes={"age": math.inf})}, "finite"),
        ({"metrics": _evaluated(loss=None)}, "finite"),
        ({"metrics": _evaluated(dropped_scans=0.5)}, "whole number"),
    ],
)
def test_what_a_report_may_not_say_stops_it(changes: dict[str, Any], words: str) -> None:
    task = _evaluation()
    with pytest.raises(EgressError, match=words):
        release(_report(task, **changes), _policy(*EVERYTHING), task)


def test_report_leaves_only_where_metrics_are_public_and_to_who_asked_for_one() -> None:
    task = _evaluation()
    with pytest.raises(EgressError, match="does not declare public"):
        release(_report(task), _policy(Public.updates, Public.counts), task)
    for asked in (None, _task()):
        with pytest.raises(EgressError, match="no task of evaluation"):
            release(_report(task), _policy(*EVERYTHING), asked)


def test_report_takes_the_head_of_the_audit_log_along() -> None:
    task = _evaluation()
    released = release(_report(task), _policy(*EVERYTHING), task).witnessed(f"{'ab' * 32}:7")
    assert isinstance(released.answer, SiteReport)
    assert released.answer.audit_head == f"{'ab' * 32}:7"
