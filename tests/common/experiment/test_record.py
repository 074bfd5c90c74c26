import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
from bevkd_common.errors import UserError
from bevkd_common.experiment import record
from bevkd_common.experiment.record import RunFolder, environment
from bevkd_common.experiment.request import Request, repeated
from bevkd_common.experiment.stages import alone_in


def run_record(**changes):
    """The content of run.json."""
    asked = {"method": "toy", "data_root": None, "plan": ["seeds 0"], "controls": False, "ablations": []}
    return {**asked, "baseline": True, "seeds": [0], "data": {"0": "abc"}, "stages": {}, **changes}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "try")


def test_a_run_is_opened_and_opened_again(folder):
    folder.open("a: 1\n", restart=False)
    folder.open("a: 1\n", restart=False)
    assert (folder.path / "config.yaml").read_text() == "a: 1\n"
    assert folder.root == folder.path.parent


@pytest.mark.parametrize("name", [".", "report/..", "../try"])
def test_a_run_is_named_from_inside(folder, monkeypatch, name):
    (folder.path / "report").mkdir(parents=True)
    monkeypatch.chdir(folder.path)
    inside = RunFolder(Path(name))
    assert inside.root.resolve() == folder.root
    assert Request(out=Path(name), data_root=None, seeds=(0,)).out.parent.resolve() == folder.root


def test_the_config_of_a_run_repeats_it_from_inside(folder, monkeypatch):
    folder.open("a: 1\n", restart=False)
    folder.write(run_record())
    monkeypatch.chdir(folder.path)
    again = repeated(Path("config.yaml"))
    assert again.out == folder.path
    assert RunFolder(again.out).root == folder.root


def test_another_recipe_is_refused_until_restart(folder):
    folder.open("a: 1\n", restart=False)
    with pytest.raises(UserError, match=r"another recipe.*--out.*--restart"):
        folder.open("a: 2\n", restart=False)
    folder.open("a: 2\n", restart=True)
    assert (folder.path / "config.yaml").read_text() == "a: 2\n"


def stage_name(kind, number):
    return f"{kind}-{number:012x}"


@pytest.fixture
def stages(folder):
    """Folders of three stages, of which the run names two."""
    root = folder.root / ".stages"
    for name in (stage_name("teacher", 1), stage_name("baseline", 1), stage_name("baseline", 2)):
        (root / name).mkdir(parents=True)
    folder.open("a: 1\n", restart=False)
    folder.write_environment({})
    named = {"teacher": stage_name("teacher", 1), "baseline": stage_name("baseline", 1)}
    folder.write(run_record(stages={"0": named}))
    return root


def contents(path):
    return {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()}


def test_restart_throws_away_the_stages_of_this_run_and_no_other(folder, stages):
    (folder.path / "report" / "pictures").mkdir(parents=True)
    for name in ("index.html", "report.md", "report.json", "pictures/curve.png"):
        (folder.path / "report" / name).touch()
    (folder.path / ".run.json.123.partial").touch()
    folder.open("a: 1\n", restart=True)
    assert [path.name for path in stages.iterdir()] == [stage_name("baseline", 2)]
    assert sorted(path.name for path in folder.path.iterdir()) == [".bevkd-run", "config.yaml"]


@pytest.mark.parametrize("file", ["thesis.tex", "report/thesis.tex", "report/pictures/a/b.png", "notes/index.html"])
def test_restart_refuses_a_run_with_files_of_somebody_else(folder, stages, file):
    (folder.path / file).parent.mkdir(parents=True, exist_ok=True)
    (folder.path / file).write_text("years of work")
    before = contents(folder.root)
    with pytest.raises(UserError, match=rf"holds {file}, which the run did not write: nothing was removed"):
        folder.open("a: 1\n", restart=True)
    assert contents(folder.root) == before
    assert len(list(stages.iterdir())) == 3


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    "file", ["a/thesis.tex", "environment.json", "report/index.html", "run.json", "config.yaml"]
)
def test_a_folder_that_is_no_run_is_left_alone(folder, file, restart):
    (folder.path / file).parent.mkdir(parents=True, exist_ok=True)
    (folder.path / file).write_text("{}")
    with pytest.raises(UserError, match=rf"holds {file.split('/')[0]} and is not a run: nothing was changed"):
        folder.open("a: 1\n", restart=restart)
    assert contents(folder.path) == {file: b"{}"}


