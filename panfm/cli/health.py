"""`panfm health`: asks a runtime on this machine, over the standard gRPC health protocol, whether its loops go round."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from panfm.errors import ConfigError, RunError

TIMEOUT_S = 10.0


def health(
    folder: Annotated[
        Path | None, typer.Option(help="A site's or a coordinator's folder; its runtime is asked.")
    ] = None,
    address: Annotated[str, typer.Option(help="Host and port to ask, in place of a folder.")] = "",
    service: Annotated[str, typer.Option(help="One part, such as supernode or superlink; all of them without.")] = "",
) -> None:
    """Say whether a runtime lives; ends with code 6 when it does not."""
    if (folder is None) == (not address):
        raise ConfigError("expected either --folder or --address; say whose health is asked for")
    asked = address or f"127.0.0.1:{_health_port(folder or Path())}"
    status = ask(asked, service)
    print(f"{service or 'all parts'}: {status.lower()}")
    if status != "SERVING":
        raise RunError(f"{service or 'a part'} of the runtime at {asked} is {status.lower()}; see the runtime's log")


def ask(address: str, service: str) -> str:
    """The protocol's word for the state of a service: SERVING, NOT_SERVING, UNKNOWN or SERVICE_UNKNOWN.

    Raises: RunError when nobody answers; ConfigError where grpcio is not installed.
    """
    try:
        import grpc
        from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
        from grpc_health.v1.health_pb2_grpc import HealthStub
    except ImportError as error:
        raise ConfigError("health is asked for over gRPC, which is not installed; install panfm[federation]") from error
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return "SERVICE_UNKNOWN"
            raise RunError(f"no runtime answers at {address} ({error.code().name.lower()}); is it started?") from error
    return str(HealthCheckResponse.ServingStatus.Name(answer.status))


def _health_port(folder: Path) -> int:
    from panfm.coordinator.settings import has_settings, read_settings
    from panfm.site.joining import read_link

    return read_settings(folder).health_port if has_settings(folder) else read_link(folder).health_port
