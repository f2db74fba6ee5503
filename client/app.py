"""The Flower ClientApp of a site. Its handlers decode, ask `participation`, pass the egress gate and encode.

Flower sends the text of an exception to the coordinator, where a path or a pseudonym in it would leak. So every handler turns
a failure into a coded refusal, and the full text goes to the site's own log: `site.log` in its folder.

What a run is submitted with (`Context.run_config`) is no part of the bundle that the site approved, and is not read at all.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.evaluation import evaluate
from client.messages import decode, decode_task, encode_reply
from client.parcels import hand_out, keep_parcel
from client.participation import join, take_part
from client.workspace import Workspace, open_audit_log, open_workspace
from panfm.errors import ProtocolError
from panfm.protocol import EvaluateTask, ParcelRequest, Refusal, Signed, SiteUpdate, Task, TaskParcel, TrainTask, expect
from panfm.site.audit_entries import SITE_ERROR, TASK_RECEIVED, about_answer, about_parcel, about_task
from panfm.site.audit_log import AuditLog
from panfm.site.egress import Released, release, released_error
from panfm.site.policy_file import policy_sha256

log = logging.getLogger("panfm.client")

app = ClientApp()


@app.query()
def answer_question(message: Message, context: Context) -> Message:
    """Say who the site is, keep a parcel of a task that is to come, or hand out another one of an answer."""
    return _answer(message, context, _questioned)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a round's task."""
    return _answer(message, context, _taken_part)


@app.evaluate()
def evaluate_model(message: Message, context: Context) -> Message:
    """Report on a model after a round."""
    return _answer(message, context, _evaluated)


def _questioned(message: Message, workspace: Workspace) -> Released:
    question = decode(message)
    if question is None:
        return _on_record(release(join(workspace), workspace.policy, None), None, workspace.audit)
    asked = question.asked
    if not isinstance(asked, TaskParcel | ParcelRequest):
        raise ProtocolError(f"expected a question, got {type(asked).__name__}; the coordinator runs other code")
    workspace.audit.append(*about_parcel(asked, workspace.policy))
    if isinstance(asked, TaskParcel):
        released = release(keep_parcel(asked, question.body, workspace), workspace.policy, asked)
    else:
        released = hand_out(asked, workspace)
    return _on_record(released, asked, workspace.audit)


def _taken_part(message: Message, workspace: Workspace) -> Released:
    task = expect(_received(message, workspace), TrainTask)
    answer = take_part(task, workspace)
    parcels = workspace.answers.parcels(answer) if isinstance(answer, SiteUpdate) else ()
    return _answered(release(answer, workspace.policy, task, parcels), task, workspace)


def _evaluated(message: Message, workspace: Workspace) -> Released:
    task = expect(_received(message, workspace), EvaluateTask)
    return _answered(release(evaluate(task, workspace), workspace.policy, task), task, workspace)


def _received(message: Message, workspace: Workspace) -> Task:
    """The task in a message, with the parcels that came before it, once it stands in the site's audit log."""
    task = decode_task(message, workspace.parcels.take)
    workspace.audit.append(TASK_RECEIVED, about_task(task, workspace.policy, policy_sha256(workspace.folder)))
    return task


def _answered(released: Released, task: Task, workspace: Workspace) -> Released:
    """An answer, on record; of a task that has one, the parcels are no longer needed."""
    if not isinstance(released.answer, Refusal):  # which a stranger gets, too
        workspace.parcels.clear(task.run, task.round)
    return _on_record(released, task, workspace.audit)


def _on_record(released: Released, task: Signed | None, audit: AuditLog) -> Released:
    """What leaves stands in the site's audit log before it leaves."""
    audit.append(*about_answer(released, task))
    return released.witnessed(str(audit.head()))


def _answer(message: Message, context: Context, make: Callable[[Message, Workspace], Released]) -> Message:
    """The answer, or a coded refusal in place of whatever went wrong."""
    with _site_log(context.node_config):
        try:
            return encode_reply(make(message, open_workspace(context.node_config)), message)
        except KeyboardInterrupt:  # a person's Ctrl-C ends the program, and its words stay here
            raise KeyboardInterrupt from None
        except SystemExit as error:  # Flower's own handler of SIGTERM
            raise SystemExit(error.code if isinstance(error.code, int) else 1) from None
        except BaseException as error:  # the edge of the site: nothing but a coded line may pass
            log.exception("the site could not answer")
            return _coded(error, message, context)


def _coded(error: BaseException, message: Message, context: Context) -> Message:
    """The coded refusal; should even that fail, an exception with nothing in it."""
    try:
        released = released_error(error)
        _record_error(released, Path(str(context.node_config.get("site-folder", ""))))
        return encode_reply(released, message)
    except Exception:
        log.exception("the site could not even say so")
        raise RuntimeError("the site could not answer; its own log says why") from None


def _record_error(released: Released, folder: Path) -> None:
    """Put a failure on record, unless the record is what fails: its code may leave all the same, for it says nothing."""
    try:
        open_audit_log(folder).append(SITE_ERROR, about_answer(released, None)[1])
    except Exception as error:
        log.warning("the audit log does not have this failure: %s", error)


@contextmanager
def _site_log(node_config: Mapping[str, object]) -> Iterator[None]:
    """Let warnings and errors within go to the site's folder too, where there is one that can be written to."""
    path = Path(str(node_config.get("site-folder", ""))) / "site.log"
    try:
        handler: logging.Handler = (
            logging.FileHandler(path) if node_config.get("site-folder") else logging.NullHandler()
        )
    except (OSError, ValueError):
        handler = logging.NullHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
