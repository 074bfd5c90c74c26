import importlib.metadata
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bevkd_common.config.detectors.bevdet import BevDetConfig
from bevkd_common.config.reading.loading import load_recipe
from bevkd_common.data.needs import DataNeeds
from bevkd_common.engine.checkpoint import load_file, save_weights
from bevkd_common.errors import UserError
from bevkd_common.experiment import identity, scoring, training
from bevkd_common.experiment.arms import baseline_arm, distilled_arm, teacher_arm
from bevkd_common.experiment.build import parameter_count
from bevkd_common.experiment.execution import run_seed
from bevkd_common.experiment.identity import arm_stage, pretraining_stage
from bevkd_common.experiment.plan import plan_lines
from bevkd_common.experiment.scoring import score
from bevkd_common.experiment.stages import stage_weights
from bevkd_common.experiment.training import adopt, train_arm
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.detector import Detections
from torch.nn.functional import pad


def baseline_fingerprint(lab):
    return arm_stage(lab, baseline_arm(lab.recipe), None).fingerprint


def distilled_fingerprint(lab):
    return arm_stage(lab, distilled_arm(lab.recipe), arm_stage(lab, teacher_arm(lab.recipe), None)).fingerprint


def test_everything_that_determines_a_stage_changes_its_fingerprint(make_lab, monkeypatch):
    reference = baseline_fingerprint(make_lab())
    assert baseline_fingerprint(make_lab()) == reference
    # The world seed, hence the data, is the same for both seeds here.
    same_world = "world_seeds=[5, 5]"
    assert baseline_fingerprint(make_lab(same_world)) == reference
    assert baseline_fingerprint(make_lab(same_world, seed=1)) != reference
    for override in ("student.channels=3", "student_training.batch=8", "dataset.samples=13", "world_seeds=[6, 6]"):
        assert baseline_fingerprint(make_lab(override)) != reference, override
    for override in ("teacher.channels=9", "method.weight=2.0", "evaluation.batch=2"):
        assert baseline_fingerprint(make_lab(override)) == reference, override
    monkeypatch.setattr(identity, "source_hash", lambda modules: "other sources")
    assert baseline_fingerprint(make_lab()) != reference


@pytest.mark.parametrize("package", identity.COMPUTING_PACKAGES)
def test_another_version_of_a_package_that_computes_is_another_stage(make_lab, monkeypatch, package):
    reference = baseline_fingerprint(make_lab())
    installed = importlib.metadata.version
    monkeypatch.setattr(
        identity.importlib.metadata, "version", lambda name: "0" if name == package else installed(name)
    )
    assert baseline_fingerprint(make_lab()) != reference


def test_the_content_of_pretrained_weights_is_part_of_a_stage(tmp_path):
    weights = tmp_path / "resnet.pth"
    weights.write_bytes(b"one")
    config = BevDetConfig.model_validate({"image_backbone": {"kind": "timm", "weights": str(weights)}})
    assert dict(identity._files(config)) == {"image_backbone.weights": weights}
    first = identity._content(weights)
    weights.write_bytes(b"two, longer")
    assert identity._content(weights) != first
    assert dict(identity._files(BevDetConfig())) == {}


def test_a_distilled_stage_stands_on_its_teacher(make_lab):
    reference = distilled_fingerprint(make_lab())
    for override in ("teacher.channels=9", "teacher_training.steps=5", "method.weight=2.0"):
        assert distilled_fingerprint(make_lab(override)) != reference, override
    assert distilled_fingerprint(make_lab("evaluation.batch=2")) == reference
    assert reference != baseline_fingerprint(make_lab())


def test_a_stage_trained_before_is_taken(make_lab, reporter):
    lab = make_lab()
    arm = baseline_arm(lab.recipe)
    stage = arm_stage(lab, arm, None)
    trained = train_arm(lab, arm, stage, None)
    assert trained["steps"] == 3
    assert (
        trained["parameters"] == 4 * 9 + 8 + 4 * 4 * 9 + 4 + 4 * 4 + 4 + 4 * 14 + 14
    )  # reader, norm, map, two head maps
    before = stage_weights(stage.folder)["raw"].stat().st_mtime_ns
    assert train_arm(make_lab(), arm, stage, None) == trained
    assert stage_weights(stage.folder)["raw"].stat().st_mtime_ns == before
    assert reporter.said == [f"student alone: trained before, taken from {stage.folder.name}"]
    assert json.loads((stage.folder / "inputs.json").read_text())["seed"] == 0


