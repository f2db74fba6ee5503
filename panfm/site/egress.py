"""The egress gate: the one door through which anything leaves a site, tensors, counts, metrics and words of trouble alike.

`release` takes an answer as the site made it, the policy and the task that was asked, and returns what may leave of it. Only what
it returns can be put into a message (`client.messages.encode_reply` takes nothing else). Nothing is trusted for having been made
here: names and shapes must be those of the task, numbers are finite and rounded, words come from `panfm.site.refusals`.

An update without noise must be declared public. One with noise leaves when the site's ledger has a charge for it, or when it
could have left without; and then with what is public and nothing else: every parameter that the recipe trains at this site and
no other, nominal counts, no metrics.

What it cannot do: tell an honest delta from one in which approved code has hidden a scan, or one with noise from one without.
That is why a site runs only code that it approved (deploy/guides/threat_model.md).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_type_hints

import torch
from torch import Tensor

import panfm
from panfm import recipes
from panfm.config import Recipe
from panfm.errors import AuditError, CheckpointError, ConfigError, DataError, ProtocolError, RunError
from panfm.groups import SHARED_GROUPS, group_of, keep_groups
from panfm.pretrain.private_scope import trained_names
from panfm.protocol import (
    PROTOCOL_VERSION,
    SPACINGS,
    Answer,
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
    to_envelope,
)
from panfm.site.parcel_shelf import ShelfError
from panfm.site.policy import Policy, PrivacyMode, Public
from panfm.site.refusals import reason_of, sayable
from panfm.wire.encoding import SCALES
from panfm.wire.parcels import Parcel, pieces, unpack, unpack_tensors

METRIC_DIGITS = 4
"""Significant digits of a metric that leaves: enough for every curve, and less than 19 bits with sign and exponent."""
COARSE_METRIC_DIGITS = 2
"""The same where counts are not public: a rate of 0.3333 would tell that its denominator is a multiple of three."""
SMALLEST_METRIC, LARGEST_METRIC = 1e-6, 1e9
"""Smaller ones leave as 0; a larger one is none of a healthy round."""

_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (ConfigError, "site_config"),
    (DataError, "site_data"),
    (ProtocolError, "site_protocol"),
    (CheckpointError, "site_parameters"),
    (RunError, "site_training"),
    (AuditError, "site_audit"),
    (MemoryError, "site_memory"),
    (torch.OutOfMemoryError, "site_memory"),
)
"""What may be told of a failure, by its kind."""

_HEAD = re.compile(r"[0-9a-f]{64}:\d{1,15}")


class EgressError(Exception):
    """An answer of the site's own that may not leave; its words are for the site's log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """An answer that passed the gate. Made here only; a test looks for any other place."""

    answer: Answer
    parcel: Parcel | None = None
    """The one that leaves with it: of an update the first."""

    def summary(self) -> dict[str, str | int]:
        """What leaves, for the site's audit log: kind, digests and sizes, and the code of a refusal.

        Of an update it is taken before the head of that log is put in, and tells of all parcels that it names;
        `parcels_sha256` is that of their digests, one after the other.
        """
        envelope = to_envelope(self.answer)
        labels = self.answer.parcels if isinstance(self.answer, SiteUpdate) else [p.label for p in [self.parcel] if p]
        about: dict[str, str | int] = {
            "kind": envelope.kind,
            "header_bytes": len(envelope.header.encode()),
            "header_sha256": hashlib.sha256(envelope.header.encode()).hexdigest(),
            "parcels": len(labels),
            "parcel_bytes": sum(label.size_bytes for label in labels),
            "parcels_sha256": hashlib.sha256("".join(label.sha256 for label in labels).encode()).hexdigest(),
        }
        return about | ({"code": self.answer.code} if isinstance(self.answer, Refusal) else {})

    def witnessed(self, audit_head: str) -> Released:
        """An update or report takes the head of the site's audit log along, so that the coordinator holds a witness of it."""
        if not isinstance(self.answer, SiteUpdate | SiteReport):
            return self
        _require(_HEAD.fullmatch(audit_head) is not None, "a head of the audit log that is none")
        return replace(self, answer=replace(self.answer, audit_head=audit_head))


