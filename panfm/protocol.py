"""What crosses the wire between the coordinator and a site; the only place where `client` and `server` meet.

A message is an `Envelope`: its kind, a JSON header and named tensors. Nothing is ever unpickled. A task names the site
it is for, the run, the round and the digest of every tensor, and is signed by the coordinator; the answer is a `SiteUpdate`
(to a `TrainTask`), a `SiteReport` (to an `EvaluateTask`) or a `Refusal`, which is an answer and not a failure. Readers refuse
what they do not know by name.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self, TypeVar

from torch import Tensor

from panfm import update
from panfm.errors import ProtocolError

PROTOCOL_VERSION = 5
"""Raised when the meaning of a message changes; peers with another version are refused politely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One message, before Flower (or a file) carries it."""

    kind: str
    header: str
    """Canonical JSON: sorted keys, no spaces."""
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParcelLabel:
    """By what a parcel (`panfm.wire.parcels`) is known: named in the header of the message whose tensors it holds."""

    sha256: str
    """Of its bytes as they travel (hex)."""
    size_bytes: int
    """Number of these bytes."""

    def __post_init__(self) -> None:
        if re.fullmatch(r"[0-9a-f]{64}", self.sha256) is None or self.size_bytes < 1:
            raise ValueError("a parcel's label should be a SHA-256 in hexadecimal digits and a size of 1 byte or more")


SPACINGS = ("resampled", "even", "thick_2", "thick_4", "thick_8", "thick_16", "thick_32")
"""Classes of voxel spacing, of which a site names the commonest per organ: on the study's grid, or as scanned with voxels that
are as long as wide (even), or 2 to 32 times as long along one axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinAnswer:
    """What a site says of itself when it is asked to join a run, and whether a run can use it."""

    site: str
    organs: tuple[str, ...]
    protocol_version: int
    panfm_version: str
    num_subjects: dict[str, int] = field(default_factory=dict)
    """Subjects per organ, where the site's policy allows it to be told; else empty."""
    torch_version: str = ""
    device: str = ""
    """Kind of device it trains on, as torch calls it (cpu, cuda); not which one."""
    spacing: dict[str, str] = field(default_factory=dict)
    """Organ -> one of `SPACINGS`, where the site's policy makes counts public; else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signable:
    """What a coordinator signs before a site acts on it, or keeps a byte of it."""

    signature: str = ""
    """Hex Ed25519 signature of `digest()` by the coordinator's key."""

    def digest(self) -> str:
        """SHA-256 (hex) of everything but the signature and the parcels, tensors included; never that of a message of another
        kind, whose signature it could borrow."""
        parts = _TENSOR_FIELDS.get(type(self), ())
        header = _header(self, leave_out=(*parts, "parcels", "signature")) | _kind_in_digest(type(self))
        header |= {f"{part}_digest": update.digest(getattr(self, part)) for part in parts}
        return hashlib.sha256(_canonical(header).encode()).hexdigest()

    def signed(self, signature: str) -> Self:
        """The same with its signature."""
        return replace(self, signature=signature)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask(_Signable):
    """One round's work for one site: only the groups that the site needs, student and teacher aligned."""

    run: str
    round: int
    """Counted from 1."""
    site: str
    recipe: str
    """The whole recipe (`panfm.config.Recipe`) as YAML."""
    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    voted: dict[str, int] = field(default_factory=dict)
    """Group -> last round before this one in which this site's update had a vote on it. What the site keeps between rounds
    (the residual of its encoding, optimiser moments) it takes from its answer of that round, and starts afresh without one: what
    an update that did not count left behind must not count later."""
    ledger_witness: str = ""
    """Newest head of the site's privacy ledger on the run's record, as DIGEST:LENGTH, from an answer to a round before this one:
    a ledger that does not go on from it was put back to an older copy. Empty: the record has none. Of rounds that are over
    only, so that the same task has the same digest whenever it is sent."""
    parcels: tuple[ParcelLabel, ...] = ()
    """In which the tensors travel, in this order; how they travel is no part of `digest()`."""
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainMetrics:
    """What a site tells about one round of training; each value is a mean over the round's steps or subjects."""

    loss: float
    """Weighted sum of the terms."""
    loss_patch: float
    """Of hidden patches, by the recipe's objective: features, term (a), smooth-L1 per feature; prototypes, cross-entropy in nats;
    pixels, squared error per normalised voxel."""
    loss_organ: float | None
    """Features, and pixels that weigh it: term (b), smooth-L1 per feature; None where no subject has two organs, or without a
    weight. Prototypes: cross-entropy of the subject token in nats."""
    collapse_loss: float
    """`loss_patch` of the best constant prediction for this round's targets; of prototypes ln K, where all are alike.

    A loss far above it does not learn, one far below it does.
    """
    gradient_norm: float
    """Before clipping."""
    share: dict[str, float]
    """Attention to each organ among the organs present, over subjects that have it."""
    lift: dict[str, float]
    """Share over the organ's part of the tokens; 1 is no preference."""
    masked_rate: dict[str, float]
    """Masked by organ masking, over subjects that have the organ."""
    share_entropy: float | None
    """Entropy of a subject's shares over its maximum (0 to 1); None where no subject has two organs."""
    effective_rank: dict[str, float]
    """Of the teacher's patch tokens, per organ."""
    spread: dict[str, float]
    """Standard deviation of the teacher's L2-normalised patch tokens, times the square root of the width.

    0 is collapse, 1 is the sphere.
    """
    seconds: float
    """Wall time of the training."""
    dropped_scans: int = 0
    """Prepared scans that the round did without, because their files were missing or had changed; the site knows which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySpent:
    """What a site tells of its privacy ledger with a round's charge in it. Public: it follows from the recipes that it took
    part in and from its policy, and from no subject."""

    epsilon: float
    """Privacy loss of those on whom the site trained, over all runs, by the accountant that decides (Renyi); where they were
    charged differently, of those who have lost most."""
    delta: float
    """Of the site's policy; epsilon holds at it."""
    budget: float
    """Largest epsilon that the site's policy allows."""
    ledger_head: str
    """Head of the ledger once this answer was released, as DIGEST:LENGTH; the coordinator's witness of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteUpdate:
    """A site's answer to a task: what it learned, and what it may tell about it."""

    run: str
    round: int
    site: str
    task_digest: str
    deltas: dict[str, Tensor]
    """Trained parameters minus the task's, by name; only groups that the site trained. Empty while they are in parcels, where
    they stand under the names of their parameters."""
    num_subjects: int
    """Subjects that the site trained on."""
    organ_subjects: dict[str, int]
    """Subjects per organ that the site trained on."""
    num_steps: int
    """Optimiser steps done in this round."""
    metrics: TrainMetrics | None
    """None where the site's policy does not make them public, and always with privacy, which charges for none."""
    privacy: PrivacySpent | None = None
    """With a recipe that has privacy, at a site that keeps a budget; else None. Then the deltas are noised, of exactly the
    parameters that `pretrain.private_scope.trained_names` names for the site's organs, and the counts are nominal ones."""
    parcels: tuple[ParcelLabel, ...] = ()
    """In which the deltas travel, in this order: the first comes with this header, the others on request."""
    audit_head: str = ""
    """Head of the site's audit log with the entry of this answer in it, as DIGEST:LENGTH; the run's record holds it as a
    witness against a log that is cut or written anew. Put in when the answer leaves, so it is no part of the stored one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateTask(_Signable):
    """One site's part in the evaluation of the model after a round: only the groups that the site needs.

    It travels as a `TrainTask` does and leaves nothing behind at the site but the report.
    """

    run: str
    round: int
    """The round after which the model stands; counted from 1."""
    site: str
    recipe: str
    """The whole recipe (`panfm.config.Recipe`) as YAML; `federation.evaluation` says what to look at."""
    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    parcels: tuple[ParcelLabel, ...] = ()
    """In which the tensors travel, in this order; how they travel is no part of `digest()`."""
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationMetrics:
    """What a site tells about the model on subjects that it holds out (split `validation`); means over those subjects."""

    loss: float
    """Weighted sum of the terms, as in training."""
    loss_patch: float
    """Of hidden patches, by the recipe's objective: features, term (a), smooth-L1 per feature; prototypes, cross-entropy in nats;
    pixels, squared error per normalised voxel."""
    loss_organ: float | None
    """Features, and pixels that weigh it: term (b), smooth-L1 per feature; None where no subject has two organs, or without a
    weight. Prototypes: cross-entropy of the subject token in nats."""
    collapse_loss: float
    """`loss_patch` of the best constant prediction for these targets; of prototypes ln K."""
    share: dict[str, float]
    """Attention to each organ among the organs present, over subjects that have it."""
    lift: dict[str, float]
    """Share over the organ's part of the tokens; 1 is no preference."""
    share_entropy: float | None
    """Entropy of a subject's shares over its maximum (0 to 1); None where no subject has two organs."""
    probes: dict[str, float]
    """What a linear probe reads from the embeddings, by the recipe's own name of it; only those that the site has labels for."""
    seconds: float
    """Wall time of the evaluation."""
    dropped_scans: int = 0
    """Prepared scans that the evaluation did without; the site knows which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """A site's answer to an `EvaluateTask`: numbers, and no tensor."""

    run: str
    round: int
    site: str
    task_digest: str
    num_subjects: int
    """Held-out subjects that the site looked at."""
    organ_subjects: dict[str, int]
    """Held-out subjects per organ."""
    metrics: EvaluationMetrics
    audit_head: str = ""
    """Head of the site's audit log with the entry of this answer in it; as in `SiteUpdate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskParcel(_Signable):
    """A parcel of a task's tensors that goes ahead of the task itself; its bytes travel beside this header."""

    run: str
    round: int
    site: str
    sha256: str
    """Of the parcel (hex)."""
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class ParcelKept:
    """A site's answer to a `TaskParcel`: it has the parcel on its disk."""

    run: str
    round: int
    site: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParcelRequest(_Signable):
    """The coordinator asks for another parcel of an answer, of which the first came with the answer."""

    run: str
    round: int
    site: str
    sha256: str
    """One of those that the answer names; the site hands out nothing else."""
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerParcel:
    """A site's answer to a `ParcelRequest`; the parcel's bytes travel beside this header."""

    run: str
    round: int
    site: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A site's considered no: it is recorded on both sides and does not fail the round."""

    run: str
    round: int
    site: str
    code: str
    """A stable word for programs, such as `round_answered_otherwise`."""
    reason: str
    """One line for people; holds no path, pseudonym or value."""


