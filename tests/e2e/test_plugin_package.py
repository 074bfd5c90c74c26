"""A package outside the workspace brings its own detector, data set with metric, and method."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SOURCE = Path(__file__).parent / "toy" / "src" / "bevkd_toy"
MOST_LINES = 350


@pytest.fixture
def bevkd(toy_package, tmp_path):
    def call(*arguments, code=0):
        environment = os.environ | {"PYTHONPATH": str(toy_package), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        result = subprocess.run(
            [sys.executable, "-m", "bevkd", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout + result.stderr

    return call


def test_it_is_small():
    files = sorted(path for path in SOURCE.rglob("*") if path.suffix in (".py", ".yaml"))
    lines = [line for path in files for line in path.read_text().splitlines()]
    code = [line for line in lines if line.strip()]
    print(f"{len(files)} files, {len(lines)} lines, {len(code)} of them not blank")  # noqa: T201
    assert len(files) == 9
    assert 250 < len(code) <= MOST_LINES


def test_it_runs_evaluates_and_reports(bevkd, tmp_path):
    listed = bevkd("recipes", "ls")
    assert "toy to toy\ttoy_method\t" in listed
    flags = ("run", "toy_method", "--teacher", "big", "--student", "small", "--dataset", "toy", "--seeds", "2")
    output = bevkd(*flags)
    assert "teacher (big): AP " in output
    run = tmp_path / "runs" / "toy_method-toy"
    record = json.loads((run / "run.json").read_text())
    arms = ["teacher", "baseline", "distilled", "baseline_double_steps", "baseline_equal_time", "no_imitation"]
    assert {seed: list(stages) for seed, stages in record["stages"].items()} == {"0": arms, "1": arms}
    page = (run / "report" / "index.html").read_text()
    assert "synthetic" in page.lower()
    assert "By class" in page
    assert "NDS" not in re.sub(r"base64,[^\"]*", "", page)  # pictures hold any letters

    stage = tmp_path / "runs" / ".stages" / record["stages"]["0"]["distilled"]
    logged = json.loads((stage / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"distillation/tokens", "distillation/logits", "detection/classes"} <= set(logged["terms"])
    assert {"distillation/error", "distillation/imitated", "detection/positives"} <= set(logged["metrics"])
    scored = json.loads((stage / "results.json").read_text())
    assert set(scored["results"]) == {"raw", "ema"}
    assert scored["primary"] == "ema"
    assert scored["results"]["ema"]["groups"] == "samples"
    (stage / "results.json").unlink()
    assert "AP" in bevkd("eval", str(run))
    assert json.loads((stage / "results.json").read_text()) == scored

    world = str(next((tmp_path / "runs" / ".data").iterdir()))
    assert "12 samples, 24 boxes" in bevkd("data", "check", world, "--draw", "drawn")
    assert len(list((tmp_path / "drawn").glob("*-above.png"))) == 3
    assert "have no index" in bevkd("data", "index", world, code=2)

    again = bevkd(*flags)
    assert again.count("trained before") == 2 * len(arms)
    (run / "report" / "index.html").unlink()
    bevkd("report", str(run))
    assert (run / "report" / "index.html").is_file()


def test_another_recipe_under_the_same_name_is_refused(bevkd):
    flags = ("run", "toy_method", "--teacher", "big", "--student", "small", "--dataset", "toy", "--out", "runs/x")
    bevkd(*flags)
    message = bevkd(*flags, "--set", "student_training.steps=5", code=2)
    assert "another recipe" in message
    assert "Traceback" not in message
    bevkd(*flags, "--set", "student_training.steps=5", "--restart")


@pytest.fixture
def toy_data(toy, tmp_path):
    from bevkd_toy import data
    from bevkd_toy.specs import ToyDataConfig

    return data.build(ToyDataConfig(), tmp_path)


def first_batch(dataset, needs, split="train"):
    from bevkd_common.data.samples import collate

    source = dataset.source(split, needs)
    return collate([source.load(index, seed=None) for index in range(len(source))])


def test_the_world_is_made_once_and_again_where_it_is_damaged(toy_data, tmp_path):
    from bevkd_toy import data
    from bevkd_toy.specs import ToyDataConfig

    before = toy_data.fingerprint(None)
    path = toy_data.folder / "val.safetensors"
    made = path.stat().st_mtime_ns
    assert data.build(ToyDataConfig(), tmp_path).fingerprint(None) == before
    assert path.stat().st_mtime_ns == made
    path.write_bytes(path.read_bytes()[:-9])
    assert data.build(ToyDataConfig(), tmp_path).fingerprint(None) == before
    assert data.build(ToyDataConfig(seed=1), tmp_path).fingerprint(None) != before


def test_a_sample_has_one_cloud_and_nothing_that_the_data_lack(toy_data):
    from bevkd_toy.detector import ToyDetector

    batch = first_batch(toy_data, ToyDetector.needs)
    assert list(batch.clouds) == ["lidar"]
    assert batch.cloud("lidar").columns == ("x", "y", "z")
    absent = (batch.cameras, batch.global_T_lidar, batch.timestamp, batch.history, batch.ego, batch.depth)
    assert absent == (None,) * 6
    assert batch.scenes == batch.tokens
    assert batch.boxes.velocity.isnan().all()
    assert batch.valid.all()


def test_every_tap_is_as_it_is_described(toy_data):
    from bevkd_toy.detector import ToyDetector

    detector = ToyDetector(4, toy_data.classes).eval()
    batch = first_batch(toy_data, detector.needs)
    outputs = detector(batch, frozenset(detector.taps))
    assert {
        name: spec.problem(outputs.value(name), len(batch)) for name, spec in detector.taps.items()
    } == dict.fromkeys(("pillars", "bev", "head"))
    assert not detector(batch, frozenset({"pillars"})).head


def test_the_detector_learns_the_boxes(toy_data):
    """A fault in anchors, codes, maps or suppression leaves no detection within a metre."""
    from bevkd_toy.data import ToyEvaluator
    from bevkd_toy.detector import ToyDetector

    torch.manual_seed(0)
    detector = ToyDetector(16, toy_data.classes)
    batch = first_batch(toy_data, detector.needs)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=0.02)
    for _ in range(120):
        outputs = detector(batch, frozenset({"head"}))
        losses = detector.losses(outputs, detector.targets(outputs, batch), batch)
        optimizer.zero_grad()
        sum(term.value * term.weight for term in losses.terms.values()).backward()
        optimizer.step()
    evaluator = ToyEvaluator(None, toy_data, "train")
    evaluator.update(batch, detector.eval().decode(detector(batch, frozenset({"head"})), batch))
    results = evaluator.compute(detector.needs)
    assert results.score > 0.9
    assert evaluator.findings(results) == []


def test_average_precision_of_weighted_samples(toy):
    """Of class 0 hit, miss, hit in three samples of one box each; class 1 has one box that is not found."""
    from bevkd_toy.data import ToyEvidence

    detections = np.array([[0, 0, 0.9, 1], [1, 0, 0.8, 0], [2, 0, 0.7, 1]])
    evidence = ToyEvidence("abc", detections, np.array([[1, 0], [1, 0], [1, 1]]))
    weights = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 2.0]])
    whole, resampled = evidence.precisions(weights)
    assert whole.tolist() == pytest.approx([(1 + 2 / 3) / 3, 0])
    assert resampled.tolist() == pytest.approx([(1 + 2 * 1) / 3, 0])


def test_the_method_refuses_other_pillars(toy_data):
    from dataclasses import replace

    from bevkd_common.errors import UserError
    from bevkd_common.models.taps import Taps
    from bevkd_toy.detector import ToyDetector
    from bevkd_toy.method import build
    from bevkd_toy.specs import ToyMethodConfig

    specs = ToyDetector(4, toy_data.classes).taps
    other = {**specs, "pillars": replace(specs["pillars"], rows="others")}
    build(ToyMethodConfig(), Taps("a", specs), Taps("b", specs))
    with pytest.raises(UserError, match="a and b must share pillars and anchors"):
        build(ToyMethodConfig(), Taps("a", specs), Taps("b", other))
    with pytest.raises(UserError, match="b has no tap 'head'"):
        build(ToyMethodConfig(), Taps("a", specs), Taps("b", {"pillars": specs["pillars"]}))


def test_a_damaged_evidence_file_is_one_sentence(toy_data, tmp_path):
    from bevkd_common.errors import UserError
    from bevkd_toy.data import ToyEvaluator, ToyEvidence

    path, evaluator = tmp_path / "evidence.npz", ToyEvaluator(None, toy_data, "val")
    ToyEvidence(["a"], np.array([[0, 0, 0.5, 1]]), np.array([[1, 0]])).save(path)
    assert evaluator.load_evidence(path).groups == ("a",)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"evidence\.npz cannot be read"):
        evaluator.load_evidence(path)
