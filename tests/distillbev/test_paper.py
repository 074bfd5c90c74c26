"""The paper's tables."""

import pytest
from bevkd_common.config.published_rows import in_one_line
from bevkd_common.config.recipes import catalogue
from distillbev.paper import load_paper, published, published_ablations
from distillbev.spec import SPEC

PAPER = load_paper()


def test_every_combination_satisfies_the_definition_of_nds():
    """Printed digits allow 0.05; the baseline of BEVFormer is 0.09 off in print."""
    for row in PAPER.combinations:
        tolerance = 0.1 if (row.teacher, row.student) == ("none", "BEVFormer") else 0.05
        assert row.computed_nds == pytest.approx(row.NDS, abs=tolerance + 1e-9), row
    assert len(PAPER.combinations) == 12
    assert len({(row.teacher, row.student) for row in PAPER.combinations}) == 12


def test_nds_caps_errors_at_one():
    row = PAPER.combinations[0].model_copy(update={"mAVE": 250.0})
    assert row.computed_nds == pytest.approx((5 * 30.5 + 27.9 + 72.1 + 42.1 + 0 + 75.0) / 10)


def test_sizes_of_the_tables():
    assert {name: len(rows) for name, rows in PAPER.ablations.items()} == {"layers": 5, "components": 6}
    assert {split: len(rows) for split, rows in PAPER.comparison.items()} == {"val": 19, "test": 12}
    assert len(PAPER.development) == 8
    assert [row.alpha for row in PAPER.foreground_weights] == [6e-3, 1.2e-2, 4.8e-2]


def test_every_curve_has_a_value_for_every_epoch():
    curves = {**PAPER.curves.figure, **PAPER.curves.log}
    assert len(curves) == 5
    for curve in curves.values():
        assert len(curve.mAP) == len(curve.NDS) == len(PAPER.curves.epochs) == 6


def test_tables_agree_where_they_overlap():
    baseline = next(row for row in PAPER.combinations if (row.teacher, row.student) == ("none", "BEVDet4D"))
    for first in (PAPER.ablations["layers"]["none"], PAPER.ablations["components"]["baseline"]):
        assert (first.mAP, first.NDS) == (baseline.mAP, baseline.NDS)
    best = {row.student: row for row in PAPER.combinations if row.teacher == "MVP"}
    compared = {(row.method, row.backbone): row for row in PAPER.comparison["val"]}
    for student in ("BEVFormer", "BEVDepth"):
        ours = compared[f"DistillBEV-{student}", "R50"]
        released = PAPER.checkpoints["R50"][student]["MVP"]
        assert (ours.mAP, ours.NDS) == (best[student].mAP, best[student].NDS) == (released.mAP, released.NDS)


def test_every_pair_of_the_paper_has_a_tiny_and_a_full_recipe():
    recipes = [pair.head.selects for pair in catalogue().pairs if "distillbev" in pair.sections]
    pairs = {(row.teacher.lower(), row.student.lower()) for row in PAPER.combinations if row.teacher != "none"}
    assert len(pairs) == 8
    larger = {(teacher, f"{student}-r101") for teacher, student in pairs if student in ("bevdepth", "bevformer")}
    larger |= {("mvp", "bevdepth-swin-b")}
    assert len(larger) == 5
    for dataset, wanted in (("synthetic", pairs), ("nuscenes", pairs | larger)):
        assert {(it.teacher, it.student) for it in recipes if it.dataset == dataset} == wanted
    assert all(published(*pair) for pair in pairs | larger)
    larger_student = in_one_line(published("centerpoint", "bevdepth-r101"))
    assert larger_student == "nuScenes val: mAP 40.7 -> 43.6, NDS 52.2 -> 53.6"
    assert in_one_line(published("mvp", "bevdepth-swin-b")) == "nuScenes test: mAP 52.5, NDS 61.2"
    assert in_one_line(published("mvp", "bevformer")) == "nuScenes val: mAP 32.3 -> 36.7, NDS 43.4 -> 47.6"
    assert [row.setting for row in published("mvp", "bevformer")] == [
        "BEVFormer, student alone",
        "MVP to BEVFormer",
    ]
    assert published("mvp", "fastbev") == published("pointpillars", "bevformer") == []


def test_every_other_row_of_the_papers_ablations_stands_beside_one_of_ours():
    """The student alone and the whole method are the arms `baseline` and `distilled` of every run."""
    rows = published_ablations()
    assert set(rows) <= set(SPEC.ablations)
    assert len(rows) == sum(len(table) for table in PAPER.ablations.values()) - 2 == 9
    assert rows["layers_b0_b1_b2_h"].setting == "BEVDet4D, B0+B1+B2+H"
    assert rows["layers_b0_b1_b2_h"].metrics == {"mAP": 34.4, "NDS": 46.6}
    assert rows["fgbg_attention"].metrics == {"mAP": 34.6, "NDS": 46.5}
