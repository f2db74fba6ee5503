"""The runtime's state over the standard gRPC health protocol, for container engines and whoever watches a machine.

A service for each part, and one without a name for all of them. The states are asked for every second by a thread of its own, so
that a runtime whose own loop stopped says so, too.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from panfm.errors import PortInUseError

EVERY_S = 1.0
WATCHERS = 8
"""Each `Watch` holds one thread for as long as it lasts."""


def overall(alive: Mapping[str, bool]) -> dict[str, bool]:
    """The parts' states with that of the whole, whose name is empty: alive when every part is."""
    return {"": bool(alive) and all(alive.values()), **alive}


@contextmanager
def telling(alive: Callable[[], Mapping[str, bool]], port: int) -> Iterator[int]:
    """Serve the state on 127.0.0.1 while the block runs.

    Args:
        alive: each part's state, asked for every second.
        port: 0 for a free one.
    Yields: the port.
    Raises: PortInUseError when it is taken.
    """
    servicer = HealthServicer()
    server = grpc.server(ThreadPoolExecutor(WATCHERS), options=[("grpc.so_reuseport", 0)])
    add_HealthServicer_to_server(servicer, server)
    bound = _bind(server, port)
    _publish(servicer, alive())
    ending = threading.Event()
    publisher = threading.Thread(target=_publish_until, args=(servicer, alive, ending), name="health", daemon=True)
    publisher.start()
    server.start()
    try:
        yield bound
    finally:
        ending.set()
        server.stop(grace=None).wait()


def _bind(server: grpc.Server, port: int) -> int:
    try:
        return int(server.add_insecure_port(f"127.0.0.1:{port}"))
    except RuntimeError as error:
        raise PortInUseError(
            f"port {port} on 127.0.0.1, for health, is in use; is the same runtime running already? "
            "Stop the program that has it, or give another port"
        ) from error


def _publish_until(servicer: HealthServicer, alive: Callable[[], Mapping[str, bool]], ending: threading.Event) -> None:
    while not ending.wait(EVERY_S):
        _publish(servicer, alive())


def _publish(servicer: HealthServicer, alive: Mapping[str, bool]) -> None:
    for service, is_alive in overall(alive).items():
        servicer.set(service, HealthCheckResponse.SERVING if is_alive else HealthCheckResponse.NOT_SERVING)
