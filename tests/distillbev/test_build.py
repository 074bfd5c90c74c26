"""What is refused before any data is read, and what is built."""

from dataclasses import replace

import pytest
from bevkd_common.distill.adapters import build_adapter
from bevkd_common.errors import UserError
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.taps import BevMap, Branch, HeadMaps, Meaning, Queries, Taps
from distillbev.build import build
from distillbev.config import DistillBevConfig
from torch import nn

REG = Branch("reg", 2, Meaning.CENTER_OFFSET)
HEAD = HeadMaps(Grid(-51.2, -51.2, 0.8, 128, 128), (("car",), ("bus", "truck")), (REG,))


QUERIES = Queries(Grid(-51.2, -51.2, 0.8, 128, 128), ("car", "bus"), layers=6, count=900, channels=256, code=())


def grid(cells: int) -> Grid:
    return Grid(-51.2, -51.2, 102.4 / cells, cells, cells)


TEACHER = Taps(
    "CenterPoint",
    {
        "bev_block1": BevMap(128, grid(128), "relu"),
        "bev_block2": BevMap(256, grid(64), "relu"),
        "bev_neck": BevMap(384, grid(128), "relu"),
        "head": HEAD,
    },
)
STUDENT = Taps(
    "BEVDet",
    {
        "bev_block1": BevMap(256, grid(32), "relu"),
        "bev_block2": BevMap(512, grid(16), "relu"),
        "bev_neck": BevMap(256, grid(128), "none"),
        "head": HEAD,
    },
)


def with_tap(taps: Taps, **changes) -> Taps:
    specs = {**taps.specs, **changes}
    return replace(taps, specs={name: spec for name, spec in specs.items() if spec is not None})


def one_tap(**changes) -> DistillBevConfig:
    tap = {"name": "h", "teacher": "bev_neck", "student": "bev_neck", "adapter": "conv1x1", "false_positives": True}
    return DistillBevConfig.model_validate({"taps": [tap | changes]})