Task = TrainTask | EvaluateTask
Signed = Task | TaskParcel | ParcelRequest
Answer = JoinAnswer | SiteUpdate | SiteReport | ParcelKept | AnswerParcel | Refusal
Message = Signed | Answer
_KINDS: dict[str, type[Message]] = {
    "join_answer": JoinAnswer,
    "train_task": TrainTask,
    "site_update": SiteUpdate,
    "evaluate_task": EvaluateTask,
    "site_report": SiteReport,
    "task_parcel": TaskParcel,
    "parcel_kept": ParcelKept,
    "parcel_request": ParcelRequest,
    "answer_parcel": AnswerParcel,
    "refusal": Refusal,
}
_TENSOR_FIELDS: dict[type[Message | _Signable], tuple[str, ...]] = {
    TrainTask: ("student", "teacher"),
    SiteUpdate: ("deltas",),
    EvaluateTask: ("student", "teacher"),
}
_METRICS: dict[type[Message], type[TrainMetrics] | type[EvaluationMetrics]] = {
    SiteUpdate: TrainMetrics,
    SiteReport: EvaluationMetrics,
}
"""Kinds whose field `metrics` is an object of its own in the header."""
_INNER = TrainMetrics | EvaluationMetrics | PrivacySpent
"""What is an object of its own in the header, besides the labels of parcels."""
M = TypeVar("M", bound=Message)


