"""The guard: what it lets run, from where, and what it says otherwise."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from deploy.pinned_flower import CLIENTAPP, pinned
from deploy.site.runtime import guard
from deploy.site.runtime.guard import HOOKED, Guard, OnlyPackage, Sent, judge
from panfm.errors import ConfigError
from panfm.protocol import Envelope, Refusal, expect, from_envelope
from panfm.site.approvals import approve
from panfm.site.audit_log import inspect_folder
from panfm.site.bundles import Bundle, read_bundle
from panfm.site.identity import SiteIdentity, read_public_key
from panfm.site.refusals import reason_of
from tests.attacks.federation import approve_by_policy, make_site, sha256
from tests.panfm.site.made_bundles import GOOD, bundled

ROOT = Path(__file__).resolve().parents[4]

APP = b"""
import sys
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.query()
def query(message, context):
    said = {"file": __file__, "path": list(sys.path), "modules": sorted(sys.modules)}
    return Message(RecordDict({"said": ConfigRecord(said)}), reply_to=message)
"""


@dataclass
class Site:
    """A site and a bundle."""

    folder: Path
    content: bytes

    def sent(self, **announced: str) -> Sent:
        return Sent(content=self.content, announced=frozenset(announced.values() or {sha256(self.content)}))

    def approve(self) -> None:
        key = SiteIdentity.open(self.folder).signing_key
        approve(self.folder, read_bundle(self.content), by="Ada", at=datetime.now(UTC), key=key)

    def log(self) -> list[dict[str, object]]:
        entries = inspect_folder(self.folder, read_public_key(self.folder)).entries
        return [{"event": entry.event, **entry.about} for entry in entries if entry.event.startswith("bundle_")]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(make_site(tmp_path / "site"), bundled({**GOOD, "client/app.py": APP}))


# ---- the verdict --------------------------------------------------------------------------------------------------------


def test_approved_bundle_passes_and_no_other_does(site: Site) -> None:
    assert judge("flwr-clientapp", site.sent(), site.folder) == "bundle_not_approved"
    site.approve()
    assert isinstance(judge("flwr-clientapp", site.sent(), site.folder), Bundle)
    other = Sent(
        content=site.content + b"\0", announced=site.sent().announced
    )  # the approved hash, announced for other bytes
    assert judge("flwr-clientapp", other, site.folder) == "bundle_not_approved"


def test_policy_approves_too(site: Site) -> None:
    approve_by_policy(site.folder, [sha256(site.content)])
    assert isinstance(judge("flwr-clientapp", site.sent(), site.folder), Bundle)


@pytest.mark.parametrize(
    "kind", ["flwr-agentapp", "flwr-serverapp", "flwr-simulation", "flwr-model", "flwr-connector", ""]
)
def test_every_other_kind_of_task_is_refused_whatever_it_carries(site: Site, kind: str) -> None:
    site.approve()
    assert judge(kind, site.sent(), site.folder) == "task_kind"


def test_kinds_of_task_are_those_of_flower() -> None:
    from flwr.supercore.constant import TaskType

    assert TaskType.CLIENT_APP.value == guard.RUNNABLE
    assert len(TaskType) == 6, "a new kind: is it refused at the site and at the coordinator?"


@pytest.mark.parametrize("wrong", [{"fab": "0" * 64}, {"fab": "0" * 64, "run": "right"}, {"fab": ""}])
def test_bundle_under_another_name_is_refused(site: Site, wrong: dict[str, str]) -> None:
    site.approve()
    announced = {name: sha256(site.content) if word == "right" else word for name, word in wrong.items()}
    assert judge("flwr-clientapp", site.sent(**announced), site.folder) == "bundle_mislabelled"


def test_bundle_that_cannot_be_read_is_refused_even_when_approved(site: Site) -> None:
    site.content = bundled({**GOOD, "client/app.pyc": b""})
    approve_by_policy(site.folder, [sha256(site.content)])
    assert judge("flwr-clientapp", site.sent(), site.folder) == "bundle_unreadable"


def test_approval_counts_for_nothing_without_the_site_s_identity(site: Site) -> None:
    site.approve()
    for path in (site.folder / "keys").iterdir():
        path.unlink()
    assert judge("flwr-clientapp", site.sent(), site.folder) == "bundle_not_approved"


# ---- the answer ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def clean_imports() -> Iterator[None]:
    """The guard runs one task in a process of its own; here the next test must find the process as it was."""
    modules, finders = dict(sys.modules), list(sys.meta_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "client"]:
        del sys.modules[name]
    yield
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.partition(".")[0] == "client"]:
        del sys.modules[name]
    sys.modules.update({name: module for name, module in modules.items() if name.partition(".")[0] == "client"})


def _ask(site: Site, kind: str = "flwr-clientapp", node_config: dict[str, Any] | None = None) -> Message:
    """What the guard makes of a question that came with the site's bundle."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    config: dict[str, Any] = {"site-folder": str(site.folder)} if node_config is None else node_config
    context = Context(run_id=7, node_id=1, node_config=config, state=RecordDict(), run_config={})
    message = Message(RecordDict({"q": ConfigRecord({"a": 1})}), 1, "query")
    message.metadata.__dict__["_message_id"] = "1"
    digest = sha256(site.content)
    came = (message, context, SimpleNamespace(fab_hash=digest), SimpleNamespace(content=site.content, hash_str=digest))
    program = SimpleNamespace(**(dict.fromkeys(HOOKED) | {"pull_task_input": lambda _: came}))
    Guard(kind, program.pull_task_input).hook_into(program)  # type: ignore[arg-type]  # stands for the module
    program.pull_task_input(None)
    program.install_from_fab(site.content, skip_prompt=True)
    answer: Message = program.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)("", "", "")(
        message, context
    )
    return answer


