"""Who takes part: nodes are asked who they are, and a site is known by its own name from then on.

In a deployment a node is registered under the name of its site, by its key; a node that says another name is turned away.
Sites come, leave and come back between rounds. A node that restarted has a new number and the same site name, and takes its old
place once the old node is gone; as long as that one is connected, another node of the name is turned away. A node that was
turned away is asked again before each round, at most once a minute, for a person there may have mended what was wrong.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from flwr.app import Message
from flwr.serverapp import Grid

from panfm.config import OrganGrid, Recipe, Spacing
from panfm.errors import PanfmError, ProtocolError, RunError
from panfm.protocol import PROTOCOL_VERSION, SPACINGS, JoinAnswer, Refusal
from panfm.reporting.record import SiteJoined, SiteLeft, SiteRejected
from server.coverage import needed
from server.deadlines import expected_seconds, round_deadline_s
from server.messages import decode_reply, encode_join_question, one_line
from server.replies import Mailbox
from server.run_record import RunRecord
from server.selection import Standing, choose_sites

log = logging.getLogger("panfm.server")

_POLL_S = 1.0
_ASK_AGAIN_S = 60.0
"""Between two questions to a node that was turned away: each starts a program at the site."""

_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""What a hospital's own policy allows; a name from a peer stands in the record, in file names and in every sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """Whom a round asks, and how long it waits for them."""

    number: int
    sites: dict[int, JoinAnswer]
    """Node -> site, for the sites to ask, in the order of their names."""
    passed_over: tuple[str, ...]
    """Sites that are there and not asked in this round."""
    deadline_s: float


class Participants:
    """The sites of a run, by node; it asks nodes, and plans rounds by who is there.

    How it is called: `wait_for_start` once, also after a resume, then `plan` before each round. What became of earlier rounds it
    reads from `record.attendance`, which holds whatever the record holds, so there is nothing to hand over on a resume.
    """

    def __init__(self, grid: Grid, recipe: Recipe, record: RunRecord) -> None:
        self._grid, self._recipe, self._record = grid, recipe, record
        self._questions = Mailbox[int](grid)
        """Questions without an answer yet, by node."""
        self._asked: dict[int, float] = {}
        """Node -> when it was asked last, by the monotonic clock; for the nodes that are connected."""
        self._died: Counter[int] = Counter()
        """Node -> how often in a row its program died over the question, since it was asked anew."""
        self._turned_away: dict[int, str] = {}
        """Node -> why, as the record has it."""
        self._registered: dict[int, str] = {}
        """Node -> the site as whose its key is registered, for the nodes that are connected; empty in a rehearsal."""
        self.sites: dict[int, JoinAnswer] = {}
        """Node -> what its site said, for the sites that are there and may take part; only organs that the study can use."""

    def wait_for_start(self) -> None:
        """Ask nodes until enough sites have joined, and those that the declared coverage needs.

        All nodes that are there have the recipe's join_timeout_s to answer. After a resume, sites that may be busy with the
        round that the last coordinator asked for have as much longer as they are expected to need for it.
        Raises: RunError when too few have joined by then.
        """
        federation = self._recipe.federation
        until = time.monotonic() + federation.join_timeout_s + self._busy_s()
        self.look()
        while (missing := self._missing_at_start()) or self._silent():
            if time.monotonic() > until:
                break
            time.sleep(_POLL_S)
            self.look()
        if missing:
            raise RunError(
                f"{missing} within {federation.join_timeout_s:.0f} s; start the missing sites or mend those named above"
            )

    def plan(self, number: int) -> RoundPlan:
        """Whom the round asks and how long it waits, once the recipe's fewest sites are there.

        A round that an earlier process began asks the same sites again, as far as they are there.
        Raises: RunError when too few sites have come back in the recipe's absence_timeout_s.
        """
        self._gather(number)
        attendance, federation = self._record.attendance, self._recipe.federation
        rounds = attendance.finished(before=number)
        there = {site.site: node for node, site in self.sites.items()}
        begun = [site for site in attendance.begun(number) if site in there]
        asked = begun if len(begun) >= federation.min_sites else self._choice(number)
        return RoundPlan(
            number=number,
            sites={there[site]: self.sites[there[site]] for site in sorted(asked)},
            passed_over=tuple(sorted(there.keys() - set(asked))),
            deadline_s=round_deadline_s(asked, rounds, federation),
        )

    def look(self) -> None:
        """Forget nodes that are gone, ask new ones who they are, and take those that may take part among the sites.

        New nodes are waited for, at most the recipe's join_timeout_s; what the others say by now, those that were silent or
        turned away, is heard without waiting.
        """
        self._registered, now = {node.node_id: node.name for node in self._grid.get_nodes()}, time.monotonic()
        nodes = self._registered.keys()
        self._forget(self._asked.keys() - nodes)
        new = sorted(nodes - self._asked.keys())
        told = self._turned_away.keys() - self._silent()
        again = sorted(node for node in told if now - self._asked[node] > _ASK_AGAIN_S)
        for node in (*new, *again):
            del self._died[node]
            self._ask(node)
        timeout_s = self._recipe.federation.join_timeout_s
        self._hear(new, now + timeout_s)
        for node in sorted(set(new) - self.sites.keys() - self._turned_away.keys()):
            self._turn_away(node, f"node {node}", f"no answer to the question who it is within {timeout_s:.0f} s")

    def _gather(self, number: int) -> None:
        """Ask nodes until enough sites for a round are there."""
        fewest, patience_s = self._recipe.federation.min_sites, self._recipe.federation.participation.absence_timeout_s
        until = time.monotonic() + patience_s
        self.look()
        while len(self._able()) < fewest:
            self._check_budgets(number)
            if time.monotonic() > until:
                raise RunError(
                    f"{len(self._able())} of at least {fewest} sites were there for round {number} within {patience_s:.0f} s;"
                    " the run can be resumed when they are back"
                )
            time.sleep(_POLL_S)
            self.look()

    def _able(self) -> list[JoinAnswer]:
        """The sites that are there, but those that have said that their privacy budget is spent."""
        spent = self._record.attendance.spent
        return [site for site in self.sites.values() if site.site not in spent]

    def _check_budgets(self, number: int) -> None:
        """Raises: RunError when no round can count any more, for want of budgets: whom it asked would be charged for nothing."""
        attendance, fewest = self._record.attendance, self._recipe.federation.min_sites
        left = attendance.offered.keys() - attendance.spent
        if attendance.spent and len(left) < fewest:
            raise RunError(
                f"the privacy budget of {', '.join(sorted(attendance.spent))} is spent, so {len(left)} sites are left for round "
                f"{number} and federation.min_sites asks for {fewest}; what was trained stands. Plan the next study with less "
                "cost a round (panfm privacy plan)"
            )

    def _choice(self, number: int) -> tuple[str, ...]:
        attendance, federation = self._record.attendance, self._recipe.federation
        standing = Standing(
            seed=self._recipe.seed,
            number=number,
            rounds=attendance.finished(before=number),
            needed={
                organ: needed(organ, attendance, federation.participation.coverage) for organ in self._recipe.organs
            },
        )
        return choose_sites({site.site: site.organs for site in self._able()}, standing, federation)

    def _busy_s(self) -> float:
        """How long the slowest site may still be busy with a round that another process asked for; 0 in a new run."""
        attendance = self._record.attendance
        rounds = attendance.finished()
        expected_s = [expected_seconds(site, rounds) for site in attendance.offered]
        longest_s = max((seconds for seconds in expected_s if seconds is not None), default=0.0)
        return min(longest_s, self._recipe.federation.round_deadline_s)

    def _silent(self) -> set[int]:
        """Nodes that are connected and have a question before them."""
        return self._asked.keys() & set(self._questions.waiting())

    def _missing_at_start(self) -> str:
        """What the start lacks, in words; empty when it lacks nothing. A run that goes on needs no more than a round does."""
        federation, goes_on = self._recipe.federation, bool(self._record.attendance.finished())
        fewest = max(0 if goes_on else federation.participation.start_sites, federation.min_sites)
        if len(self.sites) < fewest:
            return f"{len(self.sites)} of at least {fewest} sites joined"
        for organ, sites in ({} if goes_on else federation.participation.coverage).items():
            holders = sum(organ in site.organs for site in self.sites.values())
            if holders < sites:
                return f"{holders} of at least {sites} sites with {organ} joined"
        return ""

    def _hear(self, new: Collection[int], until: float) -> None:
        """Take answers as they come, until all new nodes have given theirs."""
        while True:
            for node, reply in self._questions.look():
                if node in self._asked and not self._asked_again(
                    node, reply
                ):  # that of a node that is gone is nobody's
                    self._meet(node, reply)
            if time.monotonic() > until or not self._silent() & set(new):
                return
            self._questions.rest(until)

    def _ask(self, node: int) -> None:
        self._asked[node] = time.monotonic()
        self._questions.send(encode_join_question(node), node)

    def _asked_again(self, node: int, reply: Message) -> bool:
        """Whether the node was asked once more, for its program died: like any other message, as often as the recipe says."""
        if not reply.has_error() or self._died[node] == self._recipe.federation.retries:
            return False
        self._died[node] += 1
        self._ask(node)
        return True

    def _forget(self, gone: Collection[int]) -> None:
        for node in sorted(gone):
            del self._asked[node]
            self._turned_away.pop(node, None)
            if (site := self.sites.pop(node, None)) is not None:
                number = max(self._record.attendance.finished(), default=0) + 1
                self._record.write(SiteLeft(site=site.site, round=number))
                log.warning("%s is no longer connected", site.site)

    def _meet(self, node: int, reply: Message) -> None:
        try:
            answer = _read(reply)
        except PanfmError as error:
            return self._turn_away(node, f"node {node}", str(error))
        if (name := self._registered.get(node)) and name != answer.site:
            return self._turn_away(node, name, _another_name(answer, name))
        if (reason := _why_not(answer, self._recipe, [known.site for known in self.sites.values()])) is not None:
            return self._turn_away(node, one_line(answer.site), reason)
        organs = tuple(o for o in self._recipe.organs if o in answer.organs and fits(answer, o, self._recipe.organs[o]))
        self._turned_away.pop(node, None)
        self.sites[node] = replace(answer, organs=organs)
        self._record.write(_joined(self.sites[node], returned=answer.site in self._record.attendance.offered))
        log.info("%s joined with %s", answer.site, ", ".join(organs))

    def _turn_away(self, node: int, name: str, reason: str) -> None:
        if self._turned_away.get(node) != reason:  # told once
            self._record.write(SiteRejected(site=name, reason=reason))
            log.warning("%s does not take part: %s", name, reason)
        self._turned_away[node] = reason


def fits(answer: JoinAnswer, organ: str, grid: OrganGrid) -> bool:
    """Whether the site's scans of an organ are prepared the way in which the study sees it; yes, where it does not tell."""
    told = answer.spacing.get(organ)
    return told is None or (told != "resampled") == (grid.spacing is Spacing.native)


