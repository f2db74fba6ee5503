"""The Flower ClientApp of a site. Its handlers decode, ask `participation`, and encode; whatever goes wrong stays here.

Flower sends the text of an exception to the coordinator, where a path or a pseudonym in it would leak. So every handler
turns a failure into a coded refusal, and the full text goes to the site's own log: `site.log` in its folder.
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
from client.workspace import open_workspace
from panfm.errors import CheckpointError, ConfigError, DataError, ProtocolError, RunError
from panfm.protocol import JoinAnswer, Refusal, SiteUpdate

log = logging.getLogger("panfm.client")

_SAYABLE: dict[type[Exception], tuple[str, str]] = {
    ConfigError: ("site_config", "the site's configuration needs mending; its own log says what"),
    DataError: ("site_data", "the site's prepared scans are missing or damaged; its own log says which"),
    ProtocolError: ("site_protocol", "the site could not read the message; both sides need the same panfm version"),
    CheckpointError: ("site_parameters", "the parameters sent do not fit the site's model"),
    RunError: ("site_training", "training diverged at the site; lower pretrain.learning_rate"),
    MemoryError: ("site_memory", "the site ran out of memory"),
}
"""What may be told of a failure, by its kind; the codes begin with `site_`, which no considered refusal does."""

_OTHERWISE = ("site_error", "an error at the site; its own log says which")

app = ClientApp()


@app.query()
def ask_to_join(message: Message, context: Context) -> Message:
    """Say who the site is."""
    return _answer(message, context, lambda: join(open_workspace(context.node_config)))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a round's task."""
    return _answer(message, context, lambda: take_part(decode_task(message), open_workspace(context.node_config)))


def _answer(message: Message, context: Context, make: Callable[[], JoinAnswer | SiteUpdate | Refusal]) -> Message:
    """The answer, or a coded refusal in place of any exception."""
    try:
        return encode_reply(make(), message)
    except Exception as error:  # the edge of the site: nothing but a coded line may pass
        with _site_log(context.node_config):
            log.exception("the site could not answer")
        code, reason = next((said for kind, said in _SAYABLE.items() if isinstance(error, kind)), _OTHERWISE)
        return encode_reply(Refusal(run="", round=0, site="", code=code, reason=reason), message)


@contextmanager
def _site_log(node_config: Mapping[str, object]) -> Iterator[None]:
    """Let what is logged within go to the site's folder too, where there is one that can be written to."""
    path = Path(str(node_config.get("site-folder", ""))) / "site.log"
    try:
        handler: logging.Handler = (
            logging.FileHandler(path) if node_config.get("site-folder") else logging.NullHandler()
        )
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
