from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bevkd_common.distill.panels import MapPanel, MatrixPanel, PointPanel
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import Outputs
from bevkd_common.models.taps import Branch, Meaning
from torch import nn
from unidistill.losses import (
    class_maximum,
    crucial_points,
    feature_loss,
    masked_mean,
    relation_loss,
    response_mask,
    sample_map,
)

from .conftest import GRID, make_outputs, make_taps

ROUTES = {
    "lidar to camera": (100.0, 40.0, 10.0, 8.30),
    "camera to lidar": (10.0, 5.0, 1.0, 3.58),
    "both to camera": (10.0, 5.0, 10.0, 4.75),
    "both to lidar": (10.0, 1.0, 10.0, 4.55),
}
TAPS = make_taps("detector")
TEACHER, STUDENT = make_outputs(TAPS, 0), make_outputs(TAPS, 1)


def total(losses):
    return sum(term.value * term.weight for term in losses.terms.values())


def test_the_terms_are_the_equations(make_method, batch):
    losses = make_method()(TEACHER, STUDENT, None, batch)
    points = crucial_points(batch.boxes)
    low, high = (
        [sample_map(outputs.taps[name], points, GRID) for outputs in (TEACHER, STUDENT)]
        for name in ("bev_in", "bev_neck")
    )
    mask = response_mask(batch.boxes, batch.valid, GRID, overlap=0.7)
    wanted, ours = (class_maximum(outputs.heatmaps, temperature=1.0, clamp=1e-4) for outputs in (TEACHER, STUDENT))
    theirs, mine = (
        torch.cat([task[name] for task in outputs.head for name in ("reg", "height", "vel")], dim=1)
        for outputs in (TEACHER, STUDENT)
    )
    expected = {
        "feature": (feature_loss(*low, batch.valid), 100.0),
        "relation": (relation_loss(*high, batch.valid), 40.0),
        "response/classes": (masked_mean((ours - wanted).abs(), mask), 10.0),
        "response/boxes": (masked_mean((mine - theirs).abs().mean(dim=1), mask), 10.0),
    }
    assert losses.terms.keys() == expected.keys()
    for name, (value, weight) in expected.items():
        assert losses.terms[name].weight == weight
        torch.testing.assert_close(losses.terms[name].value, value, msg=name)
        assert value > 0.01


@pytest.mark.parametrize("route", ROUTES)
def test_totals_of_the_four_routes(make_method, batch, route):
    """Terms of 0.02, 0.05, 0.10 and 0.03 beside detection losses of 3."""
    feature, relation, response, expected = ROUTES[route]
    method = make_method(feature_weight=feature, relation_weight=relation, response_weight=response)
    terms = method(TEACHER, STUDENT, None, batch).terms
    values = {"feature": 0.02, "relation": 0.05, "response/classes": 0.10, "response/boxes": 0.03}
    assert terms.keys() == values.keys()
    assert 3 + sum(terms[name].weight * value for name, value in values.items()) == pytest.approx(expected)


def test_equal_models_lose_nothing_and_the_temperature_is_the_teachers_alone(make_method, batch):
    assert total(make_method()(TEACHER, TEACHER, None, batch)).item() == 0
    warm = make_method(temperature=2.0)(TEACHER, TEACHER, None, batch).terms
    assert {name for name, term in warm.items() if term.value > 0} == {"response/classes"}


def test_gradients_reach_the_student_alone(make_method, batch):
    teacher, student = make_outputs(TAPS, 2), make_outputs(TAPS, 3)
    total(make_method()(teacher, student, None, batch)).backward()
    for outputs, trained in ((teacher, False), (student, True)):
        tensors = [*outputs.taps.values(), *(tensor for task in outputs.head for tensor in task.values())]
        assert len(tensors) == 2 + 2 * 4
        assert all((tensor.grad is not None) == trained for tensor in tensors)


