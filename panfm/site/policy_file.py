"""`policy.yaml` on a site's disk: a mistake in it stops the site, and is named by its line together with what to do.

The file is read from YAML's own nodes, which know their lines, and into the types of `Policy` without bending any value: a
number in quotes is no number, `yes` is no count, an unknown or repeated name is never passed over.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import difflib
import hashlib
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from panfm.durable import write_file
from panfm.errors import ConfigError
from panfm.site.policy import Policy, PolicyError

POLICY_FILE = "policy.yaml"

_FORMER = {
    "coordinator_key": "it is coordinator_keys now, a list: [..]",
    "tell_counts": "counts are told when `public` names them: public: [updates, counts, metrics]",
}
"""What names of earlier versions became."""

_WORDS: dict[Any, str] = {
    str: "a word; put quotes around it if it looks like a number",
    int: "a whole number",
    float: "a number",
}


def read_policy(folder: Path) -> Policy:
    """The policy in a site's folder.

    Raises: ConfigError, in one line, when it is missing, is not YAML, or has an unknown, missing or mistaken setting.
    """
    path = folder / POLICY_FILE
    try:
        return parse_policy(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"the site has no {POLICY_FILE}; write one with `panfm site init` before it takes part in a study"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{POLICY_FILE} cannot be read ({type(error).__name__}); it should be UTF-8 text") from error


def parse_policy(text: str) -> Policy:
    """The policy that a text says.

    Raises: ConfigError, in one line, with the number of the line at fault where there is one.
    """
    root = _root(text)
    lines: dict[str, int] = {}
    try:
        policy = _read(root, Policy, "", lines)
    except PolicyError as error:
        _stop(_line_of(error.name, lines), f"{error.name} {error.problem}", error)
    assert isinstance(policy, Policy)
    return policy


def policy_sha256(folder: Path) -> str:
    """SHA-256 of the policy's file, as `sha256sum` prints it. Raises: OSError."""
    return hashlib.sha256((folder / POLICY_FILE).read_bytes()).hexdigest()


def to_plain(policy: Policy) -> dict[str, Any]:
    """The policy in what YAML has words for, by the names of its settings."""
    plain: dict[str, Any] = _plain(asdict(policy))
    return plain


def write_policy(folder: Path, policy: Policy) -> None:
    """Write a site's policy file, every value spelt out."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(to_plain(policy), sort_keys=False, allow_unicode=True)
    write_file(folder / POLICY_FILE, text.encode())


def _root(text: str) -> MappingNode:
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
                _stop(token.start_mark.line + 1, "holds &, * or !, which a policy does without; spell the value out")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _stop(mark.line + 1 if mark else 1, f"is not YAML: {error.problem or error.context}; correct it", error)
    except (yaml.YAMLError, RecursionError) as error:
        _stop(1, f"is not YAML ({type(error).__name__}); write it as UTF-8 text", error)
    if root is None:
        _stop(1, "is empty, so nothing is allowed; fill in the template of `panfm site init`")
    if not isinstance(root, MappingNode):
        _stop(root.start_mark.line + 1, "should be settings, one `name: value` a line; see the template")
    return root


def _stop(line: int, problem: str, cause: Exception | None = None) -> NoReturn:
    raise ConfigError(f"{POLICY_FILE} line {line}: {' '.join(problem.split())}") from cause


def _line_of(name: str, lines: Mapping[str, int]) -> int:
    """The line of a setting, or of the nearest one around it that the file holds."""
    while name and name not in lines:
        name = name.rpartition(".")[0]
    return lines.get(name, 1)


def _read(node: Node, kind: Any, path: str, lines: dict[str, int]) -> Any:
    """The node's value, which must be of the declared type; notes the line of each name on the way."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):  # only `X | None` occurs
        return None if _is_null(node) else _read(node, inner[0], path, lines)
    if origin is tuple:
        if not isinstance(node, SequenceNode):
            raise PolicyError(path, "should be a list, such as [a, b] or one `- a` a line")
        return tuple(_read(item, inner[0], path, lines) for item in node.value)
    if origin is dict:
        entries = _entries(node, path, lines)
        return {name: _read(item, inner[1], _below(path, name), lines) for name, item in entries.items()}
    if is_dataclass(kind):
        return _read_settings(node, kind, path, lines)
    return _scalar(node, kind, path)


def _read_settings(node: Node, kind: Any, path: str, lines: dict[str, int]) -> Any:
    entries, types_of = _entries(node, path, lines), get_type_hints(kind)
    for name in entries:
        if name not in types_of:
            raise PolicyError(_below(path, name), f"is no setting; {_hint(name, list(types_of))}")
    for f in fields(kind):
        if f.default is MISSING and f.default_factory is MISSING and f.name not in entries:
            raise PolicyError(_below(path, f.name), "is missing, and nothing is allowed until it is said; add it")
    values = {name: _read(item, types_of[name], _below(path, name), lines) for name, item in entries.items()}
    try:
        return kind(**values)
    except PolicyError as error:  # a group of settings that stands below a name of its own knows only its own
        inside = not path or error.name.startswith(f"{path.partition('.')[0]}.")
        raise PolicyError(error.name if inside else path, error.problem) from error


def _entries(node: Node, path: str, lines: dict[str, int]) -> dict[str, Node]:
    if not isinstance(node, MappingNode):
        raise PolicyError(path, "should be settings, `name: value` or {name: value}")
    found: dict[str, Node] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, ScalarNode) else "?"
        line = key.start_mark.line + 1
        if name in found:
            _stop(
                line, f"{_below(path, name)} stands there twice, first in line {lines[_below(path, name)]}; remove one"
            )
        found[name], lines[_below(path, name)] = value, line
    return found


def _scalar(node: Node, kind: Any, path: str) -> Any:
    value = _constructed(node, path)
    if isinstance(kind, type) and issubclass(kind, Enum):
        if isinstance(value, str) and value in kind.__members__:
            return kind[value]
        raise PolicyError(path, f"should be one of {', '.join(kind.__members__)}, got {_shown(node)}")
    if kind is float:
        value = _real(value, node)
    if type(value) is not kind:
        raise PolicyError(path, f"should be {_WORDS[kind]}, got {_shown(node)}")
    return value


def _constructed(node: Node, path: str) -> Any:
    """What YAML makes of a plain value; the node itself where it is none."""
    if not isinstance(node, ScalarNode):
        return node
    try:
        return SafeConstructor().construct_object(node, deep=True)
    except (ValueError, yaml.YAMLError) as error:  # 2020-99-99 looks like a date
        raise PolicyError(path, f"cannot be read, got {_shown(node)}; correct it") from error


def _real(value: Any, node: Node) -> Any:
    """A whole number as a real one, and 1e-6, which YAML 1.1 takes for a word for want of a point."""
    is_plain_word = isinstance(value, str) and isinstance(node, ScalarNode) and node.style is None
    if not is_plain_word and type(value) is not int:
        return value
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


def _is_null(node: Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _shown(node: Node) -> str:
    return f"{node.value!r:.60}" if isinstance(node, ScalarNode) else "a list or settings"


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _hint(name: str, known: list[str]) -> str:
    if name in _FORMER:
        return _FORMER[name]
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def _plain(value: Any) -> Any:
    """What YAML has words for."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return value.name if isinstance(value, Enum) else value
