"""The guard of a site: it runs a task only with code that the site approved, and answers every other with a coded refusal.

It stands in Flower's ClientApp program where this would unpack and load a bundle. Flower trusts the hash that the coordinator
announces and any folder of that name that is there already, puts the folder first on the path, and sends the text of what is
raised to the coordinator. Here the SHA-256 of the bytes themselves must be approved; they are unpacked into a new private
folder, which is never on the path: of a bundle only the package `client` can be imported, so panfm, torch and all else are the
site's own installation. Whatever is raised goes to the site's log, and a code to the coordinator.

One guard waits for all tasks, and each is answered by a copy of it that ends with the task (`deploy.waiting`).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: an installed panfm goes before the one beside this folder

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from deploy.order import Order
from deploy.pinned_flower import CLIENTAPP, pinned
from deploy.waiting import wait_for_orders
from panfm.errors import ConfigError, PanfmError, ProtocolError
from panfm.protocol import to_envelope
from panfm.site.approvals import is_approved
from panfm.site.audit_chain import JsonScalar
from panfm.site.audit_log import AuditLog
from panfm.site.bundles import SITE_PACKAGE, Bundle, read_bundle, unpack
from panfm.site.egress import Released, released_code, released_error
from panfm.site.identity import SiteIdentity, has_identity, read_public_key
from panfm.site.policy_file import read_policy

log = logging.getLogger("panfm.guard")

RUNNABLE = "flwr-clientapp"
"""The one kind of task that a site runs, in Flower's words."""
HOOKED = ("pull_task_input", "install_from_fab", "get_load_client_app_fn", "install_app_dependencies")
"""What of Flower's program is replaced."""
WARM = (
    "panfm.evaluation.embedding",
    "panfm.evaluation.site_probes",
    "panfm.pretrain.held_out",
    "panfm.pretrain.local_round",
    "panfm.pretrain.private_scope",
    "panfm.site.admission",
    "panfm.site.answers",
    "panfm.site.audit_entries",
    "panfm.site.free_memory",
    "panfm.site.ledger",
    "panfm.site.parcel_shelf",
    "panfm.site.reports_given",
    "panfm.wire.feedback",
    "panfm.wire.parcels",
)
"""What of panfm, and through it of torch and the rest, a client imports; each message would pay for what is missing here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The code that came with a task."""

    content: bytes
    announced: frozenset[str]
    """SHA-256 by the coordinator's word: of the bundle and of the run."""

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes themselves."""
        return hashlib.sha256(self.content).hexdigest()


def judge(kind: str, sent: Sent, folder: Path) -> Bundle | str:
    """The bundle if the site runs it, or the code of the refusal.

    Raises: PanfmError when the site's own policy, key or records are not as they should be.
    """
    if kind != RUNNABLE:
        return "task_kind"
    public_key = read_public_key(folder) if has_identity(folder) else ""  # with none, no approval counts
    if not is_approved(folder, sent.digest, read_policy(folder).approved_bundles, public_key):
        return "bundle_not_approved"
    if sent.announced != {sent.digest}:
        return "bundle_mislabelled"
    try:
        return read_bundle(sent.content)
    except ProtocolError as error:
        log.warning("%s", error)
        return "bundle_unreadable"


class OnlyPackage(MetaPathFinder):
    """Finds one package in one folder, before and instead of any other of that name; and nothing else there."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The package, if it is asked for. Raises: ModuleNotFoundError when the folder does not hold it."""
        if fullname != self._name:
            return None
        spec = PathFinder.find_spec(fullname, [str(self._folder)])
        if spec is None or spec.origin is None:  # a folder without __init__.py would be searched for on the path, too
            raise ModuleNotFoundError(f"the bundle has no package {fullname}", name=fullname)
        return spec


def load(bundle: Bundle, folder: Path) -> ClientApp:
    """The ClientApp of a bundle, from a new folder. Raises: ConfigError when it is none, and whatever its import raises."""
    assert not [name for name in sys.modules if name.partition(".")[0] == SITE_PACKAGE], "imported before it was judged"
    unpack(bundle, folder)
    sys.meta_path.insert(0, OnlyPackage(SITE_PACKAGE, folder))
    app = importlib.import_module(f"{SITE_PACKAGE}.app").app
    if not isinstance(app, ClientApp):
        raise ConfigError(f"{SITE_PACKAGE}.app:app of the bundle is no ClientApp; it should not have been approved")
    return app


