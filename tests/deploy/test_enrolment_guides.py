"""The pages of the six commands: every command and option that they name exists, and every page is in the index."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import typer.main

from panfm.cli.main import app

GUIDES = Path(__file__).resolve().parents[2] / "deploy" / "guides"
PAGES = sorted(GUIDES.glob("[1-6]_*.md"))
_CALL = re.compile(r"panfm ((?:coordinator|site) [a-z]+)([^`\n]*)")
_OPTION = re.compile(r"--[a-z][a-z-]+")
_FOREIGN = {"--file", "--detach", "--profile", "--signal"}
"""Options of docker compose."""


def _verbs() -> dict[str, click.Command]:
    """`site init` and its like -> the command."""
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group)
    groups = {name: root.commands[name] for name in ("coordinator", "site")}
    return {
        f"{name} {verb}": command
        for name, group in groups.items()
        if isinstance(group, click.Group)
        for verb, command in group.commands.items()
    }


def _options(command: click.Command) -> set[str]:
    return {word for parameter in command.params for word in parameter.opts}


def test_there_is_a_page_for_each_of_the_six() -> None:
    named = [re.sub(r"^\d_", "", page.stem).replace("_", " ") for page in PAGES]
    six = ["coordinator init", "site init", "coordinator admit", "site join", "site preflight", "coordinator status"]
    assert named == six
    assert set(six) <= _verbs().keys()


@pytest.mark.parametrize("page", [GUIDES / "README.md", *PAGES], ids=lambda page: page.stem)
def test_every_command_and_option_that_is_named_exists(page: Path) -> None:
    verbs, text = _verbs(), page.read_text()
    for verb, words in _CALL.findall(text):
        assert verb in verbs, verb
        for option in _OPTION.findall(words):
            assert option in _options(verbs[verb]), f"{verb} {option}"
    known = set().union(*map(_options, verbs.values())) | _FOREIGN
    assert set(_OPTION.findall(text)) <= known


@pytest.mark.parametrize("page", [GUIDES / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (GUIDES / target).is_file(), target


def test_index_names_every_page() -> None:
    index = (GUIDES / "README.md").read_text()
    assert [
        page.name for page in GUIDES.glob("*.md") if page.name not in ("README.md",) and page.name not in index
    ] == []
