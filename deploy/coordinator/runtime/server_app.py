"""Runs the ServerApps of runs, each in a process of its own: Flower's program for it, with all imported that ours needs.

What it runs is what the coordinator itself submitted (`panfm coordinator run`): unlike a site's guard it judges no bundle.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: an installed panfm goes before the one beside this folder

from deploy.order import Order
from deploy.waiting import wait_for_orders

WARM = (
    "flwr.superlink.cli.flwr_serverapp",
    "panfm.coordinator.stop_wish",
    "panfm.export.model_folder",
    "panfm.lock",
    "panfm.models.build",
    "panfm.pretrain.collapse",
    "panfm.pretrain.private_scope",
    "panfm.pretrain.schedules",
    "panfm.reporting.followers",
    "panfm.signing",
    "panfm.wire.encoding",
    "panfm.wire.parcels",
)
"""What a server app imports of panfm, and through it of torch and the rest."""


def options(order: Order) -> list[str]:
    """An order as Flower's program takes it; these are words within this process, which no other reads."""
    words = ["--runtime-api-address", order.runtime_api_address, "--token", order.token]
    if order.insecure:
        words.append("--insecure")
    elif order.root_certificates is not None:
        words += ["--root-certificates", order.root_certificates]
    if order.parent_pid is not None:
        words += ["--parent-pid", str(order.parent_pid)]
    return words


def begin(order: Order) -> None:
    """Run Flower's program for one server app; it ends the process."""
    from flwr.superlink.cli.flwr_serverapp import flwr_serverapp

    sys.argv = ["flwr-serverapp", *options(order)]
    flwr_serverapp()


if __name__ == "__main__":
    wait_for_orders(WARM, begin)
