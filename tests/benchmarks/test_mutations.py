"""The list of faults stays true to the sources, and a fault counts as caught only if a test failed of it."""

import runpy
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
script = runpy.run_path(str(ROOT / "benchmarks" / "mutations.py"))
MUTATIONS = script["read_mutations"](script["FAULTS"])


def test_at_least_sixty_faults_spread_over_what_matters():
    assert len(MUTATIONS) >= 60
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    # YAML lets a later key of the same name win: a fault without a name of its own would hide another.
    assert script["FAULTS"].read_text().count("\n  find:") == len(MUTATIONS)
    per_module = Counter(mutation.name.split("/")[0] for mutation in MUTATIONS)
    assert per_module["losses"] >= 15
    assert len(per_module) >= 18


def test_every_fault_can_be_planted_once():
    found = {mutation.name: (ROOT / mutation.file).read_text().count(mutation.find) for mutation in MUTATIONS}
    assert len(found) >= 60
    assert {name: count for name, count in found.items() if count != 1} == {}
    assert [mutation.name for mutation in MUTATIONS if mutation.find == mutation.replace] == []


def test_every_fault_names_tests_that_exist():
    tests = [test.split("::")[0] for mutation in MUTATIONS for test in mutation.tests]
    assert len(tests) >= len(MUTATIONS) >= 60
    assert all(mutation.tests for mutation in MUTATIONS)
    assert [test for test in tests if not (ROOT / test).is_file()] == []


@pytest.fixture
def project(tmp_path):
    source = tmp_path / "project" / "packages" / "arithmetic" / "src" / "arithmetic" / "__init__.py"
    source.parent.mkdir(parents=True)
    source.write_text("def double(x):\n    return x * 2\n")
    (tmp_path / "project" / "test_double.py").write_text(
        "from arithmetic import double\n\ndef test_double():\n    assert double(2) == 4\n"
    )
    (tmp_path / "project" / "pytest.ini").write_text("[pytest]\n")
    return tmp_path / "project"


@pytest.mark.parametrize(
    ("replace", "explained", "verdict"),
    [
        ("x * 3", "", "caught"),
        ("x + x", "", "survived"),
        ("x + x", "the same number", "explained"),
        ("x *", "", "error"),  # a syntax error: the tests do not even start
    ],
)
def test_verdicts(project, tmp_path, replace, explained, verdict):
    file = "packages/arithmetic/src/arithmetic/__init__.py"
    before = (project / file).read_text()
    fault = script["Mutation"]("arithmetic/double", file, "x * 2", replace, ("test_double.py",), explained)
    (outcome,) = script["try_all"]([fault], project, tmp_path / "scratch", jobs=1)
    assert outcome.verdict == verdict
    assert (project / file).read_text() == before


def test_tests_that_fail_without_a_fault_prove_nothing(project, tmp_path):
    (project / "test_double.py").write_text("def test_nothing():\n    assert False\n")
    fault = script["Mutation"]("arithmetic/double", "packages/none.py", "x", "y", ("test_double.py",))
    with pytest.raises(SystemExit, match="do not pass without a fault"):
        script["try_all"]([fault], project, tmp_path / "scratch", jobs=1)


def test_a_fault_must_have_one_place(project):
    fault = script["Mutation"]("a/b", "test_double.py", "double", "triple", ("test_double.py",))
    with pytest.raises(ValueError, match="stands 3 times"):
        fault.apply(project)
