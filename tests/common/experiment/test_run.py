import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from bevkd_common.config.reading.loading import dump, load_recipe
from bevkd_common.engine.checkpoint import load_file
from bevkd_common.errors import UserError
from bevkd_common.experiment.capacity import Capacity, available_cores
from bevkd_common.experiment.execution import train_job, train_one
from bevkd_common.experiment.finished import OtherSplit, open_run, score_again, write_submissions
from bevkd_common.experiment.graph import Job
from bevkd_common.experiment.record import CONFIG, RunFolder
from bevkd_common.experiment.reporting import report_input
from bevkd_common.experiment.request import student_arms
from bevkd_common.experiment.run import run_experiment
from bevkd_common.experiment.stages import STAGES, stage_weights
from bevkd_common.progress import SilentReporter
from bevkd_common.report.render import write_report

PRETRAINED = (
    "student={kind: toy_pretrainable, channels: 4}",
    "student_pretraining={steps: 2, batch: 4, optimizer: {lr: 0.1}}",
)


def test_two_seeds_with_controls_from_data_to_report(
    make_recipe, request_for, reporter, accelerator, tmp_path, monkeypatch
):
    recipe = make_recipe()
    folder = run_experiment(recipe, request_for(seeds=(0, 1), controls=True), reporter, accelerator)
    record = folder.read()
    arms = ["teacher", "baseline", "distilled", "baseline_double_steps", "baseline_equal_time", "no_imitation"]
    assert {seed: list(stages) for seed, stages in record["stages"].items()} == {"0": arms, "1": arms}
    assert all(re.fullmatch("[0-9a-f]{64}", content) for content in record["data"].values())
    assert len(set(record["data"].values())) == 2
    assert record["method"] == "toy_method"
    assert record["data_root"] is None
    assert [line.split()[0] for line in record["plan"]] == [
        "method",
        "data",
        "teacher",
        "student",
        "arms",
        "seeds",
        "stages",
    ]
    assert reporter.said[: len(record["plan"])] == record["plan"]
    # An arm of equal time may come out as another baseline of as many steps, and is then the same stage.
    stages = [
        by_arm[name] for by_arm in record["stages"].values() for name in by_arm if name != "baseline_equal_time"
    ]
    assert len(set(stages)) == len(stages) == 10

    monkeypatch.setattr("bevkd_toy.data.ToyEvaluator.findings", lambda self, results: ["Compare the axes."])
    shown = report_input(folder, reporter, accelerator)
    assert [arm.role for arm in shown.arms] == ["teacher", "baseline", "distilled", *["control"] * 3]
    assert all(set(arm.runs) == {0, 1} for arm in shown.arms)
    assert {arm.name: arm.runs[0].steps for arm in shown.arms}["baseline_double_steps"] == 6
    assert set(shown.arms[1].runs[0].other_results) == {"raw"}
    assert shown.arms[1].runs[0].curve[-1]["step"] == 3
    changed, *others = shown.warnings
    assert changed.startswith("Settings differ from toy_method/")
    assert "teacher_training.steps = 4, student_training.steps = 3" in changed
    assert others[0] == "teacher (big), seed 0: Compare the axes."
    assert len(others) == 12
    assert shown.environment["data, seed 1"] == record["data"]["1"]
    assert [panel.title for panel in shown.panels] == ["tokens"]
    assert [len(scene.detections) for scene in shown.scenes] == [3, 3]
    assert len({scene.token for scene in shown.scenes}) == 2
    assert shown.scenes[0].extent == (-4.0, 4.0, -4.0, 4.0)
    assert shown.scenes[0].images is None
    assert len(shown.scenes[0].points) == 60 + 2 * 40
    assert write_report(shown, tmp_path / "report").is_file()


def weights(folder, stages):
    found = {name: stage_weights(folder.root / STAGES / stage)["raw"] for name, stage in stages.items()}
    return {name: load_file(path) for name, path in found.items()}


@pytest.fixture
def threads_of_a_job():
    """As many threads as each of two stages side by side has: sums are rounded in another order with others."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(available_cores() // 2, 1))
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_of_a_job")
def test_stages_side_by_side_train_the_same_weights(
    monkeypatch, make_recipe, request_for, reporter, accelerator, tmp_path
):
    """The processes find the toy package through the path of this one."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    recipe = make_recipe(*PRETRAINED)
    asked = {"seeds": (0,)}
    alone = run_experiment(recipe, request_for(**asked), SilentReporter(), accelerator)
    beside = run_experiment(
        recipe, request_for(**asked, out=tmp_path / "others" / "try"), reporter, accelerator, jobs=2
    )
    assert any(re.fullmatch(r"stages   4, up to 2 side by side, .* each", line) for line in reporter.said)
    compared = 0
    for seed, stages in alone.read()["stages"].items():
        found = beside.read()["stages"][seed]
        assert list(found) == list(stages)
        assert found == stages
        expected, others = weights(alone, stages), weights(beside, stages)
        for name, tensors in expected.items():
            assert all(torch.equal(others[name][key], value) for key, value in tensors.items())
            compared += len(tensors)
    assert compared == 4 * 12
    record = json.loads((beside.root / STAGES / found["baseline"] / "trained.json").read_text())
    assert record["side_by_side"] == 2
    assert record["memory"] > 1e8
    warnings = report_input(beside, reporter, accelerator).warnings
    assert sum(line.endswith("up to 2 stages side by side.") for line in warnings) == 3
    reporter.said.clear()
    again = run_experiment(recipe, request_for(**asked, out=beside.path), reporter, accelerator, jobs=2)
    assert again.read() == beside.read() | {"plan": again.read()["plan"]}
    assert sum("trained before" in line for line in reporter.said) == 3