def release(
    answer: Answer,
    policy: Policy,
    asked: Signed | None,
    parcels: Sequence[Parcel] = (),
    answered: SiteUpdate | None = None,
) -> Released:
    """What of an answer may leave.

    Args:
        asked: the task or question that it answers; None where the site was asked who it is.
        parcels: of an update all, in order: its tensors are what they hold. Of an `AnswerParcel` that one.
        answered: the stored update of which an `AnswerParcel` is.
    Raises: EgressError when something in it may not leave and cannot be left out; its words are the site's own.
    """
    if isinstance(answer, Refusal):
        return Released(answer=_refusal(answer, policy, asked))
    if isinstance(answer, JoinAnswer):
        return Released(answer=_join_answer(answer, policy))
    if isinstance(answer, SiteReport):
        return Released(answer=_site_report(answer, policy, asked))
    if isinstance(answer, ParcelKept | AnswerParcel):
        return _about_a_parcel(answer, policy, asked, parcels, answered)
    if not isinstance(asked, TrainTask):
        raise EgressError("an update that answers no task of training")
    return Released(answer=_site_update(answer, policy, asked, parcels), parcel=parcels[0])


def released_error(error: BaseException) -> Released:
    """What may leave of a failure, whatever it was: a code and a fixed line. Needs no policy, which may be what failed."""
    if isinstance(error, ShelfError):
        return released_code(error.code)
    code = "site_egress" if isinstance(error, EgressError) else "site_error"
    return released_code(next((code for kind, code in _CODES if isinstance(error, kind)), code))


def released_code(code: str) -> Released:
    """A refusal of whatever came, before it was known to be a task: one of the table's codes, and its words."""
    return Released(answer=Refusal(run="", round=0, site="", code=code, reason=reason_of(code)))


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise EgressError(problem)


def _refusal(answer: Refusal, policy: Policy, asked: Signed | None) -> Refusal:
    _require((answer.code, answer.reason) in sayable(), f"a refusal in words of its own: {answer.code!r:.80}")
    _check_address(answer, policy, asked)
    return answer


def _check_address(
    answer: SiteUpdate | SiteReport | ParcelKept | AnswerParcel | Refusal, policy: Policy, asked: Signed | None
) -> None:
    """An answer repeats the words of whoever asked, and no others."""
    _require(asked is not None, "an answer to no task")
    assert asked is not None
    _require((answer.run, answer.round) == (asked.run, asked.round), "an answer to another run or round than asked")
    _require(answer.site == policy.site, "an answer under another name than the policy's")


def _join_answer(answer: JoinAnswer, policy: Policy) -> JoinAnswer:
    _require(answer.site == policy.site, "a site under another name than the policy's")
    _require(set(answer.organs) <= set(policy.organs), "an organ that the policy does not offer")
    own_versions = (PROTOCOL_VERSION, panfm.__version__, torch.__version__)
    told_versions = (answer.protocol_version, answer.panfm_version, answer.torch_version)
    _require(told_versions == own_versions, "versions that are not panfm's own")
    _require(answer.device == torch.device(policy.device).type, "a device that is not the policy's")
    if Public.counts not in policy.public:
        return replace(answer, num_subjects={}, spacing={})
    _check_counts(answer.num_subjects, answer.organs)
    for organ, word in answer.spacing.items():
        _require(organ in answer.organs and word in SPACINGS, f"no class of spacing of an organ: {word!r:.80}")
    return answer


def _about_a_parcel(
    answer: ParcelKept | AnswerParcel,
    policy: Policy,
    asked: Signed | None,
    parcels: Sequence[Parcel],
    answered: SiteUpdate | None,
) -> Released:
    """Word that a parcel is kept, or a further parcel of an update.

    Of an update only those parcels are asked for that it named when it passed this gate, whole: a digest is hard to guess. So
    what is looked at once more is what today's policy may have changed.
    """
    if not isinstance(asked, TaskParcel if isinstance(answer, ParcelKept) else ParcelRequest):
        raise EgressError("word of a parcel that was not asked for")
    _check_address(answer, policy, asked)
    _require(answer.sha256 == asked.sha256, "another parcel than asked for")
    if isinstance(answer, ParcelKept):
        return Released(answer=answer)
    (parcel,) = parcels
    _require(parcel.sha256 == asked.sha256, "another parcel than asked for")
    is_its_own = answered is not None and parcel.label in answered.parcels
    _check_may_leave(answered.privacy if answered is not None and is_its_own else None, policy)
    for piece in pieces(unpack(parcel)):
        _check_group(piece.name.removesuffix(SCALES), policy)
    return Released(answer=answer, parcel=parcel)


