"""A room imports only from floors below it, and no modules import each other in a circle.

Imports are read from the syntax trees; those under `if TYPE_CHECKING:` do not count, because they never run.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([ROOT / "cli" / "src", *(ROOT / "packages").glob("*/src")])
COMMON = "bevkd_common"

FLOORS = (
    ("errors", "files", "progress"),
    ("geometry",),
    ("config",),
    ("data",),
    ("ops",),
    ("models",),
    ("distill",),
    ("evaluation",),
    ("engine",),
    ("report",),
    ("experiment",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

UPWARD = {
    ("bevkd_common.data.samples", "bevkd_common.ops.voxelize"): "`Cloud.voxels` caches with the points what the"
    " detectors of a batch share; the import is in the method and runs at its first call",
    ("bevkd_common.data.virtual_points.choice", "bevkd_common.models.mask_rcnn"): "instance masks of a network are"
    " asked for by a flag; the import is in that branch",
}
"""Imports of a floor above, with the reason. None of them runs when the module is imported."""


def module_files() -> dict[str, Path]:
    """The modules of all packages of the workspace, by name."""
    found = {}
    for source in SOURCES:
        for path in source.rglob("*.py"):
            parts = path.relative_to(source).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = module_files()


def imports(body: list[ast.stmt], *, inner: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run with the module, and with `inner` those of its functions too."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(node.orelse, inner=inner)
        elif inner or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "finalbody"):
                yield from imports(getattr(node, part, []), inner=inner)
            for branch in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
                yield from imports(branch.body, inner=inner)


def imported(module: str, *, inner: bool, files: dict[str, Path] = FILES) -> set[str]:
    """Modules of the workspace that a module imports."""
    path, found = files[module], set()
    for node in imports(ast.parse(path.read_text(encoding="utf-8")).body, inner=inner):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = node.module or ""
        if node.level:
            package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
        found |= {name if (name := f"{base}.{alias.name}") in files else base for alias in node.names}
    return found & files.keys()


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules in a circle, and those that stand on one."""
    left = dict(graph)
    while free := {module for module, targets in left.items() if not targets & left.keys() - {module}}:
        left = {module: targets for module, targets in left.items() if module not in free}
    return sorted(left)


def test_no_modules_import_each_other_in_a_circle():
    assert len(FILES) > 250
    assert circles({module: imported(module, inner=False) for module in FILES}) == []


def test_a_room_imports_only_from_floors_below():
    upward, checked = set(), 0
    for module in FILES:
        if not module.startswith(f"{COMMON}."):
            continue
        for target in imported(module, inner=True):
            assert target.partition(".")[0] == COMMON, f"{module} imports {target}, which stands on it"
            if target != COMMON:
                here, there = (FLOOR[name.split(".")[1]] for name in (module, target))
                upward |= {(module, target)} if there > here else set()
                checked += 1
    assert checked > 800
    assert upward == UPWARD.keys()
    assert not any(target in imported(module, inner=False) for module, target in UPWARD)


def test_every_room_has_a_floor():
    rooms = {module.split(".")[1] for module in FILES if module.startswith(f"{COMMON}.")}
    assert rooms == FLOOR.keys() | {"recipes"}  # holds no code
    assert not list(imported(f"{COMMON}.recipes", inner=True))


def test_methods_stand_on_the_common_package_alone_and_nothing_stands_on_the_command():
    packages = {module.partition(".")[0] for module in FILES}
    methods = packages - {COMMON, "bevkd"}
    assert methods == {"distillbev", "pointdistiller", "structkd", "unidistill"}
    for module in FILES:
        package = module.partition(".")[0]
        targets = {target.partition(".")[0] for target in imported(module, inner=True)}
        allowed = {package, COMMON} if package != COMMON else {COMMON}
        assert targets <= allowed, f"{module} imports {sorted(targets - allowed)}"


@pytest.fixture
def planted(tmp_path):
    """Three modules, two of which import each other, one of them in a function only."""
    texts = {
        "a": "if TYPE_CHECKING:\n    import c\ntry:\n    import b\nexcept OSError:\n    pass",
        "b": "from . import a",
        "c": "def late():\n    from .a import x",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    files = {f"p.{name}": tmp_path / f"{name}.py" for name in texts}
    return files | {name: files[f"p.{name}"] for name in texts}


def test_the_reading_of_imports_finds_what_is_planted(planted):
    assert imported("p.a", inner=True, files=planted) == {"b"}
    assert imported("p.b", inner=False, files=planted) == {"p.a"}
    assert imported("p.c", inner=False, files=planted) == set()
    assert imported("p.c", inner=True, files=planted) == {"p.a"}
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set(), "e": {"d"}}) == ["a", "b", "c"]