def to_envelope(message: Message) -> Envelope:
    """The message as JSON header and tensors named `<field>/<parameter>`."""
    kind = next(kind for kind, cls in _KINDS.items() if type(message) is cls)
    parts = _TENSOR_FIELDS.get(type(message), ())
    tensors = {f"{part}/{name}": tensor for part in parts for name, tensor in sorted(getattr(message, part).items())}
    return Envelope(kind=kind, header=_canonical(_header(message, leave_out=parts)), tensors=tensors)


def from_envelope(envelope: Envelope) -> Message:
    """The message of an envelope.

    Raises: ProtocolError when the kind, a field or a tensor name is not one that this version knows, or one is missing.
    """
    cls = _KINDS.get(envelope.kind)
    if cls is None:
        raise ProtocolError(
            f"unknown kind of message {envelope.kind!r}; expected one of {', '.join(_KINDS)}: update panfm"
        )
    try:
        header = _parsed(envelope.header)
        values = _values(cls, header, _TENSOR_FIELDS.get(cls, ()), envelope.tensors)
        return cls(**values)
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"malformed {envelope.kind}: {error}; both sides need the same protocol version") from error


def expect(message: Message, kind: type[M]) -> M:
    """The message, when it is of that kind; ProtocolError otherwise."""
    if not isinstance(message, kind):
        raise ProtocolError(f"expected {kind.__name__}, got {type(message).__name__}")
    return message