def learned(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_papers_recipe():
    method = build(DistillBevConfig(), TEACHER, STUDENT)
    assert learned(method) == 923_678
    assert method.teacher_taps == {"bev_block1", "bev_block2", "bev_neck", "head"}
    assert method.student_taps == {"bev_block1", "bev_block2", "bev_neck"}
    assert [layer.grid.nx for layer in method.layers] == [128, 64, 128]
    assert [tuple(layer.weights) for layer in method.layers] == [(6e-3, 4e-2, 6e-2, 2.5e-3)] * 3
    (group,) = method.param_groups()
    assert sum(parameter.numel() for parameter in group.parameters) == 923_678
    assert (group.lr_factor, group.weight_decay) == (1.0, None)


def test_layers_select_the_taps():
    method = build(DistillBevConfig(layers=("bev_block2",)), TEACHER, STUDENT)
    assert method.teacher_taps == method.student_taps == {"bev_block2"}
    nothing = build(DistillBevConfig(layers=(), inherit="none"), Taps("A", {}), Taps("B", {}))
    assert nothing.teacher_taps == nothing.student_taps == frozenset()
    assert nothing.param_groups() == []


@pytest.mark.parametrize(
    ("kernel", "imitation", "parameters"),
    [
        ("conv3x3", "signed_mean", 10),
        ("conv3x3", "abs_mean", 10),
        ("identity", "signed_mean", 0),
        ("conv3x3", "none", 0),
    ],
)
def test_kernels_that_no_loss_uses_are_not_built(kernel, imitation, parameters):
    config = one_tap().model_copy(update={"attention_kernel": kernel, "attention_imitation": imitation})
    method = build(config, TEACHER, STUDENT)
    assert learned(method) == 256 * 384 + 384 + parameters


def test_eta_replaces_the_weight_of_the_false_positives():
    config = one_tap(alpha=1e-3, w_fp=5.0)
    assert build(config, TEACHER, STUDENT).layers[0].weights.w_fp == 5.0
    config = config.model_copy(update={"eta": 20.0})
    assert build(config, TEACHER, STUDENT).layers[0].weights.w_fp == pytest.approx(0.02)


def test_align_corners_reaches_the_adapters():
    for align_corners in (True, False):
        method = build(DistillBevConfig(align_corners=align_corners), TEACHER, STUDENT)
        assert [method.layers[index].adapter[0].align_corners for index in (0, 1)] == [align_corners] * 2


def test_a_missing_tap():
    with pytest.raises(UserError) as caught:
        build(one_tap(student="bev_in"), TEACHER, STUDENT)
    message = str(caught.value)
    for part in (
        "distillbev layer 'h', student",
        "BEVDet has no tap 'bev_in'",
        "bev_neck (256 x 128 x 128, 0.8 m)",
    ):
        assert part in message
    with pytest.raises(UserError, match="teacher: CenterPoint has no tap 'bev_in'"):
        build(one_tap(teacher="bev_in"), TEACHER, STUDENT)
    with pytest.raises(UserError, match="offers 'head' as a set of head maps"):
        build(one_tap(teacher="head"), TEACHER, STUDENT)


def test_a_mismatch_of_channels():
    with pytest.raises(UserError) as caught:
        build(one_tap(adapter="identity"), TEACHER, STUDENT)
    message = str(caught.value)
    for part in (
        "layer 'h'",
        "adapter `identity` brings bev_neck of the student BEVDet to 256 channels",
        "bev_neck of the teacher CenterPoint has 384 channels on 128 x 128 cells of 0.8 m",
        "CenterPoint offers bev_block1 (128 x 128 x 128, 0.8 m)",
        "BEVDet offers bev_block1 (256 x 32 x 32, 3.2 m)",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "student", [grid(64), Grid(-51.2, -51.2, 0.4, 128, 128), Grid(-50.4, -51.2, 0.8, 128, 128)]
)
def test_a_mismatch_of_cells(student):
    with pytest.raises(UserError, match="adapter `conv1x1` brings bev_neck of the student BEVDet to 384 channels"):
        build(one_tap(), TEACHER, with_tap(STUDENT, bev_neck=BevMap(256, student)))


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize(
    "cells",
    [Grid(-51.2, -51.2, 102.4 / 96, 96, 96), Grid(-50.0, -51.2, 0.8, 128, 128), Grid(-51.2, -51.2, 1.6, 64, 128)],
)
def test_heat_maps_that_do_not_fit(role, cells):
    teacher, student = (
        with_tap(taps, head=replace(HEAD, grid=cells)) if taps is changed else taps
        for changed in [TEACHER if role == "teacher" else STUDENT]
        for taps in (TEACHER, STUDENT)
    )
    with pytest.raises(
        UserError, match=f"the heat map of the {role} .* cannot be brought to the layer's 128 x 128"
    ):
        build(one_tap(), teacher, student)
    build(one_tap(false_positives=False), teacher, student)


@pytest.mark.parametrize("cells", [32, 64, 256])
def test_heat_maps_that_fit(cells):
    head = replace(HEAD, grid=grid(cells))
    assert build(one_tap(), with_tap(TEACHER, head=head), with_tap(STUDENT, head=head)).layers[0].false_positives


@pytest.mark.parametrize("factor", [0.5, 1, 2])
def test_heat_maps_of_a_grid_that_is_not_square(factor):
    cells = Grid(-51.2, -51.2, 0.8, 128, 64)
    head = replace(HEAD, grid=Grid(-51.2, -51.2, 0.8 / factor, int(128 * factor), int(64 * factor)))
    maps = {"bev_neck": BevMap(256, cells), "head": head}
    config = one_tap(adapter="identity")
    assert build(config, Taps("A", maps), Taps("B", maps)).layers[0].grid == cells
    with pytest.raises(UserError, match="cannot be brought to the layer's 64 x 128"):
        build(config, Taps("A", {**maps, "head": HEAD}), Taps("B", {**maps, "head": HEAD}))


def test_a_mismatch_names_both_taps():
    with pytest.raises(UserError, match=r"brings bev_block2 of the student BEVDet .* bev_neck of the teacher"):
        build(one_tap(student="bev_block2"), TEACHER, STUDENT)


def test_false_positives_need_a_head():
    config = one_tap().model_copy(update={"inherit": "none"})
    with pytest.raises(UserError, match="teacher: CenterPoint has no tap 'head'; set `false_positives: false`"):
        build(config, with_tap(TEACHER, head=None), STUDENT)
    without = one_tap(false_positives=False).model_copy(update={"inherit": "none"})
    build(without, with_tap(TEACHER, head=None), with_tap(STUDENT, head=None))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"tasks": (("bus", "truck"), ("car",))}, "tasks"),
        ({"branches": (*HEAD.branches, Branch("vel", 2, Meaning.VELOCITY))}, "branches"),
    ],
)
def test_heads_that_cannot_be_inherited(change, what):
    student = with_tap(STUDENT, head=replace(HEAD, **change))
    with pytest.raises(UserError, match=f"CenterPoint and the student BEVDet have different {what}"):
        build(one_tap(), TEACHER, student)
    build(one_tap().model_copy(update={"inherit": "none"}), TEACHER, student)


