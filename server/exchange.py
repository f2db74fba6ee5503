"""One round's exchange with the sites: tasks out in parcels, answers in through the spool, each site by itself.

Each site has one message before it at a time: the parcels of its task ahead of it, then the task with the last one, then requests
for the further parcels of its answer. So at most one message is in this program's memory, whatever the number of sites. A message
whose program died is sent again, for a site answers a repeated task from its store; what came too late is taken off the wire in
a later round and kept out. A peer that sends something else than was asked for loses its own update and nothing more.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message
from torch import Tensor

from panfm.config import FederationConfig
from panfm.errors import ProtocolError
from panfm.protocol import (
    Answer,
    AnswerParcel,
    ParcelKept,
    ParcelLabel,
    ParcelRequest,
    Refusal,
    SiteReport,
    SiteUpdate,
    Task,
    TaskParcel,
    TrainTask,
)
from panfm.signing import sign
from server.messages import decode_reply, encode_parcel, encode_request, encode_task, one_line, parcel_body, size_bytes
from server.outbox import Outbox
from server.replies import Mailbox
from server.spool import Arrival, Spool, SpooledUpdate, room_for

UNREACHABLE_PAUSE_S = 30.0
"""Before a message is sent again to a node that is offline: its supervisor restarts it within about a minute (seconds)."""
_NODE_UNAVAILABLE = 5
"""Flower's error code for such a node."""
LOST_PARCELS = "parcels_missing"
"""Code of the refusal with which a site asks for a task's parcels once more."""
_SPARE_S = 600.0
"""Flower keeps a message for twice the deadline and this long: late replies can be named, and no task of long ago is begun."""

_DIED = "the site's program ended without an answer; its own log says why"
_NOT_SENT = "a message could not be sent to the site; the SuperLink's log says why"
_LOST = "the site has lost the parcels of its task; its own log says why"


T = TypeVar("T", bound=Task)


