import importlib.metadata
import json

import pytest
import torch
from bevkd_common.errors import UserError
from bevkd_common.experiment import record
from bevkd_common.experiment.record import RunFolder, environment


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "try")


def test_a_run_is_opened_and_opened_again(folder):
    folder.open("a: 1\n", restart=False)
    folder.open("a: 1\n", restart=False)
    assert (folder.path / "config.yaml").read_text() == "a: 1\n"
    assert folder.root == folder.path.parent


def test_another_recipe_is_refused_until_restart(folder):
    folder.open("a: 1\n", restart=False)
    with pytest.raises(UserError, match=r"another recipe.*--out.*--restart"):
        folder.open("a: 2\n", restart=False)
    folder.open("a: 2\n", restart=True)
    assert (folder.path / "config.yaml").read_text() == "a: 2\n"


def test_restart_throws_away_the_stages_of_this_run_and_no_other(folder):
    stages = folder.root / ".stages"
    for name in ("teacher-1", "baseline-1", "baseline-2"):
        (stages / name).mkdir(parents=True)
    folder.open("a: 1\n", restart=False)
    folder.write_environment({})
    folder.write({"stages": {"0": {"teacher": "teacher-1", "baseline": "baseline-1"}}})
    folder.open("a: 1\n", restart=True)
    assert [path.name for path in stages.iterdir()] == ["baseline-2"]
    assert [path.name for path in folder.path.iterdir()] == ["config.yaml"]


def test_restart_throws_away_no_folder_that_is_no_run(folder):
    (folder.path / "a").mkdir(parents=True)
    (folder.path / "a" / "thesis.tex").write_text("years of work")
    (folder.path / "config.yaml").write_text("of something else")
    with pytest.raises(UserError, match=r"holds a and is not a run: nothing was deleted; choose another --out"):
        folder.open("a: 1\n", restart=True)
    assert (folder.path / "a" / "thesis.tex").read_text() == "years of work"


def test_a_damaged_record_is_one_sentence(folder):
    folder.write({})
    with pytest.raises(UserError, match=r"run\.json lists no stages"):
        folder.read()


def test_a_folder_that_cannot_be_written_is_one_sentence(folder):
    folder.root.write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written.*--out"):
        folder.open("a: 1\n", restart=False)


def test_records_round_trip(folder):
    folder.write({"stages": {}})
    folder.write_environment({"torch": "2"})
    assert folder.read() == {"stages": {}}
    assert folder.read_environment() == {"torch": "2"}
    assert json.loads((folder.path / "environment.json").read_text()) == {"torch": "2"}


def test_any_other_folder_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        RunFolder(tmp_path).read()


def test_the_environment_says_what_ran_where(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/bevkd", "run", "toy"])
    found = environment(torch.device("cpu"), "toy-method 1.0")
    assert found["method from"] == "toy-method 1.0"
    assert found["torch"] == importlib.metadata.version("torch")
    assert found["command"] == "bevkd run toy"
    assert found["accelerator"] == "none"
    assert {"numpy", "bevkd-common", "python", "platform", "git", "processor cores"} <= set(found)


def test_a_commit_is_told_from_one_with_changes(monkeypatch):
    answers = {"rev-parse": "0123456789ab", "status": ""}
    monkeypatch.setattr(record, "_git", lambda verb, *rest, cwd: answers[verb])
    assert record._git_state() == "0123456789ab"
    answers["status"] = " M file.py"
    assert record._git_state() == "0123456789ab with uncommitted changes"


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert record._git_state() == "not a checkout"
