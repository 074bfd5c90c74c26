"""The README's experiment at its smallest: every stage and the report, on a world of a few frames."""

import json

import pytest
from bevkd.app import main

SMALL = [
    "dataset.world.train_scenes=2",
    "dataset.world.val_scenes=2",
    "dataset.world.keyframes_per_scene=2",
    "dataset.world.lidar_azimuths=180",
    "teacher_training.steps=3",
    "student_training.steps=3",
    "student_pretraining.steps=3",
    "evaluation.bootstrap=20",
]


@pytest.fixture
def bevkd(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert not stop.value.code, capsys.readouterr()
        return capsys.readouterr().out

    return call


def test_the_readme_experiment(bevkd, tmp_path):
    flags = ["run", "distillbev", "--teacher", "mvp", "--student", "bevformer", "--out", "runs/smoke"]
    overrides = [part for value in SMALL for part in ("--set", value)]
    printed = bevkd(*flags, *overrides)
    assert "M parameters; 3 steps, batch 2" in printed
    report = json.loads((tmp_path / "runs" / "smoke" / "report" / "report.json").read_text())
    assert list(report["arms"]) == ["teacher", "baseline", "distilled"]
    assert report["synthetic"] is True
    assert len(report["departures"]) >= 3
    assert set(report["gain_over_baseline"]) == {"mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE"}
    # The teacher reads one sweep, the student two key frames: the velocity of the teacher cannot be observed.
    observed = {name: arm["headline"]["mAVE"] is not None for name, arm in report["arms"].items()}
    assert observed == {"teacher": False, "baseline": True, "distilled": True}
    page = (tmp_path / "runs" / "smoke" / "report" / "index.html").read_text()
    assert page.count("data:image/png") >= 9
    assert "SYNTHETIC DATA" in page

    repeated = bevkd(*flags, *overrides)
    assert repeated.count("trained before") == 3
    again = bevkd("run", "--from", "runs/smoke/config.yaml")
    assert again.count("trained before") == 3
    assert [path.name for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")] == ["smoke"]

    bevkd("eval", "runs/smoke", "--submission", "submissions")
    written = sorted(path.name for path in (tmp_path / "submissions").iterdir())
    assert written == ["baseline-seed0.json", "distilled-seed0.json", "teacher-seed0.json"]
    submission = json.loads((tmp_path / "submissions" / "teacher-seed0.json").read_text())
    assert submission["meta"]["use_lidar"] is True
    assert submission["meta"]["use_camera"] is True
    assert len(submission["results"]) == 4


def test_a_plan_measures_every_training_and_keeps_nothing(bevkd, tmp_path):
    overrides = [part for value in SMALL for part in ("--set", value)]
    printed = bevkd("run", "distillbev", "--teacher", "centerpoint", "--student", "bevdet", "--plan", *overrides)
    rows = [line.split("\t") for line in printed.splitlines() if "\t" in line]
    assert [row[0] for row in rows] == ["teacher", "pretraining", "baseline", "distilled"]
    for _, steps, step, data, hours, memory, checkpoint, fits in rows:
        assert steps == "3"
        assert 0 < float(data) < float(step)
        assert float(hours) == pytest.approx(3 * float(step) / 3600, abs=0.01)
        assert 0.3 < float(memory) < 20
        assert 0.001 < float(checkpoint) < 0.1
        assert fits == "yes"
    assert "hours of training for 1 seeds" in printed
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".data"]


@pytest.mark.parametrize("student", ["bevdet4d", "bevdepth"])
def test_students_with_an_earlier_frame(bevkd, tmp_path, student):
    overrides = [part for value in SMALL for part in ("--set", value)]
    flags = ["run", "distillbev", "--teacher", "centerpoint", "--student", student, "--out", "runs/four"]
    printed = bevkd(*flags, *overrides)
    assert "and a frame 0.4 to 0.6 s before" in printed
    report = json.loads((tmp_path / "runs" / "four" / "report" / "report.json").read_text())
    assert list(report["arms"]) == ["teacher", "baseline", "distilled"]
    bevkd("eval", "runs/four", "--submission", "submissions")
    submission = json.loads((tmp_path / "submissions" / "distilled-seed0.json").read_text())
    assert submission["meta"]["use_camera"] is True
