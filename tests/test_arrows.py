"""The plan of the house, drawn from its imports: who may know whom, and that nothing runs back up.

A new arrow is a decision: add it to the tables below together with the reason in DECISIONS.md. Imports inside functions
and under TYPE_CHECKING count like any other, because they too make one file unreadable without the other.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS: dict[str, set[str]] = {
    "panfm": set(),
    "client": {"panfm"},
    "server": {"panfm"},
    "simulation": {"client", "server", "panfm"},
    "benchmarks": {"simulation", "client", "server", "panfm"},
    "deploy": {"panfm"},
}
"""Each top-level package and the others that it may import; benchmarks/ and deploy/ are imported by nobody."""

KEPT_OUT: dict[str, set[str]] = {
    "panfm": {"flwr"},
    "server.aggregation": {"flwr"},
    "panfm.reporting": {"torch"},
}
"""Libraries that a part does without: the library and the coordinator's arithmetic can be read and tested where Flower is
not installed, and a report is made from records on a machine that never trains."""

GROUND = {
    "errors",
    "randomness",
    "organs",
    "groups",
    "update",
    "signing",
    "durable",
    "lock",
    "config",
    "recipes",
    "protocol",
    "wire",
}
"""What any room of panfm may stand on; what these know of each other is listed first below."""

ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "randomness": {"errors"},
    "organs": {"errors", "groups"},
    "groups": {"errors"},
    "update": {"errors"},
    "signing": {"errors"},
    "durable": {"errors"},
    "lock": {"errors"},
    "config": {"errors", "organs"},
    "conf": set(),
    "recipes": {"errors", "organs", "config", "conf"},
    "protocol": {"errors", "organs", "groups", "update"},
    "wire": {"errors", "config", "protocol"},
    "data": GROUND,
    "models": GROUND,
    "privacy": GROUND,
    "reporting": GROUND,
    "pretrain": GROUND | {"data", "models", "privacy"},
    "evaluation": GROUND | {"data", "models", "pretrain"},
    "export": GROUND | {"data", "models", "evaluation", "reporting"},
    "enrolment": GROUND,
    "site": GROUND | {"enrolment", "data", "privacy", "models", "pretrain", "reporting", "export"},
    "coordinator": GROUND | {"enrolment", "reporting", "site"},
    "cli": GROUND
    | {
        "data",
        "models",
        "pretrain",
        "privacy",
        "enrolment",
        "site",
        "coordinator",
        "evaluation",
        "reporting",
        "export",
    },
}
"""Each file or folder of panfm and the others that it may import. Data and models do not know each other: training
brings them together. Reporting knows records only."""

NAMELESS = re.compile(r"(utils?|helpers?|misc|common)")


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(root: Path, *packages: str) -> dict[str, Path]:
    """Every Python module below the named top-level packages, by dotted name."""
    files = (path for package in packages for path in sorted((root / package).rglob("*.py")))
    return {module_name(path, root): path for path in files}


def _dynamic_import(node: ast.AST) -> Iterator[str]:
    """The module in `import_module("name")` or `__import__("name")`."""
    match node:
        case ast.Call(
            func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            yield name


def imports_of(source: str, package: str, modules: Collection[str] = ()) -> set[str]:
    """Dotted names that a source mentions in its imports; `from a import b` gives `a` and `a.b`, or `a.b` alone where that
    is one of the modules: then nothing of `a` itself is asked for."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found.update(names if names <= set(modules) else {base, *names})
        else:
            found.update(_dynamic_import(node))
    return found


def draw(root: Path, *packages: str) -> dict[str, set[str]]:
    """Each module of the packages and the dotted names that it imports."""
    modules = modules_of(root, *packages)
    return {
        name: imports_of(
            path.read_text(encoding="utf-8"), name if path.stem == "__init__" else name.rpartition(".")[0], modules
        )
        for name, path in modules.items()
    }


def top(name: str) -> str:
    return name.partition(".")[0]


def room(name: str) -> str:
    """The file or folder of panfm in which a module lies; `panfm` itself has none."""
    return name.split(".")[1] if name.startswith("panfm.") else ""


def forbidden_floors(plan: dict[str, set[str]]) -> list[str]:
    """Arrows between top-level packages that the table does not allow."""
    return sorted(
        f"{module} -> {target}"
        for module, targets in plan.items()
        for target in targets
        if top(target) in {*FLOORS, "tests"} and top(target) not in {top(module), *FLOORS[top(module)]}
    )


def forbidden_rooms(plan: dict[str, set[str]]) -> list[str]:
    """Arrows between the rooms of panfm that the table does not allow."""
    return sorted(
        f"{module} -> {target}"
        for module, targets in plan.items()
        for target in targets
        if room(target) in ROOMS and room(module) and room(target) not in {room(module), *ROOMS[room(module)]}
    )


