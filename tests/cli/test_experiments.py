"""`bevkd run`, `train`, `eval`, `report` and `ablate` on the toy package, in this process."""

import json
from hashlib import sha256

import pytest
from bevkd import run as verbs
from bevkd.app import main
from bevkd.display import progress_reporter
from bevkd_common.experiment.record import RunFolder

SHORT = ("--set", "student_training.steps=2", "--set", "teacher_training.steps=2", "--gpus", "0")


@pytest.fixture
def bevkd(toy_command):
    """Exit code and everything printed."""

    def call(*arguments):
        code, out, err = toy_command(*arguments)
        return code, out + err

    return call


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seed", "0", "--seeds", "2"), "not both"),
        (("--seed", "7"), "--seed 7 is not one of the recipe's seeds: 0, 1"),
        (("--seeds", "3"), "--seeds 3: the recipe has 2 seeds"),
        (
            ("--teacher", "bigger"),
            "no pair recipe fits --teacher bigger --dataset toy; the nearest are `--teacher big",
        ),
        (("--recipe", "distilled.yaml"), "distilled.yaml names the recipe: leave out --dataset"),
        (("--seeds", "2", "--no-baseline"), "takes its pace from the baseline: leave out --no-baseline"),
        (("--data-root", "/proc/version"), "/proc/version is no folder: name that of the toy_data data"),
    ],
)
def test_flags_that_do_not_fit_are_one_message(bevkd, flags, message):
    code, said = bevkd("run", "toy_method", "--dataset", "toy", *flags)
    assert code == 2
    assert message in said
    assert "Traceback" not in said


def test_a_recipe_that_cannot_be_read_is_one_message(bevkd):
    code, said = bevkd("run", "--recipe", "distilled.yaml")
    assert (code, "distilled.yaml: cannot be read" in said) == (2, True)


def test_a_folder_that_is_not_there_is_missed_before_anything_is_fetched(bevkd, tmp_path, monkeypatch):
    def fetch(name, *, pretrained=False, **options):
        assert not pretrained

    monkeypatch.setattr("timm.create_model", fetch)
    flags = ("--teacher", "centerpoint", "--student", "bevdet", "--dataset", "nuscenes", "--gpus", "0")
    for plan in ((), ("--plan",)):
        code, said = bevkd("run", "distillbev", *flags, "--data-root", str(tmp_path / "none"), *plan)
        assert code == 2
        assert "none is no folder: name that of the nuscenes data with --data-root" in said


def test_a_method_that_is_not_installed_names_those_that_are(bevkd, toy):
    code, said = bevkd("run", "toy_methods", "--recipe", str(toy))
    assert code == 2
    assert "no method `toy_methods` is installed" in said
    assert "toy_method" in said


def test_a_recipe_of_another_method_is_refused(bevkd, toy):
    for method in ("distillbev", "toy_method+distillbev"):
        code, said = bevkd("run", method, "--recipe", str(toy))
        assert code == 2
        assert f"is a recipe of toy_method, not of {method}: leave out METHOD, or replace the method with" in said


def test_an_installed_method_runs_on_any_pair_with_its_defaults(bevkd):
    """What fails is the check of the taps, after the recipe has been composed."""
    code, said = bevkd("run", "distillbev", "--teacher", "big", "--student", "small", "--gpus", "0")
    assert code == 2
    assert "small offers 'head' as a set of anchor maps, but a set of head maps is needed" in said
    code, said = bevkd("run", "toy_method+distillbev", "--teacher", "big", "--student", "small", "--gpus", "0")
    assert code == 2
    assert "small offers 'head' as a set of anchor maps, but a set of head maps is needed" in said


def test_a_stack_runs_on_a_pair(bevkd, tmp_path):
    code, said = bevkd("run", "toy_method+toy_echo", "--teacher", "big", "--student", "small", *SHORT)
    assert code == 0, said
    assert "method   Toy + Echo (an invented paper; another invented paper)" in said
    changes = sha256(b"student_training.steps=2 teacher_training.steps=2").hexdigest()[:6]
    run = tmp_path / "runs" / f"toy_method+toy_echo-toy-{changes}"
    stage = tmp_path / "runs" / ".stages" / RunFolder(run).read()["stages"]["0"]["distilled"]
    line = json.loads((stage / "metrics.jsonl").read_text().splitlines()[-1])
    for part in ("toy_method", "toy_echo"):
        assert any(name.endswith(f"{part}/tokens") for name in line["terms"])
        assert any(name.endswith(f"{part}/error") for name in line["metrics"])
    code, said = bevkd("ablate", "toy_method+toy_echo", "--list")
    assert said.startswith("toy_method_no_tokens\tAnchor logits alone.\t")


