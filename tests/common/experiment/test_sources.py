import ast
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from bevkd_common.experiment.sources import foreign_packages, import_closure, normalized, source_hash

FILES = {
    "models": "bevkd_common.models.heads.center_head",
    "distill": "bevkd_common.distill.adapters",
    "data": "bevkd_common.data.augment",
    "method": "distillbev.losses",
    "plug-in": None,
}
"""A source of each sort that a stage uses; that of a plug-in is `PLUGIN`."""

PLUGIN = '''"""A plug-in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SCALE = 2.0
"""Of the outputs."""


class Head:
    """A head.

    Args:
        width: Of its maps.
    """

    def __init__(self, width: int = 8) -> None:
        if width < 1:
            raise ValueError(f"`width` must be positive, got {width}")
        self.width = width

    def area(self, cells: Sequence[float], say=print) -> float:
        """Sum of the cells."""
        assert cells, "no cells"
        say(f"{len(cells)} cells")
        return self.width * sum(cells) + math.pi
'''


def test_the_closure_follows_imports_within_the_package_only():
    closure = import_closure(["bevkd_common.engine.schedule"])
    assert "bevkd_common.config.training" in closure
    assert "bevkd_common.config.model" in closure
    assert "bevkd_common.engine.train" not in closure
    assert all(name.startswith("bevkd_common") for name in closure)


def test_lazy_imports_and_parent_packages_count():
    closure = import_closure(["bevkd_common.data.samples"])
    assert {"bevkd_common.ops.voxelize", "bevkd_common.data", "bevkd_common"} <= set(closure)


