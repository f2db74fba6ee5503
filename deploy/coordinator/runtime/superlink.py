"""The coordinator's SuperLink: Flower's own, with the same options, which ends with who keeps it running."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: an installed panfm goes before the one beside this folder

from deploy.supervised import end_with_supervisor


def main() -> None:
    """Run Flower's SuperLink."""
    from flwr.superlink.cli import flower_superlink

    end_with_supervisor()
    flower_superlink()


if __name__ == "__main__":
    main()
