"""The policy's template: it explains every setting, can be read as it is, and opens nothing."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest

from panfm.site.policy import Bounds, Policy, PrivacyDemand, PrivacyMode, Public, TaskKind
from panfm.site.policy_file import parse_policy
from panfm.site.policy_template import EXAMPLES, closed_policy, docs_of, template

CLOSED = closed_policy("north", ("ab" * 32,), ("brain", "liver"))
NAMES = [f.name for f in fields(Policy)]


def _blocks(text: str) -> dict[str, str]:
    """Name of a setting -> its paragraph."""
    blocks = text.split("\n\n")[1:]
    return {block.splitlines()[-1].partition(":")[0]: block for block in blocks}


def test_every_setting_stands_there_once_below_its_explanation() -> None:
    blocks = _blocks(template(CLOSED))
    assert list(blocks) == NAMES
    for name, block in blocks.items():
        words = " ".join(line.lstrip("# ") for line in block.splitlines()[:-1])
        assert docs_of(Policy)[name], f"{name} has no docstring in panfm.site.policy"
        assert docs_of(Policy)[name] in words


@pytest.mark.parametrize("kind", [Policy, PrivacyDemand, Bounds])
def test_every_field_of_every_group_is_explained(kind: type[object]) -> None:
    docs = docs_of(kind)
    assert list(docs) == [f.name for f in fields(kind)]  # type: ignore[arg-type]  # dataclasses all
    assert all(docs.values())


def test_words_of_groups_and_choices_are_explained_where_they_are_used() -> None:
    blocks = _blocks(template(CLOSED))
    for name, words in (("privacy", ("mode:", "epsilon:", "delta:")), ("bounds", ("least:", "most:"))):
        assert all(f"#     {word}" in blocks[name] for word in words)
    assert all(f"#     {member.name}: " in blocks["public"] for member in Public)


def test_template_says_what_it_was_made_from() -> None:
    assert parse_policy(template(CLOSED)) == CLOSED
    other = replace(
        CLOSED,
        site="123",  # words that YAML would take for numbers, times or truth
        coordinator_keys=("1" * 64, "ab" * 32),
        tasks=tuple(TaskKind),
        public=tuple(Public),
        privacy=PrivacyDemand(mode=PrivacyMode.dp, epsilon=3.0, delta=1e-6),
        bounds={"rounds": Bounds(most=10), "pretrain.learning_rate": Bounds(least=1e-6, most=1e-3)},
        hours=("22:00-06:00", "12:00-13:30"),
    )
    assert parse_policy(template(other)) == other


def test_new_policy_opens_nothing() -> None:
    assert (CLOSED.public, CLOSED.approved_recipes, CLOSED.bounds, CLOSED.approved_bundles) == ((), (), {}, ())
    assert CLOSED.privacy == PrivacyDemand(mode=PrivacyMode.none)
    assert CLOSED.tasks == (TaskKind.pretrain,)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_can_be_taken_as_they_stand(name: str) -> None:
    example = EXAMPLES[name].replace("<64 hexadecimal digits>", "cd" * 32)
    block = _blocks(template(CLOSED))[name]
    assert EXAMPLES[name].splitlines()[0] in block
    text = template(CLOSED).replace(block.splitlines()[-1], example)
    filled = parse_policy(text)
    assert getattr(filled, name) != getattr(CLOSED, name)


def test_lines_fit_a_terminal() -> None:
    assert max(len(line) for line in template(CLOSED).splitlines()) <= 120


def test_docs_are_read_from_the_source() -> None:
    assert docs_of(_Documented) == {"first": "What it is, over two lines.", "second": "", "third": "Last."}


@dataclass
class _Documented:
    """Of the class, not of a field."""

    first: int
    """What it is,
    over two lines."""
    second: int = 2
    third: tuple[int, ...] = ()
    """Last."""

    def method(self) -> None:
        """Of no field."""