def _site_update(answer: SiteUpdate, policy: Policy, asked: TrainTask, parcels: Sequence[Parcel]) -> SiteUpdate:
    _check_address(answer, policy, asked)
    _require(answer.task_digest == asked.digest(), "an answer to another task than asked")
    _require(answer.audit_head == "", "words where the head of the audit log is to come")
    _check_may_leave(answer.privacy, policy)
    labels = tuple(parcel.label for parcel in parcels)
    _require(bool(labels) and answer.parcels == labels, "an update that names other parcels than it has")
    deltas, recipe = unpack_tensors(parcels), recipes.recipe_from_yaml(asked.recipe)
    _check_tensors(deltas, asked.student, policy)
    answer = replace(answer, deltas={})
    _check_counts(answer.organ_subjects, policy.organs)
    _require(type(answer.num_subjects) is int and answer.num_subjects >= 1, "a number of subjects below 1")
    _require(type(answer.num_steps) is int and answer.num_steps >= 1, "a number of steps below 1")
    if recipe.privacy.is_on:
        _check_noised(answer, deltas, asked, recipe)
        return _with_nominal_counts(replace(answer, metrics=None), policy)
    _require(answer.privacy is None, "word of a charge for a recipe without privacy")
    metrics = _metrics(answer.metrics, policy) if Public.metrics in policy.public else None
    answer = replace(answer, metrics=metrics)
    return answer if Public.counts in policy.public else _with_nominal_counts(answer, policy)


def _with_nominal_counts(answer: SiteUpdate, policy: Policy) -> SiteUpdate:
    nominal = policy.nominal_subjects
    trained = {organ: nominal if number else 0 for organ, number in answer.organ_subjects.items()}
    return replace(answer, num_subjects=nominal, organ_subjects=trained)


def _check_noised(answer: SiteUpdate, deltas: Collection[str], asked: TrainTask, recipe: Recipe) -> None:
    """That all of an answer but its numbers follows from the task and from the organs that the site declares."""
    organs = tuple(answer.organ_subjects)
    _require(all(answer.organ_subjects.values()), "an organ of nobody, which would tell who has it")
    sent = keep_groups(asked.student, (*SHARED_GROUPS, *organs))
    names = trained_names(sent, recipe.privacy.mode, recipe, organs)
    _require(sorted(deltas) == names, "other tensors than those that the recipe trains at this site")
    _require(answer.num_steps == recipe.pretrain.steps_per_round, "another number of steps than the recipe's")


def _site_report(answer: SiteReport, policy: Policy, asked: Signed | None) -> SiteReport:
    if not isinstance(asked, EvaluateTask):
        raise EgressError("a report that answers no task of evaluation")
    _check_address(answer, policy, asked)
    _require(answer.task_digest == asked.digest(), "an answer to another task than asked")
    _require(answer.audit_head == "", "words where the head of the audit log is to come")
    _require(Public.metrics in policy.public, "a report, which the policy does not declare public")
    _check_counts(answer.organ_subjects, policy.organs)
    _require(type(answer.num_subjects) is int and answer.num_subjects >= 1, "a number of subjects below 1")
    metrics = _report_metrics(answer.metrics, policy, asked)
    if Public.counts in policy.public:
        return replace(answer, metrics=metrics)
    nominal = policy.nominal_subjects
    held_out = {organ: nominal if number else 0 for organ, number in answer.organ_subjects.items()}
    return replace(answer, metrics=metrics, num_subjects=nominal, organ_subjects=held_out)


def _check_may_leave(charged: PrivacySpent | None, policy: Policy) -> None:
    """An update with a charge may; one without must be declared public."""
    if charged is None:
        _require(
            policy.privacy.mode is PrivacyMode.none and Public.updates in policy.public,
            "an update without noise, or without a charge, which the policy does not declare public",
        )
        return
    numbers = (charged.epsilon, charged.delta, charged.budget)
    _require(all(math.isfinite(number) and number >= 0 for number in numbers), "a charge that is no number")
    _require(charged.epsilon <= charged.budget, "a charge above its budget")
    _require(_HEAD.fullmatch(charged.ledger_head) is not None, "a head of the privacy ledger that is none")