def _joined(site: JoinAnswer, returned: bool) -> SiteJoined:
    def told(by_organ: Mapping[str, int]) -> dict[str, int]:
        return {organ: by_organ[organ] for organ in site.organs if organ in by_organ}

    return SiteJoined(
        site=site.site,
        organs=list(site.organs),
        panfm_version=one_line(site.panfm_version),
        num_subjects=told(site.num_subjects),
        torch_version=one_line(site.torch_version),
        device=one_line(site.device),
        spacing={organ: word for organ, word in site.spacing.items() if organ in site.organs and word in SPACINGS},
        returned=returned,
    )


def _read(reply: Message) -> JoinAnswer:
    if reply.has_error():
        raise ProtocolError("the node did not answer when it was asked to join; its own log says why")
    answer = decode_reply(reply)
    if isinstance(answer, Refusal):
        raise RunError(one_line(f"{answer.code}: {answer.reason}"))
    if not isinstance(answer, JoinAnswer):
        raise ProtocolError("the node sent an update when it was asked to join")
    return answer


def _another_name(answer: JoinAnswer, registered: str) -> str:
    return (
        f"it says that it is {one_line(answer.site)!r}, and its node key is that of {registered}; every site has keys and a "
        "policy of its own: find out who uses this one's"
    )


def _why_not(answer: JoinAnswer, recipe: Recipe, known: Collection[str]) -> str | None:
    if answer.protocol_version != PROTOCOL_VERSION:
        return f"it speaks protocol {answer.protocol_version}, this run {PROTOCOL_VERSION}; update panfm there"
    if not _SITE_NAME.fullmatch(answer.site):
        return "its name should be at most 64 letters, digits, - and _; rename the site"
    if answer.site in known:
        return (
            "another node of this run has the same site name; rename one, or wait until the older one has disconnected"
        )
    return _why_no_organ(answer, recipe)


def _why_no_organ(answer: JoinAnswer, recipe: Recipe) -> str | None:
    shared = [organ for organ in recipe.organs if organ in answer.organs]
    if not shared:
        offered = one_line(", ".join(answer.organs)) or "no organ"
        return f"it offers {offered}, the study needs one of {', '.join(recipe.organs)}; prepare such scans there"
    if not any(fits(answer, organ, recipe.organs[organ]) for organ in shared):
        wanted = "; ".join(f"{organ} {recipe.organs[organ].spacing.name}" for organ in shared)
        return (
            f"its scans are prepared with another kind of spacing than the study's ({wanted}); prepare them again there"
        )
    return None