def _refusal(reply: Message) -> Refusal:
    record = reply.content.config_records["envelope"]
    sent = Envelope(kind=str(record["kind"]), header=str(record["header"]), tensors={})
    return expect(from_envelope(sent), Refusal)


@pytest.mark.usefixtures("clean_imports")
def test_approved_bundle_answers_from_a_new_private_folder_that_is_gone_afterwards(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    load = guard.load

    def noting(bundle: Bundle, place: Path) -> ClientApp:
        modes.append(stat.S_IMODE(place.stat().st_mode))
        return load(bundle, place)

    monkeypatch.setattr(guard, "load", noting)
    site.approve()

    said = _ask(site).content.config_records["said"]

    place = Path(str(said["file"])).parents[1]
    assert place.name.startswith("panfm-bundle-")
    assert modes == [0o700]
    assert not place.exists()
    assert str(place) not in said["path"]  # type: ignore[operator]  # a list of words
    started = {
        "event": "bundle_started",
        "bundle": sha256(site.content),
        "task_kind": "flwr-clientapp",
        "flower_run": "7",
    }
    assert site.log() == [started]


def test_refusal_is_coded_logged_and_says_nothing_of_the_site(site: Site) -> None:
    told = _refusal(_ask(site))
    assert told == Refusal(
        run="", round=0, site="", code="bundle_not_approved", reason=reason_of("bundle_not_approved")
    )
    assert [(entry["event"], entry["code"]) for entry in site.log()] == [("bundle_refused", "bundle_not_approved")]
    assert "bundle_not_approved" in (site.folder / "site.log").read_text()


@pytest.mark.usefixtures("clean_imports")
@pytest.mark.parametrize(
    "source", [b"raise ValueError('sub-4711 in /secret')", b"import client.none_such", b"app = 'no app'", b"not python"]
)
def test_what_the_bundle_raises_stays_at_the_site(site: Site, source: bytes) -> None:
    site.content = bundled({**GOOD, "client/app.py": source})
    site.approve()
    told = _refusal(_ask(site))
    assert told.code in {"site_error", "site_config"}
    assert told.reason == reason_of(told.code)
    assert "Traceback" in (site.folder / "site.log").read_text()


@pytest.mark.usefixtures("clean_imports")
def test_bundle_without_its_package_does_not_get_another_of_that_name(site: Site) -> None:
    site.content = bundled(
        {"pyproject.toml": b"", "client/app.py": APP}
    )  # no __init__.py, and the checkout has a client/
    site.approve()
    assert _refusal(_ask(site)).code == "site_error"
    assert "the bundle has no package client" in (site.folder / "site.log").read_text()


def test_site_that_cannot_keep_its_audit_log_runs_nothing(site: Site) -> None:
    site.approve()
    (site.folder / "state" / "audit.log").unlink()
    assert _refusal(_ask(site)).code == "site_audit"


def test_site_with_a_mistake_in_its_policy_runs_nothing(site: Site) -> None:
    site.approve()
    (site.folder / "policy.yaml").write_text("approved_bundels: []\n")
    assert _refusal(_ask(site)).code == "site_config"


@pytest.mark.parametrize("node_config", [{}, {"site-folder": ""}, {"site-folder": "/no/such/folder"}])
def test_node_without_a_site_folder_runs_nothing(site: Site, node_config: dict[str, Any], tmp_path: Path) -> None:
    site.approve()
    assert _refusal(_ask(site, node_config=node_config)).code in {"site_config", "site_error"}


# ---- imports ------------------------------------------------------------------------------------------------------------

_IMPORT = """
import sys
sys.path.append(sys.argv[1])
import panfm
from deploy.site.runtime.guard import load
from panfm.site.bundles import read_bundle
from pathlib import Path
place = Path(sys.argv[3]); place.mkdir()
app = load(read_bundle(Path(sys.argv[2]).read_bytes()), place)
import client, json, panfm.errors
print(client.__file__, panfm.__file__, panfm.errors.__file__, json.__file__, hasattr(panfm, "MINE"), sep="\\n")
try:
    import only_in_bundle
except ModuleNotFoundError as error:
    print(error)
"""


def test_installed_panfm_wins_and_nothing_but_client_comes_from_a_bundle(tmp_path: Path) -> None:
    """As the guard runs: isolated, the site's own installation on the path, the bundle's folder nowhere."""
    own = {"panfm/__init__.py": b"MINE = 1\n", "panfm/errors.py": b"", "json.py": b"", "only_in_bundle.py": b""}
    (tmp_path / "own.fab").write_bytes(bundled({**GOOD, **own, "client/app.py": APP}))
    place = tmp_path / "place"
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", _IMPORT, ROOT, tmp_path / "own.fab", place],
        cwd=ROOT,  # where another client/ lies
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    client, panfm, errors, json, mine, missing = done.stdout.splitlines()
    assert client == str(place / "client" / "__init__.py")
    assert (panfm, errors) == (str(ROOT / "panfm" / "__init__.py"), str(ROOT / "panfm" / "errors.py"))
    assert not json.startswith(str(tmp_path))
    assert mine == "False"
    assert missing == "No module named 'only_in_bundle'"
    assert sorted(path.name for path in place.iterdir()) == ["client"]


def test_finder_finds_one_package_only(tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "__init__.py").touch()
    (tmp_path / "panfm.py").touch()
    finder = OnlyPackage("client", tmp_path)
    assert finder.find_spec("panfm") is None
    assert finder.find_spec("client.app") is None
    found = finder.find_spec("client")
    assert found is not None
    assert found.origin == str(tmp_path / "client" / "__init__.py")


# ---- the program --------------------------------------------------------------------------------------------------------


def test_nothing_is_installed_at_run_time() -> None:
    program = SimpleNamespace(**dict.fromkeys(HOOKED))
    Guard("flwr-clientapp", lambda _: (_ for _ in ()).throw(AssertionError)).hook_into(program)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="installs nothing"):
        program.install_app_dependencies("/any", launch_id="x")


def test_program_does_not_start_with_another_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.pinned_flower.FLOWER_VERSION", "1.42.0")
    with pytest.raises(SystemExit, match="guards Flower"):
        guard.main()


def test_hooks_replace_what_flower_calls() -> None:
    """On a copy of Flower's module: every hook lands, and none of Flower's own is left behind it."""
    program = pinned(CLIENTAPP, *HOOKED)
    copy = SimpleNamespace(**{name: getattr(program, name) for name in HOOKED})
    Guard("flwr-clientapp", copy.pull_task_input).hook_into(copy)  # type: ignore[arg-type]
    assert not [name for name in HOOKED if getattr(copy, name) is getattr(program, name)]