def forbidden_libraries(plan: dict[str, set[str]]) -> list[str]:
    """Imports of a library by a part that does without it."""
    return sorted(
        f"{module} -> {target}"
        for part, libraries in KEPT_OUT.items()
        for module, targets in plan.items()
        if f"{module}.".startswith(f"{part}.")
        for target in targets
        if top(target) in libraries
    )


def first_cycle(plan: dict[str, set[str]]) -> list[str]:
    """One ring of modules that import each other, or nothing."""
    try:
        TopologicalSorter({name: (targets & plan.keys()) - {name} for name, targets in plan.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def house() -> dict[str, set[str]]:
    return draw(ROOT, *FLOORS)


def test_arrows_between_floors_point_down(house: dict[str, set[str]]) -> None:
    assert forbidden_floors(house) == []


def test_each_part_does_without_the_libraries_kept_out(house: dict[str, set[str]]) -> None:
    assert forbidden_libraries(house) == []


def test_arrows_between_rooms_are_in_the_table(house: dict[str, set[str]]) -> None:
    unknown = {room(module) for module in house if room(module)} - ROOMS.keys()
    assert unknown == set(), "a new room: write its arrows into ROOMS"
    assert forbidden_rooms(house) == []


def test_no_two_modules_need_each_other(house: dict[str, set[str]]) -> None:
    assert first_cycle(house) == [], "a third concept is missing: name it"


def test_tables_agree_with_themselves() -> None:
    assert first_cycle(FLOORS) == []
    assert first_cycle(ROOMS) == []
    assert ROOMS.keys() >= GROUND


def test_every_file_has_a_name_of_its_own() -> None:
    files = [path.relative_to(ROOT) for package in (*FLOORS, "tests") for path in (ROOT / package).rglob("*.py")]
    assert [str(path) for path in files if any(NAMELESS.fullmatch(part) for part in path.with_suffix("").parts)] == []


# What the drawing sees, on made sources: a check that cannot fail protects nothing.


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import flwr.app as fl", {"flwr.app"}),
        ("from panfm import errors, organs", {"panfm", "panfm.errors", "panfm.organs"}),
        ("from . import store", {"panfm.data", "panfm.data.store"}),
        ("from ..models.build import build", {"panfm.models.build", "panfm.models.build.build"}),
        ("def late():\n    import server", {"server"}),
        ("if TYPE_CHECKING:\n    from client.app import app", {"client.app", "client.app.app"}),
        ("import importlib\nimportlib.import_module('client.app')", {"importlib", "client.app"}),
    ],
)
def test_imports_are_found_wherever_they_hide(source: str, found: set[str]) -> None:
    assert imports_of(source, package="panfm.data") == found


def test_each_kind_of_forbidden_arrow_is_seen(tmp_path: Path) -> None:
    sources = {
        "panfm/data/__init__.py": "",
        "panfm/data/store.py": "from panfm.models.build import build\nimport flwr",
        "panfm/models/build.py": "from panfm.data import store",
        "panfm/reporting/page.py": "import torch",
        "client/app.py": "import server.app\nimport flwr",
        "server/app.py": "import simulation",
    }
    for name, source in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")

    plan = draw(tmp_path, "panfm", "client", "server")

    assert forbidden_floors(plan) == ["client.app -> server.app", "server.app -> simulation"]
    assert forbidden_libraries(plan) == ["panfm.data.store -> flwr", "panfm.reporting.page -> torch"]
    assert "panfm.data.store -> panfm.models.build" in forbidden_rooms(plan)
    assert {*first_cycle(plan)} == {"panfm.data.store", "panfm.models.build"}


# What the drawing cannot see: whether Python agrees.

_IMPORT_WITHOUT_FLOWER = """
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"flwr", "client", "server", "simulation"}:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
sys.meta_path.insert(0, Absent())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_whole_library_imports_where_flower_is_not_installed() -> None:
    blocked = _python(_IMPORT_WITHOUT_FLOWER, "flwr")
    assert "flwr is not installed here" in blocked.stderr, "the block itself must work"

    done = _python(_IMPORT_WITHOUT_FLOWER, *modules_of(ROOT, "panfm"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["panfm", "panfm.cli.main"])
def test_first_import_is_light(name: str) -> None:
    heavy = "{'torch', 'numpy', 'hydra', 'matplotlib', 'sklearn', 'pandas', 'flwr'}"
    done = _python(f"import sys, {name}; print(sorted({heavy} & sys.modules.keys()))")
    assert done.stdout == "[]\n", done.stderr
