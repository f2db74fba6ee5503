"""Who takes part: nodes are asked once who they are, and a site is known by its own name from then on."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection

from flwr.app import Message
from flwr.serverapp import Grid

from panfm.config import Recipe
from panfm.errors import PanfmError, ProtocolError, RunError
from panfm.protocol import PROTOCOL_VERSION, JoinAnswer, Refusal, SiteUpdate
from panfm.reporting.record import SiteJoined, SiteRejected
from server.messages import decode_reply, encode_join_question, one_line
from server.replies import gather
from server.run_record import RunRecord

log = logging.getLogger("panfm.server")

_POLL_S = 1.0

_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""What a hospital's own policy allows; a name from a peer stands in the record, in file names and in every sum."""


class Participants:
    """The sites of a run, by node; asks nodes that it has not met."""

    def __init__(self, grid: Grid, recipe: Recipe, record: RunRecord) -> None:
        self._grid, self._recipe, self._record = grid, recipe, record
        self._met: set[int] = set()
        self.sites: dict[int, JoinAnswer] = {}
        """node -> what its site said, for the sites that may take part."""

    def wait_for_start(self) -> None:
        """Ask nodes until the recipe's fewest sites have joined.

        Raises: RunError when they have not within the recipe's join_timeout_s.
        """
        federation = self._recipe.federation
        deadline = time.monotonic() + federation.join_timeout_s
        self.ask_new_nodes()
        while len(self.sites) < federation.min_sites:
            if time.monotonic() > deadline:
                raise RunError(
                    f"{len(self.sites)} of at least {federation.min_sites} sites joined"
                    f" within {federation.join_timeout_s:.0f} s; start the missing sites or mend those named above"
                )
            time.sleep(_POLL_S)
            self.ask_new_nodes()

    def ask_new_nodes(self) -> None:
        """Ask every node that has not been asked who it is."""
        new = sorted(set(self._grid.get_node_ids()) - self._met)
        if not new:
            return
        self._met.update(new)
        questions = {node: encode_join_question(node) for node in new}
        silent = set(new)
        timeout_s = self._recipe.federation.join_timeout_s
        for node, reply in gather(self._grid, questions, timeout_s):
            silent.discard(node)
            self._meet(node, reply)
        for node in sorted(silent):
            self._reject(f"node {node}", f"no answer to the question who it is within {timeout_s:.0f} s")

    def _meet(self, node: int, reply: Message) -> None:
        try:
            answer = _read(reply)
        except PanfmError as error:
            return self._reject(f"node {node}", str(error))
        if (reason := _why_not(answer, self._recipe, [known.site for known in self.sites.values()])) is not None:
            return self._reject(one_line(answer.site), reason)
        self.sites[node] = answer
        organs = [organ for organ in self._recipe.organs if organ in answer.organs]
        self._record.write(
            SiteJoined(
                site=answer.site,
                organs=organs,
                panfm_version=one_line(answer.panfm_version),
                num_subjects={organ: answer.num_subjects[organ] for organ in organs if organ in answer.num_subjects},
            )
        )
        log.info("%s joined with %s", answer.site, ", ".join(organs))

    def _reject(self, name: str, reason: str) -> None:
        self._record.write(SiteRejected(site=name, reason=reason))
        log.warning("%s does not take part: %s", name, reason)


def _read(reply: Message) -> JoinAnswer:
    if reply.has_error():
        raise ProtocolError("the node did not answer when it was asked to join; its own log says why")
    answer = decode_reply(reply)
    if isinstance(answer, Refusal):
        raise RunError(one_line(f"{answer.code}: {answer.reason}"))
    if isinstance(answer, SiteUpdate):
        raise ProtocolError("the node sent an update when it was asked to join")
    return answer


def _why_not(answer: JoinAnswer, recipe: Recipe, known: Collection[str]) -> str | None:
    if answer.protocol_version != PROTOCOL_VERSION:
        return f"it speaks protocol {answer.protocol_version}, this run {PROTOCOL_VERSION}; update panfm there"
    if not _SITE_NAME.fullmatch(answer.site):
        return "its name should be at most 64 letters, digits, - and _; rename the site"
    if answer.site in known:
        return "another node of this run has the same site name; rename one of them"
    if not set(answer.organs) & set(recipe.organs):
        offered = one_line(", ".join(answer.organs)) or "no organ"
        return f"it offers {offered}, the study needs one of {', '.join(recipe.organs)}; prepare such scans there"
    return None