def test_run_eval_and_report(bevkd, tmp_path, monkeypatch):
    code, said = bevkd("run", "toy_method", "--dataset", "toy", "--no-baseline", *SHORT)
    assert code == 0
    changes = sha256(b"student_training.steps=2 teacher_training.steps=2").hexdigest()[:6]
    run = tmp_path / "runs" / f"toy_method-toy-{changes}"
    assert f"report: runs/{run.name}/report/index.html" in said
    assert list(RunFolder(run).read()["stages"]["0"]) == ["teacher", "distilled"]

    (run / "report" / "index.html").unlink()
    code, said = bevkd("report", str(run), "--gpus", "0")
    assert code == 0
    assert (run / "report" / "index.html").is_file()

    code, said = bevkd("eval", str(run), "--gpus", "0")
    assert code == 0
    assert "student distilled: AP" in said
    code, said = bevkd("eval", str(run), "--gpus", "0", "--submission", str(tmp_path / "submissions"))
    assert code == 2
    assert "no official submission" in said

    monkeypatch.chdir(run)
    stages = sorted(path.name for path in (tmp_path / "runs" / ".stages").iterdir())
    code, said = bevkd("run", "--from", "config.yaml")
    assert code == 0
    assert said.count("trained before") == 2
    assert sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) == sorted(
        ("config.yaml", "environment.json", "run.json", "report")
    )
    assert sorted(path.name for path in (tmp_path / "runs" / ".stages").iterdir()) == stages


@pytest.mark.parametrize("verb", ["eval", "report"])
def test_what_is_not_there_is_one_message(bevkd, tmp_path, verb):
    for flags in ((), ("--data-root", "x"), ("--engine", "devkit")) if verb == "eval" else ((),):
        code, said = bevkd(verb, str(tmp_path / "s.json"), *flags)
        assert code == 2
        assert f"{tmp_path / 's.json'} " in said
        assert "leave out" not in said


@pytest.mark.parametrize("verb", ["eval", "report"])
def test_a_folder_that_is_no_run_is_one_message(bevkd, tmp_path, verb):
    code, said = bevkd(verb, str(tmp_path))
    assert code == 2
    assert "is not a run" in said


def test_train_prints_the_folder_of_its_stage(bevkd, toy, tmp_path):
    code, said = bevkd("train", "toy_method", "--recipe", str(toy), "--arm", "teacher", "--seed", "1", *SHORT)
    assert code == 0
    stage = tmp_path / said.splitlines()[-1]
    assert stage.parent == tmp_path / "runs" / ".stages"
    assert json.loads((stage / "trained.json").read_text())["steps"] == 2
    code, said = bevkd("train", "toy_method", "--recipe", str(toy), "--arm", "pupil", *SHORT)
    assert code == 2
    assert "no arm is called `pupil`" in said


def test_ablate_lists_and_trains_the_methods_own(bevkd, tmp_path):
    code, said = bevkd("ablate", "toy_method", "--list")
    assert (code, said) == (0, "no_tokens\tAnchor logits alone.\tbig to small, no tokens: toys: AP 12.3\n")
    code, said = bevkd("ablate", "toy_method", "--dataset", "toy", "--out", "runs/rows", *SHORT)
    assert code == 0
    assert list(RunFolder(tmp_path / "runs" / "rows").read()["stages"]["0"]) == [
        "teacher",
        "baseline",
        "distilled",
        "no_tokens",
    ]
    code, said = bevkd("ablate", "toy_method", "on", "--dataset", "toy", "--out", "runs/more", *SHORT)
    assert code == 2
    assert "has no ablation `on`" in said


def test_an_ablation_has_a_folder_beside_the_runs(bevkd, monkeypatch):
    asked = []
    monkeypatch.setattr(verbs, "_experiment", lambda recipe, request, gpus, jobs: asked.append(request))
    assert bevkd("ablate", "toy_method", "--dataset", "toy")[0] == 0
    assert bevkd("run", "toy_method", "--dataset", "toy", "--seeds", "2")[0] == 0
    ablation, run = asked
    assert str(ablation.out) == "runs/toy_method-toy-ablation"
    assert (ablation.ablations, ablation.controls, ablation.seeds) == (("no_tokens",), False, (0,))
    assert str(run.out) == "runs/toy_method-toy"
    assert (run.ablations, run.controls, run.seeds) == ((), True, (0, 1))


@pytest.mark.parametrize("command", [("run", "toy_method", "--dataset", "toy"), ("eval", ".")])
def test_several_gpus_start_the_command_once_each(bevkd, monkeypatch, command):
    class StartedError(Exception):
        pass

    def execv(program, arguments):
        assert program == arguments[0]
        raise StartedError(arguments[1:])

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr("os.execv", execv)
    monkeypatch.setattr("sys.argv", ["bevkd", *command])
    with pytest.raises(StartedError) as started:
        main((*command, "--gpus", "2"))
    started_with = started.value.args[0]
    assert started_with[:2] == ["-m", "bevkd.launcher"]
    assert "--nproc-per-node=2" in started_with
    assert started_with[-2 - len(command) :] == ["-m", "bevkd", *command]


def test_a_report_is_written_by_one_process(bevkd):
    code, err = bevkd("report", "runs", "--gpus", "2")
    assert code == 2
    assert "--gpus 2: one process writes a report; set 0 or 1, or leave it out" in err


def test_only_the_first_process_speaks_and_reports(monkeypatch, tmp_path):
    from bevkd_common.progress import SilentReporter

    monkeypatch.setenv("LOCAL_RANK", "1")
    assert isinstance(progress_reporter(), SilentReporter)

    class Second:
        is_main_process = False

    monkeypatch.setattr(verbs, "accelerator_of", lambda gpus: Second())
    verbs._write_report(RunFolder(tmp_path), None)
    assert list(tmp_path.iterdir()) == []
