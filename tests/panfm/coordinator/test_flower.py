"""Asking Flower's command line: what is understood of its answers, and one clear line for each way in which it fails."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.coordinator.flower import FlowerCommand, Node
from panfm.errors import RunError
from tests.panfm.coordinator.pretend_flower import PretendFlower


@pytest.fixture
def flower(tmp_path: Path) -> PretendFlower:
    return PretendFlower.at(tmp_path / "flower")


def test_answer_is_found_behind_the_prose(flower: PretendFlower) -> None:
    flower.answers("list", {"runs": [{"run-id": "1", "status": "running"}]})
    assert flower.run_status("1") == "running"
    assert flower.run_status("2") == ""
    assert flower.asked() == ["list panfm --format json"] * 2


def test_program_is_not_told_of_the_persons_own_flower(flower: PretendFlower) -> None:
    told = flower.environment()
    assert (told["FLWR_HOME"], told["FLWR_TELEMETRY_ENABLED"]) == (str(flower.home), "0")


def test_nodes_keep_all_digits_of_their_numbers(flower: PretendFlower) -> None:
    number = 2**63 + 12345678901
    listed = {"node-id": str(number), "status": "online", "online-at": "now", "offline-at": "N/A", "owner-name": "x"}
    flower.answers("supernode", {"success": True, "nodes": [listed]})
    assert flower.nodes() == [Node(node_id=number, status="online", online_at="now", offline_at="N/A")]


def test_register_and_unregister(flower: PretendFlower, tmp_path: Path) -> None:
    flower.answers("supernode", {"success": True, "node-id": 42})
    assert flower.register(tmp_path / "node.pub", "neuro") == 42
    flower.unregister(42)
    assert flower.asked() == [
        f"supernode register {tmp_path}/node.pub --name neuro panfm --format json",
        "supernode unregister 42 panfm --format json",
    ]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f\r")))
def test_composed_run_arrives_as_it_was(text: str) -> None:
    """The settings are TOML written by JSON's rules; Flower reads them with a TOML parser, like the oracle here."""
    written = f"composed = {json.dumps(text, ensure_ascii=False)}\n"
    assert tomllib.loads(written) == {"composed": text}


def test_submitting_hands_over_the_tree_and_the_run(flower: PretendFlower, tmp_path: Path) -> None:
    flower.answers("run", {"success": True, "run-id": "12"})
    composed = 'name: "größe"\nlist: [1, 2]\n'
    assert flower.submit(tmp_path, composed) == "12"
    assert tomllib.loads((flower.home / "run_config.toml").read_text()) == {"composed": composed}
    assert flower.asked()[0].startswith(f"run {tmp_path} --run-config ")
    assert [path.name for path in flower.home.iterdir() if path.is_dir()] == [], "nothing of it is left behind"


def test_program_that_answers_nothing_is_one_clear_line(flower: PretendFlower) -> None:
    with pytest.raises(RunError, match=r"`flwr list` did not answer: no such command; see the logs in .*/flower"):
        flower.run_status("1")


def test_refusal_is_one_clear_line(flower: PretendFlower, tmp_path: Path) -> None:
    flower.answers("run", {"success": False, "error-message": "the bundle\nis too large."})
    with pytest.raises(RunError, match="Flower refused `flwr run`: the bundle is too large; see the logs"):
        flower.submit(tmp_path, "")


def test_program_that_never_answers_is_one_clear_line(tmp_path: Path) -> None:
    program = tmp_path / "flwr"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    with pytest.raises(RunError, match="`flwr list` did not answer within 0 s"):
        FlowerCommand(home=tmp_path, program=program).ask("list", timeout_s=0.2)


def test_missing_program_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot be started .*; install panfm\[federation\]"):
        FlowerCommand(home=tmp_path, program=tmp_path / "none").nodes()