def both(reporter, original, calls):
    """`original`, which does not go on until another experiment has said that it waits."""

    def waited_for(*args, **kwargs):
        calls.append(1)
        until = time.monotonic() + 60
        while not any("waiting until it is done" in said for said in reporter.said):
            assert time.monotonic() < until, "nobody waits"
            time.sleep(0.01)
        return original(*args, **kwargs)

    return waited_for


def test_of_two_experiments_that_need_a_stage_one_trains_and_scores_it(make_lab, reporter, monkeypatch):
    lab = make_lab()
    arm = baseline_arm(lab.recipe)
    stage = arm_stage(lab, arm, None)
    for module, name, work in (
        (training, "train", lambda: train_arm(lab, arm, stage, None)),
        (scoring, "evaluate", lambda: score(lab, arm, stage.folder)),
    ):
        calls = []
        reporter.said.clear()
        monkeypatch.setattr(module, name, both(reporter, getattr(module, name), calls))
        with ThreadPoolExecutor(2) as pool:
            first, second = (pool.submit(work) for _ in range(2))
        assert first.result() == second.result()
        assert len(calls) == {"train": 1, "evaluate": 2}[name]  # raw weights, and averaged ones
        assert f"another process works in {stage.folder}: waiting until it is done" in reporter.said


def test_boxes_of_impossible_size_are_dropped_counted_and_their_detector_is_named(make_lab, reporter, monkeypatch):
    lab = make_lab()
    arm = baseline_arm(lab.recipe)
    stage = arm_stage(lab, arm, None)
    train_arm(lab, arm, stage, None)
    from bevkd_toy.detector import ToyDetector

    original = ToyDetector.decode

    def diverged(self, outputs, batch):
        found = original(self, outputs, batch)
        row = torch.tensor([[0.0, 0, 0, 1, 0, 1, 0, 0, 0]])[:, : found[0].boxes.tensor.shape[1]]
        return [
            Detections(Boxes(torch.cat([row, one.boxes.tensor])), pad(one.scores, (1, 0)), pad(one.labels, (1, 0)))
            for one in found
        ]

    sound = score(lab, arm, stage.folder)
    monkeypatch.setattr(ToyDetector, "decode", diverged)
    scores = score(lab, arm, stage.folder, again=True)
    samples = len(lab.dataset.source("val", DataNeeds()))
    assert scores.results == sound.results
    assert scores.notes == (
        f"{samples} predicted boxes without a finite position and a positive size were dropped",
    )
    assert f"scoring student alone, seed 0: {scores.notes[0]}" in reporter.said
    assert score(lab, arm, stage.folder).notes == scores.notes


def test_scores_are_kept_until_the_evaluation_changes(make_lab, monkeypatch):
    lab = make_lab()
    arm = baseline_arm(lab.recipe)
    stage = arm_stage(lab, arm, None)
    train_arm(lab, arm, stage, None)
    calls = []
    original = scoring.evaluate
    monkeypatch.setattr(scoring, "evaluate", lambda *args, **kwargs: (calls.append(1), original(*args, **kwargs)))
    scores = score(lab, arm, stage.folder)
    assert scores.primary == "ema"
    assert set(scores.results) == {"raw", "ema"}
    assert len(calls) == 2
    assert score(lab, arm, stage.folder) == scores
    assert len(calls) == 2
    assert score(lab, arm, stage.folder, again=True) == scores
    assert len(calls) == 4
    monkeypatch.setattr(identity, "source_hash", lambda modules: "other sources")
    score(lab, arm, stage.folder)
    assert len(calls) == 6


def test_arms_start_from_the_same_weights_and_the_method_is_kept(make_lab):
    lab = make_lab("student_training.ema=null")
    stages = dict(run_seed(lab, lab.recipe, [baseline_arm(lab.recipe), distilled_arm(lab.recipe)]))
    assert list(stages) == ["teacher", "baseline", "distilled"]
    assert set(stage_weights(stages["baseline"].folder)) == {"raw"}
    assert set(stage_weights(stages["distilled"].folder)) == {"raw", "method"}
    teacher = lab.detector(lab.recipe.teacher, stages["teacher"].folder)
    student = lab.detector(lab.recipe.student, stages["distilled"].folder)
    method = lab.method(lab.recipe.method, stages["distilled"].folder, teacher, student)
    saved = load_file(stage_weights(stages["distilled"].folder)["method"])
    assert torch.equal(method.adapter.weight, saved["adapter.weight"])
    assert not method.training
    assert not student.training


PRETRAINED = "student_pretraining={steps: 2, batch: 4, optimizer: {lr: 0.1}}"
PRETRAINABLE = "student={kind: toy_pretrainable, channels: 4}"