def test_finding_the_sources_of_a_stage_imports_nothing():
    code = (
        "import sys; from bevkd_common.experiment.sources import import_closure as closure;"
        "print(len(closure(['distillbev.build', 'bevkd_common.engine.train'])), 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    files, torch = ran.stdout.split()
    assert int(files) > 40
    assert torch == "False"


def test_the_hash_is_that_of_the_files_that_are_reached(tmp_path):
    _write_package(tmp_path)
    first = _hash_in_a_process(tmp_path)
    (tmp_path / "closuretest" / "apart.py").write_text("value = 2\n")
    assert _hash_in_a_process(tmp_path) == first
    (tmp_path / "closuretest" / "inner" / "reached.py").write_text("value = 2\n")
    assert _hash_in_a_process(tmp_path) != first


def test_a_file_that_is_edited_during_a_run_keeps_the_hash_it_had(tmp_path, monkeypatch):
    _write_package(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = source_hash(["closuretest.entry"])
    (tmp_path / "closuretest" / "inner" / "reached.py").write_text("import closuretest.apart\n")
    assert source_hash(["closuretest.entry"]) == before


def test_a_helper_beside_a_plug_in_counts(tmp_path):
    _write_package(tmp_path)
    (tmp_path / "closuretest" / "entry.py").write_text("import closurehelper.deep\n")
    (tmp_path / "closurehelper").mkdir()
    (tmp_path / "closurehelper" / "__init__.py").write_text("import closuresingle\n")
    (tmp_path / "closurehelper" / "deep.py").write_text("value = 1\n")
    (tmp_path / "closuresingle.py").write_text("value = 1\n")
    hashes = [_hash_in_a_process(tmp_path)]
    for changed in ("closurehelper/deep.py", "closuresingle.py"):
        (tmp_path / changed).write_text("value = 2\n")
        hashes.append(_hash_in_a_process(tmp_path))
    assert len(set(hashes)) == 3


def test_an_installed_package_that_a_plug_in_imports_counts_by_the_code_that_was_installed(tmp_path):
    _write_package(tmp_path)
    (tmp_path / "closuretest" / "entry.py").write_text(
        "import bigpackage, torch, PIL.Image, yaml, absentpackage, json\n"
    )
    site = tmp_path / "site-packages"
    about = site / "big_package-1.0.dist-info"
    (site / "bigpackage").mkdir(parents=True)
    (site / "bigpackage" / "__init__.py").write_text("")
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: big-package\nVersion: 1.0\n")
    found = []
    for code, other in (("AAAA", "BBBB"), ("AAAA", "CCCC"), ("DDDD", "CCCC")):
        (about / "RECORD").write_text(
            f"bigpackage/__init__.py,sha256={code},1\nbigpackage/a.txt,sha256={other},1\n"
        )
        found.append(_foreign_in_a_process(tmp_path, site))
    assert [set(packages) for packages in found] == [{"big-package", "absentpackage"}] * 3
    assert [packages["absentpackage"] for packages in found] == [None] * 3
    assert found[0] == found[1] != found[2]


def test_a_detector_of_this_package_imports_no_other_distribution():
    assert foreign_packages(["bevkd_common.engine.train", "bevkd_common.models.detectors.bevdet"]) == {}
    assert {"mmdet3d", "mmengine"} <= foreign_packages(["bevkd_common.models.detectors.mmdet3d"]).keys()


WORDS = {
    "comment": lambda tree: ast.unparse(tree) + "\n# a comment\n",
    "module docstring": lambda tree: _edited(tree, _module_docstring),
    "docstrings": lambda tree: _edited(tree, _docstrings),
    "attribute docstring": lambda tree: _edited(tree, _bare_string),
    "exception message": lambda tree: _edited(tree, _exception_message),
    "exception arguments": lambda tree: _edited(tree, _exception_arguments),
    "assertion message": lambda tree: _edited(tree, _assertion_message),
    "message of the reporter": lambda tree: _edited(tree, _said),
    "import order": lambda tree: _edited(tree, _import_order),
    "one import a name": lambda tree: _edited(tree, _split_imports),
    "import for type checkers": lambda tree: _edited(tree, _type_checking_import),
    "formatting": lambda tree: ast.unparse(tree).replace("\n\n", "\n\n\n"),
}


@pytest.mark.parametrize("place", FILES)
@pytest.mark.parametrize("change", WORDS)
def test_changed_words_leave_the_hash(place, change):
    text = _text(place)
    assert normalized(WORDS[change](ast.parse(text))) == normalized(text)


def test_twelve_changes_of_words_in_five_places_are_tried_and_most_of_them_edit_something():
    edited = [
        place
        for place in FILES
        for change in WORDS.values()
        if ast.dump(ast.parse(change(ast.parse(_text(place))))) != ast.dump(ast.parse(_text(place)))
    ]
    assert len(WORDS) == 12
    assert len(edited) >= 30
    assert all(edited.count(place) >= 5 for place in FILES)


BEHAVIOUR = {
    "constant": lambda node: type(getattr(node, "value", "")) in (int, float) and _set_value(node),
    "operator": lambda node: isinstance(node, ast.BinOp) and _set(node, "op", ast.Pow()),
    "default": lambda node: isinstance(node, ast.arguments) and node.defaults and _drop(node.defaults),
    "comparison": lambda node: isinstance(node, ast.Compare) and _set(node, "ops", [ast.NotEq()] * len(node.ops)),
    "called function": lambda node: isinstance(node, ast.Call) and _set(node, "func", ast.Name("other")),
    "dropped argument": lambda node: isinstance(node, ast.Call) and _unraised(node) and _drop(node.args),
    "attribute": lambda node: isinstance(node, ast.Attribute) and _set(node, "attr", "another"),
    "returned value": lambda node: isinstance(node, ast.Return) and _set(node, "value", ast.Constant(None)),
    "dropped statement": lambda node: isinstance(node, ast.FunctionDef) and _drop(node.body),
    "imported name": lambda node: isinstance(node, ast.ImportFrom) and _set(node, "module", "elsewhere"),
    "exception type": lambda node: isinstance(node, ast.Raise) and _set(node.exc, "func", ast.Name("KeyError")),
}


@pytest.mark.parametrize("change", BEHAVIOUR)
def test_changed_behaviour_changes_the_hash(change):
    changed = 0
    for place in FILES:
        text = _text(place)
        tree = ast.parse(text)
        first = next((node for node in _running(tree) if BEHAVIOUR[change](node)), None)
        if first is not None:
            changed += 1
            assert normalized(ast.unparse(ast.fix_missing_locations(tree))) != normalized(text), place
    assert changed >= 2
    assert len(BEHAVIOUR) == 11


def test_text_that_is_no_message_counts():
    assert normalized('pad(x, "constant")') != normalized('pad(x, "reflect")')
    assert normalized('run(mode="sum")') != normalized('run(mode="mean")')
    assert normalized('say("constant")') == normalized('say("reflect")')
    assert normalized('Spec(summary="one")') == normalized('Spec(summary="another")')


def _text(place):
    module = FILES[place]
    return PLUGIN if module is None else Path(find_spec(module).origin).read_text()


def _running(tree):
    """Nodes whose change is one of behaviour: none of a message or of an import for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        if not isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
            yield from _running(node)


def _set(node, field, value):
    setattr(node, field, value)
    return True


def _set_value(node):
    node.value += 1
    return True


def _drop(items):
    return bool(items) and (items.pop() or True)


def _unraised(node):
    return getattr(node.func, "attr", "") != "say"


def _edited(tree, edit):
    edit(tree)
    return ast.unparse(ast.fix_missing_locations(tree))


def _module_docstring(tree):
    tree.body[0].value = ast.Constant("Something else.")


def _docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body[0].value = ast.Constant("Something else.")


def _bare_string(tree):
    tree.body.append(ast.Expr(ast.Constant("Of the last thing.")))


def _exception_message(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc.args = [ast.Constant("other words")]


def _exception_arguments(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc.args = [ast.Call(ast.Name("shorten"), [ast.Constant("other words")], [])]


def _assertion_message(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            node.msg = ast.Constant("other words")


def _said(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "say":
            node.args = [ast.Constant("other words")]


def _import_order(tree):
    future = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) and node not in future]
    others = [node for node in tree.body if node not in imports and node not in future]
    tree.body = [others[0], *future, *reversed(imports), *others[1:]]


def _split_imports(tree):
    body = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            body += [ast.ImportFrom(node.module, [alias], node.level) for alias in node.names]
        else:
            body.append(node)
    tree.body = body


def _type_checking_import(tree):
    guarded = ast.parse("if TYPE_CHECKING:\n    from elsewhere import Thing\n").body
    tree.body += guarded


def _write_package(folder):
    package = folder / "closuretest"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text("from .reached import value\n")
    (package / "inner" / "reached.py").write_text("value = 1\n")
    (package / "entry.py").write_text("import closuretest.inner\n")
    (package / "apart.py").write_text("value = 1\n")


def _foreign_in_a_process(folder, site):
    code = (
        "import json, sys; sys.path.append(sys.argv[1]);"
        "from bevkd_common.experiment.sources import foreign_packages as foreign;"
        "print(json.dumps(foreign(['closuretest.entry'])))"
    )
    ran = subprocess.run([sys.executable, "-c", code, site], cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


def _hash_in_a_process(folder):
    code = "from bevkd_common.experiment.sources import source_hash; print(source_hash(['closuretest.entry']))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return ran.stdout