class Guard:
    """Stands in Flower's program from the task's arrival to its answer."""

    def __init__(self, kind: str, pull: Callable[[Any], tuple[Message, Context, Any, Any]]) -> None:
        self._kind, self._pull = kind, pull
        self._sent: Sent | None = None

    def hook_into(self, program: ModuleType) -> None:
        """Replace what Flower would do with a bundle."""
        parts = (self.pull, self.install, self.loader, self.install_dependencies)
        for name, part in zip(HOOKED, parts, strict=True):
            setattr(program, name, part)

    def pull(self, client: Any) -> tuple[Message, Context, Any, Any]:
        """Flower's own, and a note of the code that came."""
        message, context, run, fab = self._pull(client)
        self._sent = Sent(content=fab.content, announced=frozenset({fab.hash_str, run.fab_hash}))
        return message, context, run, fab

    def install(self, *_: object, **__: object) -> None:
        """Nothing is unpacked before it is judged, and nothing into a place that others know."""

    def install_dependencies(self, *_: object, **__: object) -> None:
        """What a site runs with is what its engineer installed."""
        raise ConfigError("the site installs nothing at run time")

    def loader(self, *_: object, **__: object) -> Callable[[str, str, str], Callable[[Message, Context], Message]]:
        """In place of the bundle's app, Flower gets the guard."""
        return lambda *_: self.answer

    def answer(self, message: Message, context: Context) -> Message:
        """The bundle's answer, or a coded refusal in place of it and of anything that is raised on the way."""
        try:
            folder = site_folder(context)
            with _site_log(folder):
                return self._answer(message, context, folder)
        except (ConfigError, OSError) as error:  # there is no folder, or not even the site's own log can be written
            log.error("%s", error)
            return reply(released_error(error), message)

    def _answer(self, message: Message, context: Context, folder: Path) -> Message:
        try:
            assert self._sent is not None  # Flower pulls before it loads; see tests/deploy/test_pinned_flower.py
            verdict = judge(self._kind, self._sent, folder)
            about = {"bundle": self._sent.digest, "task_kind": self._kind, "flower_run": str(context.run_id)}
            if isinstance(verdict, str):
                log.warning("refused (%s): %s", verdict, about)
                record(folder, "bundle_refused", {**about, "code": verdict})
                return reply(released_code(verdict), message)
            record(folder, "bundle_started", about)
            with TemporaryDirectory(prefix="panfm-bundle-") as place:  # mode 0700, a new name each time
                return load(verdict, Path(place))(message, context)
        except Exception as error:  # the edge of the site: Flower would send its text to the coordinator
            log.exception("the task could not be answered")
            return reply(released_error(error), message)


def record(folder: Path, event: str, about: Mapping[str, JsonScalar]) -> None:
    """Write to the site's audit log. Raises: PanfmError when it cannot be written; then nothing runs and nothing is said."""
    AuditLog.open(folder, SiteIdentity.open(folder).signing_key).append(event, about)


def site_folder(context: Context) -> Path:
    """The folder that the SuperNode was started for; no message can name another. Raises: ConfigError."""
    folder = Path(str(context.node_config.get("site-folder", "")))
    if not context.node_config.get("site-folder") or not folder.is_dir():
        raise ConfigError("the node has no site folder; start the SuperNode with --node-config 'site-folder=\"/path\"'")
    return folder


def reply(released: Released, message: Message) -> Message:
    """What passed the egress gate, as a reply in panfm's protocol; a bundle's own code for it is not to be run yet."""
    envelope = to_envelope(released.answer)
    arrays = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in envelope.tensors.items()})
    header = ConfigRecord({"kind": envelope.kind, "header": envelope.header})
    return Message(RecordDict({"envelope": header, "tensors": arrays}), reply_to=message)


@contextmanager
def _site_log(folder: Path) -> Iterator[None]:
    """Let warnings and errors go to the site's own log."""
    handler = logging.FileHandler(folder / "site.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def main() -> None:
    """Answer tasks as they are ordered."""
    try:
        program = pinned(CLIENTAPP, "run_clientapp", *HOOKED)
    except PanfmError as error:
        sys.exit(f"panfm: {error}")
    wait_for_orders(WARM, lambda order: answer_task(program, order))


def answer_task(program: ModuleType, order: Order) -> None:
    """Run Flower's ClientApp program for one task, with the guard in it; it ends the process."""
    from flwr.supercore.tls import validate_and_resolve_root_certificates

    Guard(order.kind, program.pull_task_input).hook_into(program)
    program.run_clientapp(
        runtime_api_address=order.runtime_api_address,
        token=order.token,
        insecure=order.insecure,
        certificates=validate_and_resolve_root_certificates(order.root_certificates, order.insecure),
        parent_pid=order.parent_pid,
        runtime_dependency_install=False,
    )


if __name__ == "__main__":
    main()
