"""`panfm health`, asked of a server of the standard protocol."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import yaml
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from panfm.cli.health import health
from panfm.coordinator.settings import CoordinatorSettings, write_settings
from panfm.errors import ConfigError, RunError


@pytest.fixture
def port() -> Iterator[int]:
    """A server whose parts are in all states."""
    servicer = HealthServicer()
    servicer.set("", HealthCheckResponse.SERVING)
    servicer.set("supernode", HealthCheckResponse.NOT_SERVING)
    server = grpc.server(ThreadPoolExecutor(2))
    add_HealthServicer_to_server(servicer, server)
    bound = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield bound
    server.stop(None).wait()


def test_live_runtime_is_said_to_be_one(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    health(address=f"127.0.0.1:{port}")
    assert capsys.readouterr().out == "all parts: serving\n"


@pytest.mark.parametrize(("service", "said"), [("supernode", "not_serving"), ("none", "service_unknown")])
def test_part_that_does_not_live_is_a_failure(port: int, service: str, said: str) -> None:
    with pytest.raises(RunError, match=f"{service} of the runtime at 127.0.0.1:{port} is {said}") as failed:
        health(address=f"127.0.0.1:{port}", service=service)
    assert failed.value.exit_code == 6


def test_coordinator_s_folder_says_where_to_ask(port: int, tmp_path: Path) -> None:
    write_settings(tmp_path, CoordinatorSettings(study="trial", address="localhost:8443", health_port=port))
    health(folder=tmp_path)


def test_site_s_folder_says_where_to_ask(port: int, tmp_path: Path) -> None:
    from tests.deploy.enrolled import enrol

    (site,) = enrol(tmp_path).sites
    link = site / "study" / "link.yaml"
    link.write_text(yaml.safe_dump(yaml.safe_load(link.read_text()) | {"health_port": port}))
    health(folder=site)


def test_nobody_there_is_said(port: int, tmp_path: Path) -> None:
    write_settings(tmp_path, CoordinatorSettings(study="trial", address="localhost:8443", health_port=1))
    with pytest.raises(RunError, match=r"no runtime answers at 127.0.0.1:1 \(unavailable\)"):
        health(folder=tmp_path)


def test_whom_to_ask_must_be_said_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="either --folder or --address"):
        health()
    with pytest.raises(ConfigError, match="either --folder or --address"):
        health(folder=tmp_path, address="127.0.0.1:1")
    with pytest.raises(ConfigError):
        health(folder=tmp_path)  # which is neither a site's nor a coordinator's