def test_a_process_with_other_sources_than_the_run_trains_nothing(make_recipe, request_for, reporter):
    request = request_for()
    RunFolder(request.out).open(dump(make_recipe()), restart=False)
    asked = Job(
        key="teacher-seed0",
        title="teacher, seed 0",
        parents=(),
        recipe=request.out / CONFIG,
        out=request.out,
        data_root=None,
        arm="teacher",
        seed=0,
        fingerprint="0" * 64,
    )
    with pytest.raises(UserError, match="source code or the data changed since the run started"):
        train_job(Capacity(), asked, reporter)
    assert not list(request.out.parent.glob(f"{STAGES}/*"))
    train_job(Capacity(), replace(asked, fingerprint=None), reporter)
    assert len(list(request.out.parent.glob(f"{STAGES}/teacher-*/trained.json"))) == 1


def test_an_error_beside_another_stage_is_one_sentence(make_recipe, request_for, reporter, accelerator):
    recipe = make_recipe(
        "teacher_training.workers=0", "student_training.optimizer.lr=1e30", "student_training.steps=9"
    )
    with pytest.raises(UserError, match=r"^baseline, seed 0: the loss is not finite at step"):
        run_experiment(recipe, request_for(), reporter, accelerator, jobs=2)


def test_what_the_student_learns_first_is_in_the_plan_and_among_the_departures(
    make_recipe, request_for, reporter, accelerator
):
    recipe = make_recipe(*PRETRAINED)
    folder = run_experiment(recipe, request_for(), reporter, accelerator)
    learned = "the number of points of each pillar"
    assert list(folder.read()["stages"]["0"]) == ["teacher", "pretraining", "baseline", "distilled"]
    assert any(f"student pretraining: {learned}; 2 steps, batch 4 =" in line for line in folder.read()["plan"])
    (departure,) = report_input(folder, reporter, accelerator).departures
    assert learned in departure
    assert "In every arm" in departure


def test_a_learning_rate_for_no_module_stops_before_the_data(make_recipe, request_for, reporter, accelerator):
    recipe = make_recipe("student_training.optimizer.lr_factors={readers: 0.1}")
    request = request_for()
    with pytest.raises(UserError, match="did you mean `reader`"):
        run_experiment(recipe, request, reporter, accelerator)
    assert not request.out.exists()


def test_without_baseline_and_with_an_ablation(make_recipe, request_for, reporter, accelerator):
    request = request_for(baseline=False, ablations=("no_tokens",))
    folder = run_experiment(make_recipe(), request, reporter, accelerator)
    assert list(folder.read()["stages"]["0"]) == ["teacher", "distilled", "no_tokens"]
    shown = report_input(folder, reporter, accelerator)
    assert [arm.name for arm in shown.arms] == ["teacher", "distilled", "no_tokens"]
    assert shown.arms[2].summary == "Anchor logits alone. Published: big to small, no tokens, toys: AP 12.3."


def test_equal_time_needs_the_baseline(make_recipe, request_for, reporter, accelerator):
    with pytest.raises(UserError, match="--no-baseline"):
        run_experiment(make_recipe(), request_for(baseline=False, controls=True), reporter, accelerator)


def test_an_unknown_ablation_names_the_choices(make_recipe, request_for):
    with pytest.raises(UserError, match="toy_method has no ablation `on`: choose from no_tokens"):
        student_arms(make_recipe(), request_for(ablations=("on",)))


def test_a_run_is_scored_again_and_has_no_submission(make_recipe, request_for, reporter, accelerator, tmp_path):
    folder = run_experiment(make_recipe(), request_for(), reporter, accelerator)
    run = open_run(folder, reporter, accelerator)
    before = {name: (path / "results.json").read_text() for name, path in run.stages[0].items()}
    for path in run.stages[0].values():
        (path / "results.json").unlink()
    reporter.said.clear()
    score_again(folder, reporter, accelerator)
    assert [line.partition(":")[0] for line in reporter.said] == [
        "teacher (big)",
        "student alone",
        "student distilled",
    ]
    assert {name: (path / "results.json").read_text() for name, path in run.stages[0].items()} == before
    with pytest.raises(UserError, match="toy_data has no official submission"):
        write_submissions(folder, reporter, accelerator, tmp_path / "submissions")
    assert not (tmp_path / "submissions").exists()