def test_half_precision_is_compared_in_single_precision(make_method, batch):
    def half(values):
        return {name: value.detach().to(torch.bfloat16) for name, value in values.items()}

    rounded = [Outputs(taps=half(out.taps), head=[*map(half, out.head)]) for out in (TEACHER, STUDENT)]
    single = [
        Outputs(
            taps={name: value.float() for name, value in out.taps.items()},
            head=[{name: value.float() for name, value in task.items()} for task in out.head],
        )
        for out in rounded
    ]
    method = make_method().float()
    expected = method(*single, None, batch).terms
    with torch.autocast("cpu", torch.bfloat16):
        found = method(*rounded, None, batch).terms
    for name, term in found.items():
        torch.testing.assert_close(term.value, expected[name].value, rtol=0, atol=0)
        assert term.value.dtype != torch.bfloat16


def test_a_frame_without_boxes_costs_nothing_and_has_a_gradient(make_method, make_batch):
    student = make_outputs(TAPS, 4)
    losses = make_method()(TEACHER, student, None, make_batch([], []))
    total(losses).backward()
    assert total(losses).item() == 0
    assert all(value.grad is not None and not value.grad.any() for value in student.taps.values())


def test_terms_without_weight_are_left_out_with_their_taps(make_method, batch):
    method = make_method(relation_weight=0.0, response_weight=0.0)
    assert (method.teacher_taps, method.student_taps) == (frozenset({"bev_in"}),) * 2
    assert method(TEACHER, STUDENT, None, batch).terms.keys() == {"feature"}
    assert make_method(feature_weight=0.0).teacher_taps == {"bev_neck", "head"}


class TestAdapters:
    def test_with_equal_channels_the_identity_changes_nothing_and_learns(self, make_method, batch):
        adapter = {"teacher": "bev_in", "student": "bev_in", "adapter": "conv1x1"}
        method = make_method(low=adapter)
        assert sum(parameter.numel() for group in method.param_groups() for parameter in group.parameters) == 20
        losses = method(TEACHER, STUDENT, None, batch)
        torch.testing.assert_close(
            losses.terms["feature"].value, make_method()(TEACHER, STUDENT, None, batch).terms["feature"].value
        )
        losses.terms["feature"].value.backward()
        assert all(parameter.grad.any() for parameter in method.low.parameters())
        assert make_method().param_groups() == []

    def test_a_linear_layer_on_samples_is_a_convolution_of_the_map(self, make_method, batch):
        student = make_taps("student", low=7)
        outputs = make_outputs(student, 5)
        method = make_method(student=student, low={"teacher": "bev_in", "student": "bev_in", "adapter": "conv1x1"})
        linear = method.low.after
        nn.init.zeros_(linear.bias)  # outside the map a convolution has no bias
        map_ = nn.functional.conv2d(outputs.taps["bev_in"], linear.weight[..., None, None], linear.bias)
        expected = feature_loss(
            *(sample_map(m, crucial_points(batch.boxes), GRID) for m in (TEACHER.taps["bev_in"], map_)), batch.valid
        )
        torch.testing.assert_close(method(TEACHER, outputs, None, batch).terms["feature"].value, expected)

    def test_a_convolution_of_the_map(self, make_method, batch):
        adapter = {"teacher": "bev_neck", "student": "bev_neck", "adapter": "conv3x3_bn_relu"}
        method = make_method(high=adapter)
        assert method(TEACHER, STUDENT, None, batch).terms["relation"].value > 0
        assert sum(p.numel() for p in method.parameters()) == 6 * 6 * 9 + 2 * 6