def test_every_arm_of_the_student_starts_from_the_same_trained_part(make_lab, reporter, monkeypatch):
    started = []
    original = training.train

    def watched(task, *args, **kwargs):
        started.append((kwargs["title"], {k: v.clone() for k, v in task.detector.state_dict().items()}))
        return original(task, *args, **kwargs)

    monkeypatch.setattr(training, "train", watched)
    lab = make_lab(PRETRAINABLE, PRETRAINED)
    arms = [baseline_arm(lab.recipe), distilled_arm(lab.recipe)]
    stages = dict(run_seed(lab, lab.recipe, arms))
    titles = ["teacher (big)", "student pretraining", "student alone", "student distilled"]
    assert [title for title, _ in started] == [f"{title}, seed 0" for title in titles]
    first = pretraining_stage(lab, lab.recipe.student, lab.recipe.student_pretraining)
    assert first.folder.name.startswith("pretraining-")
    assert set(stage_weights(first.folder)) == {"raw", "objective"}
    saved = load_file(stage_weights(first.folder)["raw"])
    (_, random), (_, alone), (_, distilled) = started[1:]
    assert len(saved) == len(alone) == len(distilled) == 12
    assert all(
        torch.equal(alone[name], saved[name]) and torch.equal(distilled[name], saved[name]) for name in saved
    )
    changed = {name for name in saved if not torch.equal(saved[name], random[name])}
    assert {name.partition(".")[0] for name in changed} == {"reader"}
    assert list(stages) == ["teacher", "pretraining", "baseline", "distilled"]
    assert stages["pretraining"].folder == first.folder
    assert json.loads((stages["baseline"].folder / "inputs.json").read_text())["pretrained"] == first.fingerprint


def test_a_trained_part_belongs_to_what_determines_a_student(make_lab):
    reference = baseline_fingerprint(make_lab(PRETRAINABLE, PRETRAINED))
    assert baseline_fingerprint(make_lab(PRETRAINABLE)) != reference
    assert baseline_fingerprint(make_lab(PRETRAINABLE, PRETRAINED, "student_pretraining.steps=3")) != reference
    assert baseline_fingerprint(make_lab(PRETRAINABLE, PRETRAINED, "evaluation.batch=2")) == reference
    teachers = [
        arm_stage(lab, teacher_arm(lab.recipe), None) for lab in (make_lab(), make_lab(PRETRAINABLE, PRETRAINED))
    ]
    assert teachers[0].fingerprint == teachers[1].fingerprint


def test_weights_of_another_width_are_refused(make_lab):
    lab = make_lab()
    arm = baseline_arm(lab.recipe)
    stage = arm_stage(lab, arm, None)
    train_arm(lab, arm, stage, None)
    with pytest.raises(UserError, match="another architecture"):
        lab.detector(lab.recipe.teacher, stage.folder)


@pytest.fixture
def checkpoint(make_lab, tmp_path):
    lab = make_lab()
    arm = teacher_arm(lab.recipe)
    stage = arm_stage(lab, arm, None)
    train_arm(lab, arm, stage, None)
    return stage_weights(stage.folder)["raw"].rename(tmp_path / "teacher.safetensors")


def loaded(recipe, checkpoint):
    return recipe.model_copy(update={"teacher_training": None, "teacher_checkpoint": checkpoint})


def test_a_teacher_is_loaded_from_a_file(make_lab, make_recipe, checkpoint, reporter):
    lab = make_lab(recipe=loaded(make_recipe(), checkpoint))
    stages = dict(run_seed(lab, lab.recipe, [distilled_arm(lab.recipe)]))
    adopted = load_file(stage_weights(stages["teacher"].folder)["raw"])
    expected = load_file(checkpoint)
    assert len(expected) == 12
    assert all(torch.equal(adopted[name], value) for name, value in expected.items())
    teacher = lab.detector(lab.recipe.teacher, stages["teacher"].folder)
    assert stages["teacher"].trained == {
        "steps": 0,
        "seconds": 0.0,
        "step_s": 0.0,
        "parameters": parameter_count(teacher),
    }
    assert any(line.startswith("teacher (big): AP") for line in reporter.said)
    again = adopt(lab, teacher_arm(lab.recipe), stages["teacher"], checkpoint)
    assert again == stages["teacher"].trained


def test_another_file_is_another_teacher(make_lab, make_recipe, checkpoint):
    recipe = loaded(make_recipe(), checkpoint)
    lab = make_lab(recipe=recipe)
    before = arm_stage(lab, teacher_arm(recipe), None).fingerprint
    checkpoint.write_bytes(checkpoint.read_bytes() + b" ")
    assert arm_stage(lab, teacher_arm(recipe), None).fingerprint != before