class _Hits:
    """A submission that counts."""

    def __init__(self):
        self.samples = 0

    def update(self, batch, detections):
        self.samples += len(detections)

    def content(self):
        return {"samples": self.samples}


def test_the_submission_of_each_model_is_written(
    make_recipe, request_for, reporter, accelerator, tmp_path, monkeypatch
):
    folder = run_experiment(make_recipe(), request_for(), reporter, accelerator)
    monkeypatch.setattr("bevkd_common.experiment.scoring.build_submission", lambda *_: _Hits())
    write_submissions(folder, reporter, accelerator, tmp_path / "submissions")
    written = {path.name: json.loads(path.read_text()) for path in (tmp_path / "submissions").iterdir()}
    assert written == {f"{arm}-seed0.json": {"samples": 12} for arm in ("teacher", "baseline", "distilled")}
    with pytest.raises(UserError, match="toy_data data have no split 'test'"):
        write_submissions(folder, reporter, accelerator, tmp_path / "other", OtherSplit("test"))


def test_an_interrupted_run_has_no_report_yet(make_recipe, request_for, reporter, accelerator):
    folder = run_experiment(make_recipe(), request_for(), reporter, accelerator)
    record = folder.read()
    del record["stages"]["0"]["distilled"]
    folder.write(record)
    assert [arm.name for arm in open_run(folder, reporter, accelerator).arms] == ["teacher", "baseline"]
    with pytest.raises(UserError, match=r"not finished.*run it again"):
        report_input(folder, reporter, accelerator)


def test_one_arm_is_trained_and_the_run_takes_it(make_recipe, request_for, reporter, accelerator, tmp_path):
    def train(name):
        return train_one(
            make_recipe(),
            name,
            runs=tmp_path / "runs",
            data_root=None,
            seed=0,
            reporter=reporter,
            accelerator=accelerator,
        )

    folders = {name: train(name).name for name in ("baseline", "teacher", "distilled")}
    assert [name.partition("-")[0] for name in folders.values()] == ["baseline", "teacher", "distilled"]
    folder = run_experiment(make_recipe(), request_for(), reporter, accelerator)
    assert folder.read()["stages"]["0"] == folders
    with pytest.raises(
        UserError,
        match="no arm is called `students`: choose from teacher, baseline, distilled",
    ):
        train("students")


def test_data_that_cannot_be_made_need_a_folder(make_recipe, reporter, accelerator, request_for, monkeypatch):
    from bevkd_toy import specs

    recipe = make_recipe("world_seeds=null")
    monkeypatch.setattr("bevkd_common.experiment.build.dataset_spec", lambda config: _without_seed(specs.DATASET))
    with pytest.raises(UserError, match="--data-root"):
        run_experiment(recipe, request_for(), reporter, accelerator)


def _without_seed(spec):
    from dataclasses import replace

    return replace(spec, seed_key=None)


def test_a_folder_without_a_run_cannot_be_opened(reporter, accelerator, tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        open_run(RunFolder(tmp_path), reporter, accelerator)


def test_another_batch_is_stamped(make_recipe, request_for, reporter, accelerator, toy):
    overrides = ("student_training.batch=6", "student_training.micro_batch=3", "checkpoints.minutes=1")
    folder = run_experiment(make_recipe(*overrides), request_for(), reporter, accelerator)
    stamp, changed, *_ = report_input(folder, reporter, accelerator).warnings
    assert stamp.startswith(
        "Batch changed: student_training.batch is 6, in the shipped recipe 4; the learning rate"
    )
    assert "student_training.micro_batch = 3" in changed
    assert "checkpoints" not in changed


def test_a_recipe_as_it_comes_is_not_stamped(request_for, reporter, accelerator, toy):
    folder = run_experiment(load_recipe(toy), request_for(), reporter, accelerator)
    assert not any("as it comes" in warning for warning in report_input(folder, reporter, accelerator).warnings)


def test_another_split_is_opened_for_a_submission(
    make_recipe, request_for, reporter, accelerator, tmp_path, monkeypatch
):
    folder = run_experiment(make_recipe(), request_for(), reporter, accelerator)
    opened = []

    def build_dataset(config, *, data_root, runs, reporter):
        opened.append((config.samples, config.seed, data_root))
        return open_run(folder, reporter, accelerator).laboratories[0].dataset

    keys = SimpleNamespace(split_keys=("samples", "seed"), kind="toy_data")
    monkeypatch.setattr("bevkd_common.experiment.finished.dataset_spec", lambda _: keys)
    monkeypatch.setattr("bevkd_common.experiment.finished.build_dataset", build_dataset)
    monkeypatch.setattr("bevkd_common.experiment.scoring.build_submission", lambda *_: _Hits())
    out = tmp_path / "out"
    write_submissions(folder, reporter, accelerator, out, OtherSplit("test", "v1.0-test", tmp_path))
    assert opened == [("v1.0-test", "test", tmp_path)]
    assert len(list(out.iterdir())) == 3
