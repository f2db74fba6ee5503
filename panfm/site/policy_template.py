"""A policy as a person should meet it: every setting with what it means above it, so that the file explains itself.

The words are those that stand below each field of `panfm.site.policy`, read from its source; so a setting cannot be without
an explanation, and there is no second text to keep true.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, get_args, get_type_hints

import yaml

from panfm.site.policy import Policy, PrivacyDemand, PrivacyMode, TaskKind
from panfm.site.policy_file import to_plain

_WIDTH = 110

_HEAD = """\
The policy of this site: what it takes part in, and what of it may leave. Nobody but the site sets it; a mistake in it stops
the site and is named by its line. As made by `panfm site init` it opens nothing: no task is answered before `bounds` or
`approved_recipes`, and `public` or a privacy mode, have been filled in by whoever answers for the site's data."""

EXAMPLES: dict[str, str] = {
    "public": "public: [updates, counts, metrics]",
    "approved_recipes": 'approved_recipes: ["<64 hexadecimal digits>"]',
    "bounds": "bounds:\n  rounds: {most: 100}\n  pretrain.learning_rate: {most: 0.001}\n  federation.min_sites: {least: 3}",
    "hours": 'hours: ["18:00-06:00"]',
    "privacy": "privacy: {mode: dp, epsilon: 3.0, delta: 1.0e-6}",
}
"""How a setting looks once it is filled in, for those whose default does not show it."""


def closed_policy(site: str, coordinator_keys: tuple[str, ...], organs: tuple[str, ...]) -> Policy:
    """The policy of a new site: it says who it is and whom it knows, and lets nothing in or out yet.

    Raises: ConfigError when a name or a key is none.
    """
    return Policy(
        site=site,
        coordinator_keys=coordinator_keys,
        organs=organs,
        tasks=(TaskKind.pretrain,),
        privacy=PrivacyDemand(mode=PrivacyMode.none),
    )


def template(policy: Policy) -> str:
    """The policy's file, with every setting explained."""
    plain, types_of = to_plain(policy), get_type_hints(Policy)
    parts = [_comment(_HEAD)]
    for name, doc in docs_of(Policy).items():
        inner = [line for kind in _inner(types_of[name]) for line in _explained(kind)]
        example = textwrap.indent(EXAMPLES[name], "#   ") if name in EXAMPLES else ""
        parts.append("\n".join(part for part in (_comment(doc), *inner, example, _setting(name, plain[name])) if part))
    return "\n\n".join(parts) + "\n"


def docs_of(kind: type[Any]) -> dict[str, str]:
    """What stands below each field of a dataclass, or each member of an enum, in its source; "" where nothing does."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for node, below in zip(definition.body, [*definition.body[1:], None], strict=True):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                docs[name] = _text(below)
    return docs


def _setting(name: str, value: Any) -> str:
    is_plain_word = not isinstance(value, list | dict)
    style = False if is_plain_word else None  # lists and groups in [] and {}, on the setting's own line
    return yaml.safe_dump(
        {name: value}, default_flow_style=style, allow_unicode=True, sort_keys=False, width=10**6
    ).rstrip()


def _text(node: ast.stmt | None) -> str:
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return " ".join(text.split())
    return ""


def _explained(kind: type[Any]) -> Iterator[str]:
    """The settings of a group, or the words of an enum, one a line."""
    for name, doc in docs_of(kind).items():
        if doc:
            yield _comment(f"{name}: {doc}", indent="    ")


def _inner(kind: Any) -> Iterator[type[Any]]:
    """The groups of settings and the enums in a declared type."""
    if isinstance(kind, type):
        if issubclass(kind, Enum) or is_dataclass(kind):
            yield kind
        if is_dataclass(kind):
            hints = get_type_hints(kind)
            yield from (found for f in fields(kind) for found in _inner(hints[f.name]))
        return
    for argument in get_args(kind):
        yield from _inner(argument)


def _comment(text: str, indent: str = "") -> str:
    lines = textwrap.wrap(" ".join(text.split()), width=_WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"# {indent}{line}" for line in lines)
