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

from client.messages import decode_task, encode_reply
from client.participation import join, take_part
from client.workspace import Workspace, open_audit_log, open_workspace
from panfm.protocol import TrainTask
from panfm.site.audit_entries import SITE_ERROR, TASK_RECEIVED, about_answer, about_task
from panfm.site.audit_log import AuditLog
from panfm.site.egress import Released, release, released_error
from panfm.site.policy_file import policy_sha256

log = logging.getLogger("panfm.client")

app = ClientApp()


@app.query()
def ask_to_join(message: Message, context: Context) -> Message:
    """Say who the site is."""
    return _answer(message, context, _joined)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a round's task."""
    return _answer(message, context, _taken_part)


def _joined(_message: Message, workspace: Workspace) -> Released:
    return _on_record(release(join(workspace), workspace.policy, None), None, workspace.audit)


def _taken_part(message: Message, workspace: Workspace) -> Released:
    task = decode_task(message)
    about = about_task(task, workspace.policy, policy_sha256(workspace.folder))
    workspace.audit.append(TASK_RECEIVED, about)
    return _on_record(release(take_part(task, workspace), workspace.policy, task), task, workspace.audit)


def _on_record(released: Released, task: TrainTask | None, audit: AuditLog) -> Released:
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
