import subprocess
import sys

from bevkd_common.experiment.sources import import_closure, source_hash


def test_the_closure_follows_imports_within_the_package_only():
    closure = import_closure(["bevkd_common.engine.schedule"])
    assert "bevkd_common.config.training" in closure
    assert "bevkd_common.config.model" in closure
    assert "bevkd_common.engine.train" not in closure
    assert all(name.startswith("bevkd_common") for name in closure)


def test_lazy_imports_count():
    assert "bevkd_common.ops.voxelize" in import_closure(["bevkd_common.data.samples"])


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


def _write_package(folder):
    package = folder / "closuretest"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text("from .reached import value\n")
    (package / "inner" / "reached.py").write_text("value = 1\n")
    (package / "entry.py").write_text("import closuretest.inner\n")
    (package / "apart.py").write_text("value = 1\n")


def _hash_in_a_process(folder):
    code = "from bevkd_common.experiment.sources import source_hash; print(source_hash(['closuretest.entry']))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return ran.stdout