def _check_group(name: str, policy: Policy) -> None:
    groups = (*SHARED_GROUPS, *policy.organs)
    _require(group_of(name) in groups, f"a tensor of an organ that the policy does not offer: {name}")


def _check_tensors(deltas: Mapping[str, Tensor], sent: Mapping[str, Tensor], policy: Policy) -> None:
    """Only what the site was sent comes back: the same names and shapes, and, packed or not, no more bytes."""
    for name, delta in deltas.items():
        _require(name in sent, f"a tensor that the task did not hold: {name!r:.80}")
        _check_group(name, policy)
        _require(
            delta.shape == sent[name].shape and delta.dtype == sent[name].dtype,
            f"{name} of another shape or type than sent: {tuple(delta.shape)} {delta.dtype}",
        )
        _require(bool(torch.isfinite(delta).all()), f"{name} holds values that are not finite")


def _check_counts(counts: Mapping[str, int], organs: tuple[str, ...]) -> None:
    for organ, number in counts.items():
        _require(organ in organs, f"a count of something that is no organ of the site: {organ!r:.80}")
        _require(type(number) is int and number >= 0, f"a count that is no whole number: {number!r:.80}")


def _metrics(metrics: TrainMetrics | None, policy: Policy) -> TrainMetrics | None:
    """The fields that the protocol knows, by organs that the policy offers, rounded; hence a bounded number of bits."""
    if metrics is None:
        return None
    return TrainMetrics(**_passed(metrics, policy))


def _report_metrics(metrics: EvaluationMetrics, policy: Policy, asked: EvaluateTask) -> EvaluationMetrics:
    """As for training; a probe has a name that the task's own recipe gave it, and no other."""
    return EvaluationMetrics(
        **_passed(metrics, policy, recipes.recipe_from_yaml(asked.recipe).federation.evaluation.probes)
    )


def _passed(metrics: TrainMetrics | EvaluationMetrics, policy: Policy, probes: Collection[str] = ()) -> dict[str, Any]:
    """The fields, rounded; without public counts more coarsely, and without the number of dropped scans."""
    with_counts = Public.counts in policy.public
    digits = METRIC_DIGITS if with_counts else COARSE_METRIC_DIGITS
    keys = {name: probes if name == "probes" else policy.organs for name in _BY_KEY}
    kept = {
        name: value if name == "dropped_scans" else _rounded_all(name, value, digits, keys.get(name))
        for name, value in asdict(metrics).items()
    }
    _require(type(kept["dropped_scans"]) is int and kept["dropped_scans"] >= 0, "dropped_scans is no whole number")
    return kept if with_counts else kept | {"dropped_scans": 0}


_METRICS = (TrainMetrics, EvaluationMetrics)
_BY_KEY = frozenset(name for of in _METRICS for name, kind in get_type_hints(of).items() if kind == dict[str, float])
_OPTIONAL = frozenset(f.name for of in _METRICS for f in fields(of) if f.type == "float | None")


def _rounded_all(name: str, value: object, digits: int, known: Collection[str] | None) -> Any:
    """One field; `known` are the keys that it may have, None where it is a single number."""
    if value is None and name in _OPTIONAL:
        return None
    if known is None:
        return _rounded(name, value, digits)
    _require(isinstance(value, Mapping), f"metric {name} is not by organ or probe")
    assert isinstance(value, Mapping)
    _require(
        set(value) <= set(known), f"metric {name} of something that is no organ of the site, or no probe of the recipe"
    )
    return {key: _rounded(name, number, digits) for key, number in value.items()}


def _rounded(name: str, value: object, digits: int) -> float:
    _require(isinstance(value, int | float) and math.isfinite(value), f"metric {name} is no finite number")
    assert isinstance(value, int | float)
    _require(abs(value) <= LARGEST_METRIC, f"metric {name} is larger than {LARGEST_METRIC:g}")
    return 0.0 if abs(value) < SMALLEST_METRIC else float(f"{value:.{digits - 1}e}")
