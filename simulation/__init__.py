"""The rehearsal: pretend hospitals, each a real folder, running the very apps that a deployment runs."""
# SPDX-License-Identifier: Apache-2.0

import os

# Before Flower and torch are imported: a rehearsal tells nobody anything, and threads that wait for each other sleep instead
# of spinning, without which a second program on the same cores slows a step fifty times over (DECISIONS.md).
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
