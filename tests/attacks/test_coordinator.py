"""Attacks on the coordinator's machine by whoever can reach its port: they work on plain Flower, and fail with our runtime.

The port itself is kept from the world by what deployment puts before it; these tests are of what stands behind.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import httpx
import pytest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from tests.attacks.federation import (
    COORDINATOR_SUPEREXEC,
    Coordinator,
    Federation,
    bundle_of,
    coordinator,
    wait_for,
)
from tests.attacks.test_foreign_code import agent_bundle

pytestmark = pytest.mark.slow

MARKING_SERVER = """
import pathlib
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    pathlib.Path(MARK).write_text("the server app ran")
"""


def server_bundle(mark: str) -> bytes:
    """A bundle whose ServerApp leaves a mark."""
    files = {"server/__init__.py": "", "server/app.py": MARKING_SERVER.replace("MARK", repr(mark))}
    files |= {"client/__init__.py": "", "client/app.py": "app = None\n"}
    return bundle_of(files, "marker", serverapp="server.app:app", clientapp="client.app:app")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """A coordinator with our runtime and a secret."""
    home = tmp_path_factory.mktemp("guarded") / "link"
    with coordinator(home, superexec=COORDINATOR_SUPEREXEC, with_secret=True) as started:
        yield started


def _stranger(at: Coordinator, token: str = "") -> RuntimeHttpClient:
    """A client as Flower's own programs have it, without any secret."""
    name = "flwr-serverapp" if token else "SuperExec"
    interceptors: list[ProtobufClientInterceptor] = [RuntimeVersionHttpInterceptor(component_name=name)]
    interceptors += [RuntimeTokenHttpInterceptor(token=token)] if token else []
    return RuntimeHttpClient.from_server_address(
        server_address=f"127.0.0.1:{at.port}", insecure=True, root_certificates=None, interceptors=interceptors
    )


def _steal(at: Coordinator) -> bytes:
    """The code of a run whose server task was taken before the coordinator's own program came for it; empty if none was."""
    wanted = AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
    thief = _stranger(at)
    with contextlib.closing(thief):
        for _ in range(200):
            taken = thief.AcquireTask(wanted)
            if taken.token:
                owner = _stranger(at, taken.token)
                with contextlib.closing(owner):
                    return bytes(owner.PullTaskInput(PullTaskInputRequest()).fab.content)
            time.sleep(0.002)
    return b""


def test_stolen_server_task(attacked: Federation, guarded: Coordinator) -> None:
    """With its token a thief has the run's code and nodes, and speaks to every site in the coordinator's place."""
    bundle = server_bundle(str(attacked.folder / "unused"))
    stolen = b""
    for _ in range(20):  # a race against the SuperExec, which asks ten times a second
        assert attacked.coordinator.submit(bundle)
        if stolen := _steal(attacked.coordinator):
            break
    assert stolen == bundle

    mark = guarded.home / "server_app_ran"
    bundle = server_bundle(str(mark))
    assert guarded.submit(bundle)
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        _steal(guarded)
    wait_for("the guarded coordinator's own server app", mark.exists, guarded.home)


def test_agent_app_beside_the_coordinator(attacked: Federation, guarded: Coordinator) -> None:
    marks = [attacked.folder / "agent_beside_plain", guarded.home / "agent_beside_ours"]
    assert attacked.coordinator.submit(agent_bundle(str(marks[0])), prompt="hello")
    assert guarded.submit(agent_bundle(str(marks[1])), prompt="hello")
    wait_for("the agent beside the plain coordinator", marks[0].exists, attacked.folder)
    log = guarded.home / "superexec.log"
    wait_for("the refusal", lambda: "server apps and no flwr-agentapp" in log.read_text(), guarded.home)
    assert not marks[1].exists()
