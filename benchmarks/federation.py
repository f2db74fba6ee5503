"""What the federation engine costs and withstands: all its benchmarks in turn, and on one page what each is held to.

Run `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/federation.py [PART ...]` on a machine that does nothing else; without a
PART all are run, for the better part of an hour, half of which is `wire_learning`. Each part is a program of its own, whose first
paragraph says what is compared, and writes its own table; this one gathers the lines with a verdict into
`benchmarks/federation.md`.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PARTS = {
    "federation_mean": "The mean of a round",
    "federation_memory": "The coordinator's memory",
    "wire": "Bytes on the wire",
    "wire_learning": "What rounding costs",
    "federation_overhead": "A rehearsal's overhead and memory",
    "byzantine": "Two lying sites of eight",
}
"""Program -> what it is about."""

VERDICTS = (" yes", ": holds", "NO", "FAILS")
"""How a line of a table says whether it holds."""


def main(arguments: Sequence[str]) -> int:
    """Run the parts and gather the verdicts; returns how many parts failed."""
    if unknown := sorted(set(arguments) - PARTS.keys()):
        print(f"no part is called {unknown[0]}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    failed = [part for part in arguments or PARTS if not _run(part)]
    text = "\n".join(["# The federation engine\n", *(line for part in PARTS for line in _section(part)), _foot()])
    (FOLDER / "federation.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return len(failed)


def _run(part: str) -> bool:
    print(f"--- {part}", file=sys.stderr)
    return subprocess.run([sys.executable, FOLDER / f"{part}.py"], check=False).returncode == 0


def _section(part: str) -> list[str]:
    """The lines of a part's table that hold a verdict, under the heads of their tables."""
    table = FOLDER / f"{part}.md"
    if not table.is_file():
        return [f"## {PARTS[part]}\n", f"Not measured yet: `python benchmarks/{part}.py`.\n"]
    return [f"## {PARTS[part]} ([{part}.md]({part}.md))\n", *verdicts(table.read_text(encoding="utf-8")), ""]


def verdicts(text: str) -> list[str]:
    """Rows of Markdown tables that hold a verdict, each table with its head."""
    found: list[str] = []
    head: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            head = []
        elif len(head) < 2:
            head.append(line)
        elif any(word in line for word in VERDICTS):
            found += [
                *([""] if found and head[0] not in found else []),
                *(h for h in head if head[0] not in found),
                line,
            ]
    return found


def _foot() -> str:
    return "Made by `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/federation.py`."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