def test_a_file_goes_before_a_training_and_the_plan_says_so(make_recipe, checkpoint):
    recipe = make_recipe(f"teacher_checkpoint={checkpoint}")
    assert recipe.teacher_training is not None
    line = plan_lines(recipe, [distilled_arm(recipe)], [0], 1)[2]
    assert line.endswith(f"parameters; loaded from {checkpoint}")


@pytest.fixture
def finished(checkpoint):
    """Overrides for a teacher that comes with the weights of a file."""
    teacher = json.dumps({"kind": "toy_finished", "channels": 16, "weights": str(checkpoint)})
    return (f"teacher={teacher}", "teacher_training=null")


def test_a_finished_teacher_is_taken_as_it_is(make_lab, toy, checkpoint, finished, reporter):
    recipe = load_recipe(toy, (*finished, "student_training.steps=3"))
    assert plan_lines(recipe, [distilled_arm(recipe)], [0], 1)[2].endswith("parameters; pretrained")
    lab = make_lab(recipe=recipe)
    stages = dict(run_seed(lab, recipe, [distilled_arm(recipe)]))
    adopted, expected = load_file(stage_weights(stages["teacher"].folder)["raw"]), load_file(checkpoint)
    assert len(adopted) == 12
    assert all(torch.equal(adopted[name], value) for name, value in expected.items())
    assert stages["teacher"].trained["steps"] == 0
    assert stages["distilled"].trained["steps"] == 3
    assert any(line.startswith("teacher (big): AP") for line in reporter.said)


def test_another_file_is_another_finished_teacher(make_lab, toy, checkpoint, finished):
    recipe = load_recipe(toy, (*finished, "student_training.steps=3"))
    lab = make_lab(recipe=recipe)
    before = arm_stage(lab, teacher_arm(recipe), None).fingerprint
    checkpoint.write_bytes(checkpoint.read_bytes() + b" ")
    assert arm_stage(lab, teacher_arm(recipe), None).fingerprint != before
    checkpoint.unlink()
    with pytest.raises(UserError, match=r"teacher\.safetensors cannot be read"):
        arm_stage(lab, teacher_arm(recipe), None)


def test_a_file_that_does_not_fit_names_the_keys(make_lab, make_recipe, checkpoint):
    recipe = loaded(make_recipe("teacher.channels=9"), checkpoint)
    with pytest.raises(UserError, match=r"bev.weight is \(16, 16, 3, 3\), wanted \(9, 9, 3, 3\)"):
        dict(run_seed(make_lab(recipe=recipe), recipe, []))


def test_an_imported_file_is_a_teacher_only_for_its_own_settings(make_lab, make_recipe, checkpoint, reporter):
    config = make_recipe().teacher
    weights = load_file(checkpoint)
    about = {"detector": json.dumps(config.model_dump(mode="json"))}
    save_weights(checkpoint, weights, kind="raw", architecture="", step=0, about=about)
    lab = make_lab(recipe=loaded(make_recipe(), checkpoint))
    stages = dict(run_seed(lab, lab.recipe, []))
    assert any(line.startswith("teacher (big): AP") for line in reporter.said)
    assert load_file(stage_weights(stages["teacher"].folder)["raw"]).keys() == weights.keys()
    about["detector"] = json.dumps(config.model_dump(mode="json") | {"sweeps": 3})
    save_weights(checkpoint, weights, kind="raw", architecture="", step=0, about=about)
    with pytest.raises(UserError, match="was imported with `sweeps` 3, not null: use these settings"):
        dict(run_seed(lab, lab.recipe, []))


def test_a_teacher_of_other_settings_and_equal_shapes_is_said(make_lab, make_recipe, checkpoint, reporter):
    save_weights(checkpoint, load_file(checkpoint), kind="raw", architecture="another", step=4)
    lab = make_lab(recipe=loaded(make_recipe(), checkpoint))
    dict(run_seed(lab, lab.recipe, []))
    assert any("was trained under other settings of the teacher; its shapes fit" in line for line in reporter.said)


def test_a_file_that_is_not_there_is_one_sentence(make_lab, make_recipe, tmp_path):
    recipe = loaded(make_recipe(), tmp_path / "nowhere.safetensors")
    with pytest.raises(UserError, match=r"nowhere\.safetensors cannot be read"):
        dict(run_seed(make_lab(recipe=recipe), recipe, []))