class Fate(Enum):
    """What became of a task."""

    answered = "answered"
    """There is an answer to be judged."""
    left_out = "left_out"
    """What came is no answer: other code, a wrong digest, more than was announced."""
    failed = "failed"
    """The site's program ended without an answer as often as it was asked, or its node cannot be reached."""
    late = "late"
    """No whole answer within the deadline."""
    overdue = "overdue"
    """The reply to a task of an earlier exchange, which was late then: it is kept out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """What became of one site's task."""

    node: int
    site: str
    round: int
    """Of the task; of an overdue reply an earlier one."""
    fate: Fate
    answer: Refusal | SiteReport | SiteUpdate | None = None
    """Of a SiteUpdate `deltas` is empty: they lie on disk, in `spooled.deltas`."""
    spooled: SpooledUpdate | None = None
    """With a SiteUpdate."""
    reason: str = ""
    """Empty where there is an answer; else one line for people."""
    seconds: float = 0.0
    """From the start of the exchange; for an overdue reply, from the sending of what it answers."""
    bytes_down: int = 0
    bytes_up: int = 0
    attempts: int = 1
    """1, and 1 more for each message that had to be sent again."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Label:
    """Whose message a reply answers; each message has one of its own."""

    node: int
    site: str
    round: int
    sent: float
    """By the monotonic clock."""


class Post(Mailbox[Label]):
    """The mailbox of a run: it remembers what is overdue from one exchange to the next."""


def exchange(
    post: Post,
    tasks: MutableMapping[int, Task],
    spool: Spool,
    *,
    key: Ed25519PrivateKey,
    federation: FederationConfig,
    deadline_s: float,
) -> Iterator[Exchanged]:
    """Send each node its task and yield what becomes of it, once a node, as each completes; overdue replies in between.

    Args:
        post: the run's mailbox.
        tasks: node -> signed task, all of one round; their tensors are as the sites will receive them
            (`panfm.wire.encoding.as_received`), and those that sites share are the same tensors. Each is taken out as it is
            packed, and its tensors are held no longer: rounded ones are a model more.
        spool: where updates are kept; the caller empties it (`Spool.drop`) when the round's model is safe.
        key: signs the messages that carry parcels.
        federation: `wire` and `retries`.
        deadline_s: seconds after which who has not answered is late. What is there by then still counts.
    """
    if not tasks:
        return
    started = time.monotonic()
    deadline = started + deadline_s
    outbox = Outbox(spool.parcels_of(next(iter(tasks.values())).round), federation.wire)
    errands = {
        node: _Errand(
            node=node,
            task=without_values(tasks[node]),
            labels=outbox.pack(tasks.pop(node)),
            outbox=outbox,
            spool=spool,
            key=key,
            federation=federation,
            ttl_s=2 * deadline_s + _SPARE_S,
            started=started,
        )
        for node in sorted(tasks)
    }
    outbox.let_go()
    while errands:
        yield from _send_due(post, errands, list(errands))
        heard = False
        for label, reply in post.look():
            heard = True
            errand = errands.get(label.node)
            if errand is None or errand.asked is not label:
                yield from _overdue(label, reply)
            elif (done := errand.hear(reply)) is not None:
                del errands[label.node]
                yield done
            else:
                yield from _send_due(post, errands, [label.node])
            del reply  # before the next one comes: it may be large
        if time.monotonic() >= deadline:
            break
        if not heard:
            post.rest(min([deadline, *(errand.due for errand in errands.values() if errand.asked is None)]))
    for errand in errands.values():
        yield errand.late(deadline_s)


def without_values(task: T) -> T:
    """The same task with names and shapes of its tensors and nothing in them; its digest cannot be had of it."""

    def shapes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}

    return replace(task, student=shapes(task.student), teacher=shapes(task.teacher))


def _send_due(post: Post, errands: dict[int, _Errand], nodes: Iterable[int]) -> Iterator[Exchanged]:
    """Send these nodes what is due now; yields those errands that end because nothing can be sent."""
    for node in nodes:
        errand = errands[node]
        if errand.asked is None and errand.due <= time.monotonic() and (done := errand.send(post)) is not None:
            del errands[node]
            yield done


def _overdue(label: Label, reply: Message) -> Iterator[Exchanged]:
    """A reply of an earlier exchange; that a program died since then is no news."""
    if reply.has_error():
        return
    seconds = time.monotonic() - label.sent
    yield Exchanged(
        node=label.node,
        site=label.site,
        round=label.round,
        fate=Fate.overdue,
        reason=f"its reply of round {label.round} came after {seconds:.0f} s, when that round was over; it is kept out",
        seconds=seconds,
        bytes_up=size_bytes(reply),
    )


@dataclass(slots=True, kw_only=True)
class _Errand:
    """How far the exchange with one site is."""

    node: int
    task: Task
    """Without its values."""
    labels: tuple[ParcelLabel, ...]
    """The parcels of its task."""
    outbox: Outbox
    spool: Spool
    key: Ed25519PrivateKey
    federation: FederationConfig
    ttl_s: float
    started: float
    kept: int = 0
    """Parcels that the site has; all but the last go ahead of the task."""
    arrival: Arrival | None = None
    """The site's update, once its first parcel is there."""
    asked: Label | None = None
    """Of the message that has no reply yet."""
    due: float = 0.0
    """When the next message goes out, by the monotonic clock."""
    sent_again: int = 0
    trouble: str = ""
    """Why a message has to be sent again."""
    bytes_down: int = 0
    bytes_up: int = 0

    def send(self, post: Post) -> Exchanged | None:
        """Send what comes next; the end of the errand when that cannot be done as often as it was tried."""
        message = self._next_message()
        label = Label(node=self.node, site=self.task.site, round=self.task.round, sent=time.monotonic())
        if not post.send(message, label):
            return self._again(_NOT_SENT, UNREACHABLE_PAUSE_S)
        self.asked = label
        self.bytes_down += size_bytes(message)
        return None

    def hear(self, reply: Message) -> Exchanged | None:
        """Take the reply to what was sent; the end of the errand, or None when there is more to send."""
        self.asked = None
        self.bytes_up += size_bytes(reply)
        if reply.has_error():
            pause_s = UNREACHABLE_PAUSE_S if reply.error.code == _NODE_UNAVAILABLE else 0.0
            return self._again(_DIED, pause_s)
        try:
            return self._take(decode_reply(reply), parcel_body(reply))
        except ProtocolError as error:
            return self._end(Fate.left_out, reason=one_line(str(error)))

    def late(self, deadline_s: float) -> Exchanged:
        """The end of the errand when there is no time left."""
        if self.asked is None and self.sent_again:
            return self._end(Fate.failed, reason=f"{self.trouble}, and there was no time left to ask again")
        return self._end(Fate.late, reason=f"no answer within {deadline_s:.0f} s")

    def _next_message(self) -> Message:
        run, number, site = self.task.run, self.task.round, self.task.site
        if self.arrival is not None and (wanted := self.arrival.wanted()) is not None:
            request = ParcelRequest(run=run, round=number, site=site, sha256=wanted.sha256)
            return encode_request(request.signed(sign(self.key, request.digest())), self.node, self.ttl_s)
        parcel = self.outbox.read(self.labels[self.kept])
        if self.kept < len(self.labels) - 1:
            ahead = TaskParcel(run=run, round=number, site=site, sha256=parcel.sha256)
            return encode_parcel(ahead.signed(sign(self.key, ahead.digest())), parcel, self.node, self.ttl_s)
        return encode_task(self.task, self.labels, parcel, self.node, self.ttl_s)

    def _take(self, answer: Answer, body: bytes | None) -> Exchanged | None:
        """One step of the conversation. Raises: ProtocolError when the answer is not to what was asked."""
        if isinstance(answer, Refusal):
            return self._refused(answer)
        if self.arrival is not None:
            return self._take_parcel(answer, body)
        if self.kept < len(self.labels) - 1:
            if not isinstance(answer, ParcelKept) or answer.sha256 != self.labels[self.kept].sha256:
                raise _unexpected(answer, "word that it has the parcel")
            self.kept += 1
            return None
        return self._take_answer(answer, body)

    def _take_answer(self, answer: Answer, body: bytes | None) -> Exchanged | None:
        if not isinstance(self.task, TrainTask):
            if not isinstance(answer, SiteReport):
                raise _unexpected(answer, "a report or a refusal")
            return self._end(Fate.answered, answer=answer)
        if not isinstance(answer, SiteUpdate):
            raise _unexpected(answer, "an update or a refusal")
        most_bytes = room_for({name: tensor.shape for name, tensor in self.task.student.items()})
        limit = self.federation.wire.parcel_bytes
        self.arrival = self.spool.receive(self.task.round, self.task.site, answer, most_bytes, limit)
        return self._fill(body)

    def _take_parcel(self, answer: Answer, body: bytes | None) -> Exchanged | None:
        assert self.arrival is not None
        wanted = self.arrival.wanted()
        if not isinstance(answer, AnswerParcel) or wanted is None or answer.sha256 != wanted.sha256:
            raise _unexpected(answer, "the parcel that was asked for")
        return self._fill(body)

    def _fill(self, body: bytes | None) -> Exchanged | None:
        """Put the next parcel of the update into the spool; the end of the errand when it is the last."""
        assert self.arrival is not None
        if (body is None) != (self.arrival.wanted() is None):
            raise ProtocolError("the update and its parcels do not fit together; the site runs other code")
        if body is not None:
            self.arrival.take(body)
        if self.arrival.wanted() is not None:
            return None
        spooled = self.arrival.commit()
        self.arrival = None
        return self._end(Fate.answered, answer=spooled.update, spooled=spooled)

    def _refused(self, refusal: Refusal) -> Exchanged | None:
        if refusal.code == LOST_PARCELS and self.kept and self.arrival is None:
            self.kept = 0
            return self._again(_LOST, 0.0)
        return self._end(Fate.answered, answer=refusal)

    def _again(self, reason: str, pause_s: float) -> Exchanged | None:
        """Have the message sent again, unless that was done often enough."""
        if self.sent_again == self.federation.retries:
            return self._end(Fate.failed, reason=reason)
        self.sent_again += 1
        self.trouble = reason
        self.due = time.monotonic() + pause_s
        return None

    def _end(
        self,
        fate: Fate,
        *,
        answer: Refusal | SiteReport | SiteUpdate | None = None,
        spooled: SpooledUpdate | None = None,
        reason: str = "",
    ) -> Exchanged:
        if self.arrival is not None:
            self.arrival.discard()
        return Exchanged(
            node=self.node,
            site=self.task.site,
            round=self.task.round,
            fate=fate,
            answer=answer,
            spooled=spooled,
            reason=reason,
            seconds=time.monotonic() - self.started,
            bytes_down=self.bytes_down,
            bytes_up=self.bytes_up,
            attempts=1 + self.sent_again,
        )


def _unexpected(answer: Answer, expected: str) -> ProtocolError:
    return ProtocolError(f"the site was to send {expected}, it sent {type(answer).__name__}; it runs other code")
