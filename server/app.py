"""The Flower ServerApp of the coordinator: it reads its settings and conducts the study."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.study import conduct, read_settings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that the run config describes."""
    conduct(read_settings(context), grid)