def _kind_in_digest(cls: type[_Signable]) -> dict[str, str]:
    """The first kind of message that was ever signed is told from the others by having none."""
    if cls is TrainTask:
        return {}
    return {"kind": "evaluate_task" if cls is EvaluateTask else cls.__name__}


def _header(message: Message | _Signable, leave_out: tuple[str, ...]) -> dict[str, Any]:
    return {f.name: _plain(getattr(message, f.name)) for f in fields(message) if f.name not in leave_out}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return asdict(value) if isinstance(value, _INNER | ParcelLabel) else value


def _canonical(header: Mapping[str, Any]) -> str:
    return json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=True)


def _parsed(header: str) -> Any:
    parsed = json.loads(header)
    json.dumps(parsed, ensure_ascii=False).encode()  # a lone surrogate is valid JSON, but no log can be written with it
    return parsed


def _values(cls: type[Message], header: Any, parts: tuple[str, ...], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    _check_fields(cls, header, leave_out=parts)
    values: dict[str, Any] = {**header, **{part: {} for part in parts}}
    for name, tensor in tensors.items():
        part, _, parameter = name.partition("/")
        if part not in parts or not parameter:
            raise ValueError(f"unexpected tensor {name!r}")
        values[part][parameter] = tensor
    if cls in _METRICS and values["metrics"] is not None:
        _check_fields(_METRICS[cls], values["metrics"])
        values["metrics"] = _METRICS[cls](**values["metrics"])
    if cls is SiteUpdate and values["privacy"] is not None:
        _check_fields(PrivacySpent, values["privacy"])
        values["privacy"] = PrivacySpent(**values["privacy"])
    if isinstance(labels := values.get("parcels"), list):
        values["parcels"] = tuple(_label(label) for label in labels)
    if cls is JoinAnswer and isinstance(values["organs"], list):
        values["organs"] = tuple(values["organs"])
    _check_types(cls, values)
    return values


def _label(label: Any) -> ParcelLabel:
    _check_fields(ParcelLabel, label)
    _check_types(ParcelLabel, label)
    return ParcelLabel(**label)


def _check_fields(cls: type[Any], header: Any, leave_out: tuple[str, ...] = ()) -> None:
    if not isinstance(header, dict):
        raise ValueError(f"{cls.__name__} is not a JSON object")
    known = {f.name for f in fields(cls)} - set(leave_out)
    if wrong := sorted(header.keys() ^ known):
        spoken = header.get("protocol_version", PROTOCOL_VERSION)
        why = "" if spoken == PROTOCOL_VERSION else f" (protocol {spoken!r:.20}, here {PROTOCOL_VERSION})"
        raise ValueError(f"field {wrong[0]!r:.60} is {'missing' if wrong[0] in known else 'unknown'}{why}")


_PLAIN_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "float | None": (float, int, type(None)),
    "tuple[str, ...]": (tuple,),
    "tuple[ParcelLabel, ...]": (tuple,),
    "dict[str, int]": (dict,),
    "dict[str, str]": (dict,),
    "dict[str, float]": (dict,),
    "dict[str, Tensor]": (dict,),
    "TrainMetrics | None": (TrainMetrics, type(None)),
    "EvaluationMetrics": (EvaluationMetrics,),
    "PrivacySpent | None": (PrivacySpent, type(None)),
}


def _check_types(cls: type[Any], values: Mapping[str, Any]) -> None:
    """A header comes from a peer: each value must be of the type that its field declares."""
    for f in fields(cls):
        if not _fits(str(f.type), values[f.name]):
            raise ValueError(f"{f.name} should be {f.type}, got {values[f.name]!r:.60}")


def _fits(declared: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, _PLAIN_TYPES[declared]):
        return False
    return _content_fits(declared, value)


def _content_fits(declared: str, value: Any) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**63  # a longer one might not become a float
    if declared in ("dict[str, int]", "dict[str, float]", "dict[str, str]"):
        inner = declared.removeprefix("dict[str, ").removesuffix("]")
        return all(isinstance(key, str) and _fits(inner, item) for key, item in value.items())
    if declared == "tuple[str, ...]":
        return all(isinstance(item, str) for item in value)
    if declared == "tuple[ParcelLabel, ...]":
        return all(isinstance(item, ParcelLabel) for item in value)
    if isinstance(value, _INNER):
        _check_types(type(value), {f.name: getattr(value, f.name) for f in fields(value)})
    return True