class TestGrids:
    def test_a_student_on_finer_cells_is_compared_in_metres(self, make_method, batch):
        """Maps that are linear in x have the same values at the same place, whatever the cells and the extent."""
        coarse, fine = Grid(-12, -13, 1.0, 26, 24), Grid(-11, -12, 0.5, 44, 46)
        teacher, student = make_taps("teacher", grid=coarse), make_taps("student", grid=fine)
        method = make_method(teacher, student, response_weight=0.0, relation_weight=0.0)

        def plane(grid):
            x = (torch.arange(grid.nx).double() + 0.5) * grid.cell + grid.x0
            return Outputs(taps={"bev_in": x.expand(2, 4, grid.ny, grid.nx)})

        losses = method(plane(coarse), plane(fine), None, batch)
        assert losses.terms["feature"].value.item() == pytest.approx(0, abs=1e-12)

    def test_heads_on_other_cells_leave_offsets_in_cells_out(self, make_method, batch, caplog):
        student = make_taps("student", grid=Grid(-8, -8, 0.5, 32, 32))
        method = make_method(student=student)
        assert method.response.branches == (("height", "height"), ("vel", "vel"))
        assert "not compared, because the heads differ: reg (centre offset in cells, x then y)" in caplog.text
        terms = method(TEACHER, make_outputs(student, 6), None, batch).terms
        assert torch.isfinite(terms["response/boxes"].value)

    def test_areas(self, make_method, batch):
        everywhere = make_method(area="whole_map")(TEACHER, STUDENT, None, batch).terms["feature"].value
        difference = (TEACHER.taps["bev_in"] - STUDENT.taps["bev_in"]).abs()
        torch.testing.assert_close(everywhere, difference.mean(), rtol=1e-5, atol=0)
        around = make_method(area="gaussian")(TEACHER, STUDENT, None, batch).terms["feature"].value
        mask = response_mask(batch.boxes, batch.valid, GRID, overlap=0.7)
        torch.testing.assert_close(around, masked_mean(difference.mean(dim=1), mask.double()))


def test_displacement_is_no_velocity(make_method, caplog):
    temporal = (*(Branch("reg", 2, Meaning.CENTER_OFFSET),), Branch("vel", 2, Meaning.DISPLACEMENT))
    method = make_method(student=make_taps("student", branches=temporal))
    assert method.response.branches == (("reg", "reg"),)
    assert "vel (displacement since the earlier frame in m, x then y)" in caplog.text


def test_quirks_of_the_released_code(make_method, batch, make_batch):
    official = make_method(preset="official")
    clean = make_method()(TEACHER, STUDENT, None, batch).terms
    quirks = official(TEACHER, STUDENT, None, batch).terms
    assert all(not torch.allclose(quirks[name].value, clean[name].value) for name in clean)
    # Two samples of one box each have no padding, and these lie on the diagonal.
    diagonal = make_batch([(3.0, 3.0, 2.0, 2.0, 0.0)], [(-2.0, -2.0, 2.0, 2.0, 0.0)])
    mirrored = make_method(transpose_points=True, padding_stamps=True)
    symmetric = [
        replace(outputs, taps={name: value + value.mT for name, value in outputs.taps.items()})
        for outputs in (TEACHER, STUDENT)
    ]
    one, other = (method(*symmetric, None, diagonal).terms for method in (make_method(), mirrored))
    for name in one:
        torch.testing.assert_close(one[name].value, other[name].value)


def test_batch_statistics_of_the_teacher(make_method):
    teacher = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
    images = torch.rand(3, 1, 4, 4) + 5
    kept = teacher(images)
    make_method().prepare(teacher, nn.Identity(), [])
    torch.testing.assert_close(teacher(images), kept)
    make_method(teacher_batch_norm="batch").prepare(teacher, nn.Identity(), [])
    assert teacher(images).mean().item() == pytest.approx(0, abs=1e-5)


def test_pictures_of_a_sample(make_method, batch):
    method = make_method().train()
    panels = method.explain(TEACHER, STUDENT, None, batch)
    assert [type(panel) for panel in panels] == [PointPanel, *[MatrixPanel] * 4, MapPanel]
    points, relation, mask = panels[0], panels[1], panels[-1]
    assert points.points.shape == (18, 2)
    assert points.legend == ("corner", "centre", "midpoint of an edge")
    assert relation.values.shape == (9, 9)
    assert mask.extent == (-8, 8, -8, 8)
    assert method.training


def test_pictures_of_a_sample_without_boxes(make_method, make_batch):
    panels = make_method().explain(TEACHER, STUDENT, None, make_batch([], []))
    assert [type(panel) for panel in panels] == [MapPanel]


def test_metrics(make_method, batch):
    metrics = make_method()(TEACHER, STUDENT, None, batch).metrics
    assert metrics["boxes"].item() == 1.5
    assert set(metrics) == {"boxes", "feature/teacher", "feature/student"}
