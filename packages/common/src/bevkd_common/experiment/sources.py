"""Hash of the source code that a stage uses: the closure of its first-party imports, read without importing them.

The hash covers what determines a result and nothing else. Each file enters as a normalised syntax tree:

- comments and formatting are not part of a syntax tree;
- docstrings, attribute docstrings and other bare strings are removed;
- messages are removed: the arguments of an exception that is raised, the text of an assertion, and the strings
  given to a call of `MESSAGE_CALLS` or to a keyword of `MESSAGE_KEYWORDS`;
- the imports of a block are sorted, and those under `if TYPE_CHECKING:` removed.

A changed constant, operator, default or call changes the hash.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

MESSAGE_CALLS = frozenset({"say", "warn", "print", "echo", "debug", "info", "warning", "error"})
"""Functions and methods whose string arguments are messages."""

MESSAGE_KEYWORDS = frozenset({"summary", "description", "help", "caption"})
"""Keyword arguments whose strings are messages."""

_REMOVED = ast.Constant("")


@dataclass(frozen=True)
class _Source:
    """One file: the digest of its normalised tree, and the modules that it imports."""

    digest: bytes
    imports: frozenset[str]


def source_hash(modules: Iterable[str]) -> str:
    """Hash of the source code that `modules` import. Each file is hashed as this process first read it.

    An edit during a long run does not change the imported code, so it must not change the fingerprint of the
    results.

    Args:
        modules: Dotted names; see `import_closure`.
    """
    digest = hashlib.sha256()
    for name, path in sorted(import_closure(modules).items()):
        digest.update(name.encode() + b"\0" + _source(name, path).digest)
    return digest.hexdigest()


def import_closure(modules: Iterable[str]) -> dict[str, Path]:
    """Module name to file for all direct and indirect imports, including imports inside functions.

    Args:
        modules: Dotted names. Imports are followed within the top-level packages that these belong to, and into
            packages and modules that are not installed in `site-packages`, such as a helper next to a plug-in. The
            `__init__.py` of each parent package is part of the closure.
    """
    waiting = list(modules)
    packages = {_top(name) for name in waiting}
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        path = None if name in found else _file(name)
        if path is None:
            continue
        found[name] = path
        waiting += [
            other
            for other in _source(name, path).imports
            if _top(other) in packages or not _is_foreign(_top(other))
        ]
        waiting += [name.rpartition(".")[0]] if "." in name else []
    return found


def foreign_packages(modules: Iterable[str]) -> dict[str, str | None]:
    """The installed distributions that a closure imports, beside those that bevkd-common requires.

    Args:
        modules: Dotted names; see `import_closure`.

    Returns:
        Hash of the code of each distribution, by its name; None for an optional package that is not installed.
    """
    closure = import_closure(modules)
    own = {_top(name) for name in closure}
    imported = {_top(other) for name, path in closure.items() for other in _source(name, path).imports} - own
    found: dict[str, str | None] = {}
    for package in sorted(filter(_is_foreign, imported - sys.stdlib_module_names)):
        names = _distributions().get(package)
        if names is None:
            found[package] = None
        elif not _required() & {_normal(name) for name in names}:
            found |= {name: _code_hash(name) for name in names}
    return found


@cache
def _is_foreign(package: str) -> bool:
    """Whether a top-level package is part of Python, installed by a package manager, or absent."""
    if package in sys.stdlib_module_names:
        return True
    spec = _spec(package)
    if spec is None:
        return True
    places = [
        *(spec.submodule_search_locations or ()),
        *([spec.origin] if spec.has_location and spec.origin else []),
    ]
    return not places or any({"site-packages", "dist-packages"} & {*Path(place).parts} for place in places)


@cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return metadata.packages_distributions()


@cache
def _required() -> frozenset[str]:
    """The distributions that bevkd-common requires without any extra."""
    required = metadata.requires("bevkd-common") or ()
    return frozenset(
        _normal(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in required if "extra ==" not in text
    )


@cache
def _code_hash(distribution: str) -> str:
    """Hash of the code of a distribution, from the hashes that its installation recorded."""
    about = metadata.distribution(distribution)
    code = [file for file in about.files or () if file.suffix in {".py", ".so", ".pyd"} and file.hash]
    lines = sorted(f"{file} {file.hash.value}" for file in code if file.hash)
    return hashlib.sha256("\n".join([about.version, *lines]).encode()).hexdigest()


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _top(module: str) -> str:
    return module.partition(".")[0]


def normalized(text: str | bytes) -> str:
    """A Python file as a string that changes only if the behaviour of the code may change.

    Raises:
        SyntaxError: If the text is not Python.
    """
    return ast.dump(_Normalizer().visit(ast.parse(text)))


class _Normalizer(ast.NodeTransformer):
    """Removes docstrings and messages from a syntax tree and sorts imports."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                setattr(node, field, _normalized_block(block))
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.exc, ast.Call):
            node.exc.args, node.exc.keywords = [], []
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        self.generic_visit(node)
        node.msg = None
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called in MESSAGE_CALLS:
            node.args = [_REMOVED if _is_text(argument) else argument for argument in node.args]
        for keyword in node.keywords:
            if keyword.arg in MESSAGE_KEYWORDS and _is_text(keyword.value):
                keyword.value = _REMOVED
        return node


def _normalized_block(statements: Sequence[ast.stmt]) -> list[ast.stmt]:
    imports = [statement for statement in statements if isinstance(statement, ast.Import | ast.ImportFrom)]
    others = [
        statement
        for statement in statements
        if not isinstance(statement, ast.Import | ast.ImportFrom)
        and not (isinstance(statement, ast.Expr) and _is_text(statement.value))
        and not _is_for_type_checkers(statement)
    ]
    singles: list[ast.stmt] = []
    for statement in imports:
        for alias in statement.names:
            if isinstance(statement, ast.Import):
                singles.append(ast.Import([alias]))
            else:
                singles.append(ast.ImportFrom(statement.module, [alias], statement.level))
    return [*sorted(singles, key=ast.dump), *others]


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) and _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_for_type_checkers(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.If) or statement.orelse:
        return False
    test = statement.test
    return getattr(test, "attr", getattr(test, "id", "")) == "TYPE_CHECKING"


@cache
def _source(name: str, path: Path) -> _Source:
    tree = ast.parse(path.read_bytes())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = _Normalizer().visit(tree)
    return _Source(hashlib.sha256(ast.dump(tree).encode()).digest(), frozenset(_imports(tree, package)))


def _file(name: str) -> Path | None:
    spec = _spec(name)
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


@cache
def _spec(name: str) -> ModuleSpec | None:
    """The spec of a module; unlike `importlib.util.find_spec`, this imports no parent package."""
    parent, _, _ = name.rpartition(".")
    search = None
    if parent:
        above = _spec(parent)
        if above is None or above.submodule_search_locations is None:
            return None
        search = list(above.submodule_search_locations)
    for finder in sys.meta_path:
        spec = finder.find_spec(name, search) if hasattr(finder, "find_spec") else None
        if spec is not None:
            return spec
    return None


def _imports(tree: ast.AST, package: str) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found