def test_a_run_may_start_beside_its_own_recipe(folder):
    folder.path.mkdir(parents=True)
    (folder.path / "config.yaml").write_text("a: 1\n")
    folder.open("a: 1\n", restart=False)
    assert sorted(path.name for path in folder.path.iterdir()) == [".bevkd-run", "config.yaml"]


@pytest.mark.parametrize(
    "name",
    ["/elsewhere", "../..", "..", ".", "teacher-1", "teacher-00000000000g", "a/teacher-000000000001", 3, None],
)
def test_a_stage_that_no_run_writes_is_refused_and_removes_nothing(folder, stages, name):
    folder.write(run_record(stages={"0": {"teacher": name}}))
    before = contents(folder.root)
    for restart in (False, True):
        with pytest.raises(UserError, match=r"run\.json is damaged \(stages\.0\.teacher: "):
            folder.open("a: 1\n", restart=restart) if restart else folder.read()
    assert contents(folder.root) == before


def test_restart_waits_for_nobody_and_takes_nothing_that_is_in_use(folder, stages):
    other = RunFolder(folder.root / "other")
    other.open("b: 1\n", restart=False)
    other.write(folder.read())
    before = contents(folder.root)
    with other.running(), pytest.raises(UserError, match=r"another process works in .*other"):
        folder.open("a: 1\n", restart=True)
    with folder.running(), pytest.raises(UserError, match=r"another process works in .*try"):
        folder.open("a: 1\n", restart=True)
    in_training = stages / stage_name("baseline", 1)
    with (
        alone_in(in_training, wait=False, say=print),
        pytest.raises(UserError, match=f"another process works in .*{in_training.name}"),
    ):
        folder.open("a: 1\n", restart=True)
    assert {name: content for name, content in contents(folder.root).items() if ".lock" not in name} == before
    folder.open("a: 1\n", restart=True)
    assert [path.name for path in stages.iterdir()] == [stage_name("baseline", 2)]


def test_a_damaged_record_is_one_sentence(folder):
    damages = [{}, [], None, "text", *({**run_record(), key: 3.5} for key in run_record())]
    damages += [{name: value for name, value in run_record().items() if name != key} for key in run_record()]
    damages += [
        run_record(seeds=[]),
        run_record(seeds=[-1]),
        run_record(data={"x": "abc"}),
        run_record(plan=["\ud800"]),
    ]
    assert len(damages) == 26
    folder.path.mkdir(parents=True)
    for content in damages:
        (folder.path / "run.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"run\.json is damaged \(.*\): restore it") as error:
            folder.read()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[" * 100_000, b"\xff\xfe", '{"torch": 2}', '{"torch": "\\ud800"}', "[]"]
)
def test_a_damaged_environment_is_one_sentence(folder, content):
    folder.open("a: 1\n", restart=False)
    (folder.path / "environment.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"environment\.json is damaged .*: run the experiment again") as error:
        folder.read_environment()
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_one_sentence(folder):
    folder.root.write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written.*--out"):
        folder.open("a: 1\n", restart=False)


def test_records_round_trip(folder):
    folder.write(run_record())
    folder.write_environment({"torch": "2"})
    assert folder.read() == run_record()
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


def test_a_record_that_was_changed_is_refused_unless_the_change_is_meant(folder):
    folder.write(run_record(data_root="/data"))
    path = folder.path / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "data_root": "/"}))
    with pytest.raises(UserError, match=r"run\.json was changed after it was written: restore it, or remove"):
        folder.read()
    del content["checksum"]
    path.write_text(json.dumps({**content, "data_root": "/moved"}))
    assert folder.read() == run_record(data_root="/moved")
