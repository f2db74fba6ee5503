"""Attacks by code that a coordinator sends: each works on a hospital that runs plain Flower, and fails on one of ours."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json

import pytest

import panfm
from tests.attacks.federation import (
    SCAN,
    Federation,
    approve_by_policy,
    asking_bundle,
    audited,
    bundle_of,
    client_app,
    sha256,
    wait_for,
)

pytestmark = pytest.mark.slow


def test_bundle_that_reads_scans_and_sends_them_home(attacked: Federation) -> None:
    bundle = asking_bundle(client_app("(folder / 'scan.txt').read_text()"), attacked.home_file("thief"), "thief")

    plain, ours = attacked.run(bundle, "thief")

    assert SCAN in plain
    assert SCAN not in ours
    assert '"code":"bundle_not_approved"' in ours
    told = {"bundle": sha256(bundle), "code": "bundle_not_approved", "task_kind": "flwr-clientapp"}
    assert len(audited(attacked.ours.folder, "bundle_refused", **told)) == 1
    assert audited(attacked.ours.folder, "bundle_started", bundle=sha256(bundle)) == []


def test_changed_code_under_an_old_hash_in_a_poisoned_app_directory(attacked: Federation) -> None:
    """Flower takes a folder that is there for the bundle; its name holds 32 bits of the hash and nothing checks the files."""
    bundle = asking_bundle(client_app("'as reviewed'"), attacked.home_file("honest"), "honest")
    approve_by_policy(attacked.ours.folder, [sha256(bundle)])
    for home in (attacked.plain.home, attacked.ours.home):
        poisoned = home / "apps" / f"attacker.honest.1.0.0.{sha256(bundle)[:8]}"
        (poisoned / "client").mkdir(parents=True)
        (poisoned / "pyproject.toml").write_text(_project_of("honest"))
        (poisoned / "client" / "__init__.py").write_text("")
        (poisoned / "client" / "app.py").write_text(client_app("(folder / 'scan.txt').read_text()"))

    plain, ours = attacked.run(bundle, "honest")

    assert plain == f"loot={SCAN}"
    assert ours == "loot=as reviewed"
    assert len(audited(attacked.ours.folder, "bundle_started", bundle=sha256(bundle))) == 1


def _project_of(name: str) -> str:
    components = 'clientapp = "client.app:app"\nserverapp = "server.app:app"\n'
    app = f'[tool.flwr.app]\npublisher = "attacker"\n[tool.flwr.app.components]\n{components}'
    return f'[project]\nname = "{name}"\nversion = "1.0.0"\n{app}'


def test_bundle_that_carries_its_own_panfm(attacked: Federation) -> None:
    """Approved by somebody who read only client/: still the library that computes on patients is the hospital's own."""
    asks = "__import__('panfm').__file__, __import__('json').__file__, hasattr(__import__('panfm'), 'STOLEN')"
    own = {"panfm/__init__.py": "STOLEN = True\n", "json/__init__.py": "STOLEN = True\n"}
    bundle = asking_bundle(client_app(f"[{asks}]"), attacked.home_file("cuckoo"), "cuckoo", own)
    approve_by_policy(attacked.ours.folder, [sha256(bundle)])

    plain, ours = attacked.run(bundle, "cuckoo")

    assert "attacker.cuckoo.1.0.0" in plain
    assert "True]" in plain
    assert ours == f"loot={[panfm.__file__, json.__file__, False]}"


def test_exception_that_carries_a_name(attacked: Federation) -> None:
    """Here even of an approved bundle whose own catch-all is missing."""
    client = client_app("(_ for _ in ()).throw(ValueError(f'cannot read {folder}/sub-Jane-Doe.nii'))")
    bundle = asking_bundle(client, attacked.home_file("clumsy"), "clumsy")
    approve_by_policy(attacked.ours.folder, [sha256(bundle)])

    plain, ours = attacked.run(bundle, "clumsy")

    assert plain.startswith("error 2: ")
    assert "sub-Jane-Doe" in plain
    assert str(attacked.plain.folder) in plain
    assert "sub-Jane-Doe" not in ours
    assert str(attacked.ours.folder) not in ours
    assert '"code":"site_error"' in ours
    assert "sub-Jane-Doe" in (attacked.ours.folder / "site.log").read_text()


AGENT = """
import pathlib, time
from flwr.agentapp import AgentApp

app = AgentApp()
GRID = {"type": "function_call", "call_id": "1"}

@app.main()
def main(agent, context):
    folder = context.node_config.get("site-folder")
    if folder:
        (pathlib.Path(folder) / "agent_was_here").write_text((pathlib.Path(folder) / "scan.txt").read_text())
        agent.grid.call({**GRID, "name": "push_reply_message", "arguments": {"payload": "done"}})
        return
    pathlib.Path(MARK).write_text("an agent ran beside the coordinator")
    said = agent.grid.call({**GRID, "name": "get_nodes", "arguments": {}})
    import json
    nodes = [node["id"] for node in json.loads(said["output"])["nodes"]]
    orders = [{"dst_node_id": node, "payload": "go", "reply_to_message_id": None} for node in nodes]
    agent.grid.call({**GRID, "name": "push_messages", "arguments": {"messages": orders}})
    time.sleep(600)  # an agent that ends, ends its run, and what is on its way to a node is dropped
"""


def agent_bundle(mark: str) -> bytes:
    """A bundle of an AgentApp, which runs beside the coordinator and at each site that it writes to."""
    files = {"agent/__init__.py": "", "agent/app.py": AGENT.replace("MARK", repr(mark))}
    return bundle_of(files, "agent", agentapp="agent.app:app")


def test_agent_app(attacked: Federation) -> None:
    """A kind of task of its own, started by the same SuperExec: who guards the ClientApp's program only is passed by."""
    bundle = agent_bundle(str(attacked.folder / "agent_at_coordinator"))
    approve_by_policy(attacked.ours.folder, [sha256(bundle)])  # not even then

    assert attacked.coordinator.submit(bundle, prompt="hello")
    refused = {"bundle": sha256(bundle), "code": "task_kind", "task_kind": "flwr-agentapp"}
    wait_for("the agent at the plain site", (attacked.plain.folder / "agent_was_here").exists, attacked.folder)
    wait_for(
        "the refusal at ours",
        lambda: bool(audited(attacked.ours.folder, "bundle_refused", **refused)),
        attacked.folder,
    )

    assert (attacked.plain.folder / "agent_was_here").read_text() == SCAN
    assert not (attacked.ours.folder / "agent_was_here").exists()
    _still_answers(attacked)


def _still_answers(attacked: Federation) -> None:
    """A SuperNode waits for each message's answer before it takes the next: a task left lying would silence the site."""
    bundle = asking_bundle(client_app("'still here'"), attacked.home_file("after"), "after")
    approve_by_policy(attacked.ours.folder, [sha256(bundle)])
    assert attacked.run(bundle, "after") == ("loot=still here", "loot=still here")
