"""What the audit log says of a task and of its answer: who asked, what was asked, what came of it, and what left.

Digests and sizes, never content; of a name that the coordinator chose, its first characters.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib

from panfm.protocol import EvaluateTask, ParcelRequest, Refusal, Signed, Task, TaskParcel
from panfm.signing import fingerprint, is_signed_by
from panfm.site.audit_chain import JsonScalar
from panfm.site.egress import Released
from panfm.site.policy import Policy

TASK_RECEIVED, TASK_REFUSED, ANSWER_SENT, SITE_ERROR = "task_received", "task_refused", "answer_sent", "site_error"
PARCEL_RECEIVED, PARCEL_ASKED = "parcel_received", "parcel_asked"

UNKNOWN_COORDINATOR = "unknown"
"""In place of a fingerprint, when none of the policy's keys signed the task."""


def about_task(task: Task, policy: Policy, policy_sha256: str) -> dict[str, JsonScalar]:
    """Who asked what, and under which policy: the digest of its file."""
    digest = task.digest()
    return {
        "task": "evaluate" if isinstance(task, EvaluateTask) else "train",
        "coordinator": _coordinator(task, digest, policy),
        "run": task.run,
        "round": task.round,
        "task_digest": digest,
        "policy_sha256": policy_sha256,
        "recipe_sha256": hashlib.sha256(task.recipe.encode(errors="surrogatepass")).hexdigest(),
    }


def about_parcel(asked: TaskParcel | ParcelRequest, policy: Policy) -> tuple[str, dict[str, JsonScalar]]:
    """The event, and who sent or wants which parcel."""
    event = PARCEL_RECEIVED if isinstance(asked, TaskParcel) else PARCEL_ASKED
    coordinator = _coordinator(asked, asked.digest(), policy)
    return event, {"coordinator": coordinator, "run": asked.run, "round": asked.round, "parcel_sha256": asked.sha256}


def about_answer(released: Released, task: Signed | None) -> tuple[str, dict[str, JsonScalar]]:
    """The event, and what leaves with it.

    Args:
        task: what is answered; None where the site was asked who it is.
    """
    address: dict[str, JsonScalar] = {"run": task.run, "round": task.round} if task is not None else {}
    return TASK_REFUSED if isinstance(released.answer, Refusal) else ANSWER_SENT, address | released.summary()


def _coordinator(asked: Signed, digest: str, policy: Policy) -> str:
    """Fingerprint of the key that signed it, if it is one of the policy's."""
    signers = (key for key in policy.coordinator_keys if is_signed_by(key, digest, asked.signature))
    return next((fingerprint(key) for key in signers), UNKNOWN_COORDINATOR)
