"""What a site does with parcels that travel by themselves: it keeps those of a task to come, and hands out those of an answer."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging

from client.workspace import Workspace
from panfm.errors import ProtocolError
from panfm.protocol import AnswerParcel, ParcelKept, ParcelRequest, Refusal, TaskParcel
from panfm.site.admission import Refused, admit_parcel
from panfm.site.egress import Released, release
from panfm.wire.parcels import Parcel

log = logging.getLogger("panfm.client")


def keep_parcel(asked: TaskParcel, body: bytes | None, workspace: Workspace) -> ParcelKept | Refusal:
    """Keep a parcel that goes ahead of its task.

    Raises: ProtocolError when its bytes are not those that were announced, ShelfError when there is no room.
    """
    if (refused := admit_parcel(asked, workspace.policy)) is not None:
        return _refusal(asked, refused, workspace)
    if body is None:
        raise ProtocolError("a parcel came without its bytes; the coordinator runs other code")
    workspace.parcels.keep(asked.run, asked.round, Parcel(body, asked.sha256))
    return ParcelKept(run=asked.run, round=asked.round, site=workspace.policy.site, sha256=asked.sha256)


def hand_out(asked: ParcelRequest, workspace: Workspace) -> Released:
    """A further parcel of an answer that the site gave, from its store and through the gate."""
    answered = workspace.answers.find(asked.run, asked.round)
    refused = admit_parcel(asked, workspace.policy, answered)
    parcel = workspace.answers.parcel(asked.run, asked.round, asked.sha256) if refused is None else None
    if parcel is None:
        refusal = _refusal(asked, refused or Refused(code="parcel_unknown"), workspace)
        return release(refusal, workspace.policy, asked)
    answer = AnswerParcel(run=asked.run, round=asked.round, site=workspace.policy.site, sha256=asked.sha256)
    return release(answer, workspace.policy, asked, (parcel,), answered)


def _refusal(asked: TaskParcel | ParcelRequest, refused: Refused, workspace: Workspace) -> Refusal:
    log.warning("refused a parcel of round %d of %.80r: %s", asked.round, asked.run, refused.reason)
    return Refusal(
        run=asked.run, round=asked.round, site=workspace.policy.site, code=refused.code, reason=refused.reason
    )
