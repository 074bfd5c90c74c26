"""Which source files a stage uses: the closure of first-party imports, read from the files and not executed."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path


def source_hash(modules: Iterable[str]) -> str:
    """Hash of the source files that `modules` reach, as they were when this process first asked for each.

    A file that is edited while a long run goes on does not change what the run has imported, and must not change
    what its results are filed under.

    Args:
        modules: Dotted names; imports are followed into the top-level packages these belong to.
    """
    digest = hashlib.sha256()
    for name, path in sorted(import_closure(modules).items()):
        digest.update(name.encode() + b"\0" + _read(path) + b"\0")
    return digest.hexdigest()


def import_closure(modules: Iterable[str]) -> dict[str, Path]:
    """Module name to file, for everything reachable by imports, lazy ones and those for type checkers included."""
    waiting = list(modules)
    packages = {name.partition(".")[0] for name in waiting}
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = _file(name)
        if path is None:
            continue
        found[name] = path
        waiting += [other for other in _imports(name, path) if other.partition(".")[0] in packages]
    return found


@cache
def _read(path: Path) -> bytes:
    return path.read_bytes()


def _file(name: str) -> Path | None:
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


def _imports(name: str, path: Path) -> set[str]:
    found = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(_read(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found
