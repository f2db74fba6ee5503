"""A ServerApp's order, as Flower's own program for it reads it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib
import sys

import pytest

from deploy.coordinator.runtime import server_app
from deploy.order import Order


def _order(*, insecure: bool) -> Order:
    return Order(
        kind="flwr-serverapp",
        token="5ec2e7",
        runtime_api_address="127.0.0.1:9091",
        insecure=insecure,
        root_certificates=None if insecure else "/etc/ca.pem",
        parent_pid=4711,
    )


@pytest.mark.parametrize("insecure", [True, False])
def test_flower_s_program_understands_an_order(insecure: bool) -> None:
    program = importlib.import_module("flwr.superlink.cli.flwr_serverapp")
    said = program._parse_args_run_flwr_serverapp().parse_args(server_app.options(_order(insecure=insecure)))
    assert (said.runtime_api_address, said.token, said.parent_pid) == ("127.0.0.1:9091", "5ec2e7", 4711)
    assert (said.insecure, said.root_certificates) == (insecure, None if insecure else "/etc/ca.pem")
    assert said.runtime_dependency_install is False


def test_order_becomes_the_words_of_flower_s_program(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    program = importlib.import_module("flwr.superlink.cli.flwr_serverapp")
    monkeypatch.setattr(program, "flwr_serverapp", lambda: seen.append(sys.argv))
    monkeypatch.setattr(sys, "argv", [])
    server_app.begin(_order(insecure=False))
    assert seen == [["flwr-serverapp", *server_app.options(_order(insecure=False))]]
