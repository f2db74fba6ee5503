"""Health over gRPC, as any client of the standard protocol reads it, and as `panfm health` does."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import time

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from deploy.health import overall, telling
from panfm.cli.health import ask
from panfm.errors import PortInUseError


@pytest.mark.parametrize(
    ("alive", "whole"), [({}, False), ({"a": True}, True), ({"a": True, "b": False}, False), ({"a": False}, False)]
)
def test_the_whole_is_alive_when_every_part_is(alive: dict[str, bool], whole: bool) -> None:
    assert overall(alive) == {"": whole, **alive}


def test_states_are_told_at_once_and_as_they_change() -> None:
    alive = {"supernode": True, "superexec": True}
    with telling(lambda: alive, 0) as port:
        address = f"127.0.0.1:{port}"
        assert [ask(address, service) for service in ("", "supernode", "superexec")] == ["SERVING"] * 3
        assert ask(address, "superlink") == "SERVICE_UNKNOWN"
        with grpc.insecure_channel(address) as channel:
            seen = HealthStub(channel).Watch(HealthCheckRequest(service=""), timeout=60)
            assert next(seen).status == HealthCheckResponse.SERVING
            alive["supernode"] = False
            assert next(seen).status == HealthCheckResponse.NOT_SERVING
            seen.cancel()
        assert [ask(address, service) for service in ("", "supernode", "superexec")] == [
            "NOT_SERVING",
            "NOT_SERVING",
            "SERVING",
        ]


def test_taken_port_is_said() -> None:
    with telling(dict, 0) as port, pytest.raises(PortInUseError, match=f"port {port} on 127"), telling(dict, port):
        pass


def test_states_are_asked_for_again_and_again() -> None:
    asked: list[float] = []

    def alive() -> dict[str, bool]:
        asked.append(time.monotonic())
        return {"part": True}

    with telling(alive, 0):
        deadline = time.monotonic() + 60
        while len(asked) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
