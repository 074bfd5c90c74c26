from bevkd_common.experiment.sources import import_closure, source_hash


def test_the_closure_follows_imports_within_the_package_only():
    closure = import_closure(["bevkd_common.engine.schedule"])
    assert "bevkd_common.config.training" in closure
    assert "bevkd_common.config.model" in closure
    assert "bevkd_common.engine.train" not in closure
    assert all(name.startswith("bevkd_common") for name in closure)


def test_lazy_imports_count():
    assert "bevkd_common.ops.voxelize" in import_closure(["bevkd_common.data.samples"])


def test_the_hash_changes_with_a_file_that_is_reached_and_no_other(tmp_path, monkeypatch):
    package = tmp_path / "closuretest"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text("from .reached import value\n")
    (package / "inner" / "reached.py").write_text("value = 1\n")
    (package / "entry.py").write_text("import closuretest.inner\n")
    (package / "apart.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = source_hash(["closuretest.entry"])
    (package / "apart.py").write_text("value = 2\n")
    assert source_hash(["closuretest.entry"]) == before
    (package / "inner" / "reached.py").write_text("value = 2\n")
    assert source_hash(["closuretest.entry"]) != before