def test_every_kind_of_adapter_builds_and_meets_its_grid():
    kinds = DistillBevConfig.model_fields["taps"].annotation.__args__[0].model_fields["adapter"].annotation.__args__
    built = 0
    for kind in kinds:
        assert isinstance(build_adapter(kind, 4, 4), nn.Module)
        built += 1
    assert built == 16


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_queries_have_no_false_positives(role):
    teacher, student = (
        with_tap(taps, head=QUERIES) if role == name else taps
        for name, taps in (("teacher", TEACHER), ("student", STUDENT))
    )
    config = one_tap().model_copy(update={"inherit": "none"})
    with pytest.raises(UserError, match=f"'h', false positives, {role}: .* has a set of queries .* no heat maps"):
        build(config, teacher, student)
    build(one_tap(false_positives=False).model_copy(update={"inherit": "none"}), teacher, student)


def test_queries_that_start_at_the_peaks_of_a_heat_map_have_false_positives():
    taps = [with_tap(taps, head=replace(QUERIES, heatmap=True)) for taps in (TEACHER, STUDENT)]
    method = build(one_tap().model_copy(update={"inherit": "none"}), *taps)
    assert method.layers[0].false_positives
    assert method.teacher_taps == {"bev_neck", "head"}


def test_a_head_that_predicts_displacements_can_be_inherited_from():
    velocity, displacement = (
        replace(HEAD, branches=(Branch("vel", 2, meaning),)) for meaning in (Meaning.VELOCITY, Meaning.DISPLACEMENT)
    )
    method = build(one_tap(), with_tap(TEACHER, head=velocity), with_tap(STUDENT, head=displacement))
    assert method.student_parts == {"head.task_heads"}


def test_decoders_can_be_inherited():
    config = one_tap(false_positives=False).model_copy(update={"inherit": "decoder"})
    fewer = replace(QUERIES, count=300, grid=grid(50))
    method = build(config, with_tap(TEACHER, head=QUERIES), with_tap(STUDENT, head=fewer))
    assert method.teacher_taps == {"bev_neck"}


@pytest.mark.parametrize(
    ("change", "what"),
    [({"classes": ("bus", "car")}, "classes"), ({"layers": 3}, "layers"), ({"channels": 64}, "channels")],
)
def test_decoders_that_cannot_be_inherited(change, what):
    config = one_tap(false_positives=False).model_copy(update={"inherit": "decoder"})
    student = with_tap(STUDENT, head=replace(QUERIES, **change))
    with pytest.raises(UserError, match=f"CenterPoint and the student BEVDet have different {what}"):
        build(config, with_tap(TEACHER, head=QUERIES), student)


def test_a_whole_query_head_wants_as_many_queries():
    config = one_tap(false_positives=False).model_copy(update={"inherit": "head"})
    teacher, student = (with_tap(taps, head=QUERIES) for taps in (TEACHER, STUDENT))
    assert build(config, teacher, student).teacher_taps == {"bev_neck"}
    fewer = with_tap(STUDENT, head=replace(QUERIES, count=300))
    with pytest.raises(UserError, match="CenterPoint and the student BEVDet have different count"):
        build(config, teacher, fewer)


def test_a_part_that_the_head_does_not_have():
    config = one_tap(false_positives=False)
    queries = [with_tap(taps, head=QUERIES) for taps in (TEACHER, STUDENT)]
    with pytest.raises(UserError, match="`inherit: task_heads`, student: BEVDet offers 'head' as a set of queries"):
        build(config, *queries)
    with pytest.raises(UserError, match="`inherit: decoder`, student: BEVDet offers 'head' as a set of head maps"):
        build(config.model_copy(update={"inherit": "decoder"}), TEACHER, STUDENT)
