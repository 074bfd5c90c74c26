"""Head inheritance, measured normalisation, and how the method sits between two detectors."""

import copy
import math

import pytest
import torch
from bevkd_common.config.detectors.detr_head import DetrHeadConfig
from bevkd_common.distill.panels import RegionPanel
from bevkd_common.errors import UserError
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.heads.detr_head import build_detr_head
from bevkd_common.models.taps import Taps
from distillbev.build import build
from distillbev.config import DistillBevConfig
from distillbev.method import root_mean_squares
from torch import nn

NECK = {
    "name": "bev_neck",
    "teacher": "bev_neck",
    "student": "bev_neck",
    "adapter": "conv1x1",
    "false_positives": True,
    "normalize": "teacher_rms",
}
BLOCK = {"name": "bev_block1", "teacher": "bev_block1", "student": "bev_block1", "adapter": "up2_mlp2"}


@pytest.fixture
def pair(toy_detector):
    """A teacher in eval mode, a student, and a function that builds the method between them."""
    torch.manual_seed(0)
    teacher = toy_detector(block=6, neck=12).eval().requires_grad_(False)
    student = toy_detector(block=4, neck=10, block_stride=4)

    def method(**changes):
        config = DistillBevConfig.model_validate({"taps": [BLOCK, NECK]} | changes)
        return build(config, Taps("Teacher", teacher.taps), Taps("Student", student.taps))

    return teacher, student, method


def equal(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    assert len(ours) > 3
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_task_heads_are_inherited_and_the_shared_convolution_is_not(pair, toy_scene):
    teacher, student, build_method = pair
    method = build_method()
    teacher.head.task_heads[0]["reg"][1].running_mean.fill_(0.7)
    before = copy.deepcopy(student)
    method.prepare(teacher, student, [toy_scene(method, teacher, student).batch])
    assert equal(student.head.task_heads, teacher.head.task_heads)
    assert equal(student.head.shared_conv, before.head.shared_conv)
    assert all(parameter.requires_grad for parameter in student.head.parameters())
    with torch.no_grad():
        student.head.task_heads[0]["reg"][0].weight.add_(1)
    assert not equal(student.head.task_heads, teacher.head.task_heads), "the student owns a copy"


def test_nothing_is_inherited_unless_asked(pair, toy_scene):
    teacher, student, build_method = pair
    method = build_method(inherit="none", taps=[BLOCK])
    before = copy.deepcopy(student)
    method.prepare(teacher, student, [])
    assert equal(student, before)


def test_the_whole_head_can_be_inherited(toy_detector):
    torch.manual_seed(0)
    teacher, student = toy_detector(block=6, neck=10).eval(), toy_detector(block=4, neck=10)
    config = DistillBevConfig.model_validate({"taps": [NECK | {"normalize": "none"}], "inherit": "head"})
    method = build(config, Taps("Teacher", teacher.taps), Taps("Student", student.taps))
    method.prepare(teacher, student, [])
    assert equal(student.head, teacher.head)


def test_a_head_of_another_width_cannot_be_inherited(pair):
    teacher, student, build_method = pair
    method = build_method(inherit="head", taps=[NECK | {"normalize": "none"}])
    before = copy.deepcopy(student)
    with pytest.raises(UserError) as caught:
        method.prepare(teacher, student, [])
    message = str(caught.value)
    assert "head.shared_conv.0.weight: (8, 12, 3, 3) and (8, 10, 3, 3) (1 in all)" in message
    assert "set `inherit: task_heads`" in message
    assert equal(student, before)


def test_a_head_with_other_modules_cannot_be_inherited(pair):
    teacher, student, build_method = pair
    method = build_method(taps=[BLOCK])
    student.head.task_heads[0]["reg"].append(nn.Conv2d(2, 2, 1))
    with pytest.raises(UserError, match=r"task_heads.0.reg.3.bias: missing and \(2,\) \(2 in all\)"):
        method.prepare(teacher, student, [])


def test_a_detector_without_a_head(pair):
    teacher, student, build_method = pair
    method = build_method(taps=[BLOCK])
    student.parts = {}
    with pytest.raises(UserError, match=r"ToyDetector has no part `head.task_heads`, it names no parts; give"):
        method.prepare(teacher, student, [])


class Constant(nn.Module):
    """A detector whose map is the given values, one batch after the other."""

    def __init__(self, *values: list[float]) -> None:
        super().__init__()
        self.values = list(values)
        self.wanted: set[frozenset[str]] = set()

    def forward(self, batch, want, state=None):
        self.wanted.add(want)
        return type("Outputs", (), {"taps": {"bev_neck": torch.tensor(batch)}})


def test_root_mean_square_over_all_batches():
    detector = Constant().eval()
    batches = [[3.0, -4.0], [0.0, 1.0, 2.0]]
    measured = root_mean_squares(detector, frozenset({"bev_neck"}), batches)
    assert measured == {"bev_neck": pytest.approx(math.sqrt((9 + 16 + 0 + 1 + 4) / 5))}
    assert detector.wanted == {frozenset({"bev_neck"})}


def test_root_mean_square_refuses_what_would_mislead():
    names = frozenset({"bev_neck"})
    with pytest.raises(ValueError, match="eval mode"):
        root_mean_squares(Constant().train(), names, [[1.0]])
    with pytest.raises(ValueError, match="there are none"):
        root_mean_squares(Constant().eval(), names, [])
    with pytest.raises(UserError, match="'bev_neck' is zero in all calibration batches"):
        root_mean_squares(Constant().eval(), names, [[0.0, 0.0]])


def test_teacher_and_student_may_be_tapped_at_different_places(pair, toy_scene):
    teacher, student, build_method = pair
    method = build_method(taps=[NECK | {"student": "bev_block1", "adapter": "up4_conv1x1"}])
    assert method.teacher_taps == {"bev_neck", "head"}
    assert method.student_taps == {"bev_block1"}
    scene = toy_scene(method, teacher, student)
    method.prepare(teacher, student, [scene.batch])
    rms = scene.teacher.taps["bev_neck"].square().mean().sqrt()
    torch.testing.assert_close(method.layers[0].teacher_rms, rms)
    target, adapted = method.layers[0].maps(scene.teacher, scene.student)
    torch.testing.assert_close(target, scene.teacher.taps["bev_neck"] / rms)
    torch.testing.assert_close(adapted, method.layers[0].adapter(scene.student.taps["bev_block1"]) / rms)


def test_normalised_losses_do_not_depend_on_the_teachers_scale(pair, toy_scene):
    teacher, student, build_method = pair
    method = build_method(false_positive_layers="none")
    scene = toy_scene(method, teacher, student)
    assert math.isnan(scene.run(method).terms["bev_neck/fg"].value.item()), "not measured yet"
    assert math.isfinite(scene.run(method).terms["bev_block1/fg"].value.item()), "not normalised"
    method.prepare(teacher, student, [scene.batch])
    before = scene.run(method)
    assert before.metrics["bev_neck/teacher_rms"].item() == pytest.approx(1.0, rel=1e-5)

    with torch.no_grad():
        for module in (teacher.neck, method.layers[1].adapter):
            module.weight.mul_(3.0)
            module.bias.mul_(3.0)
    scene = toy_scene(method, teacher, student)
    method.prepare(teacher, student, [scene.batch])
    after = scene.run(method)
    for name in ("fg", "tn", "attention"):
        ours, theirs = after.terms[f"bev_neck/{name}"].value, before.terms[f"bev_neck/{name}"].value
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_was_measured_travels_in_the_checkpoint(pair, toy_scene):
    teacher, student, build_method = pair
    method, resumed = build_method(), build_method()
    scene = toy_scene(method, teacher, student)
    method.prepare(teacher, student, [scene.batch])
    resumed.load_state_dict(method.state_dict(), strict=True)
    assert scene.weighted(resumed) == pytest.approx(scene.weighted(method))
    assert math.isfinite(scene.weighted(resumed)["bev_neck/fg"])
    names = set(method.state_dict())
    assert "layers.1.teacher_rms" in names
    assert "layers.0.teacher_rms" not in names
    assert all(name.startswith("layers.") for name in names)


def test_three_steps_move_adapters_and_student_and_nothing_of_the_teacher(pair, toy_scene):
    teacher, student, build_method = pair
    method = build_method()
    frozen = copy.deepcopy(teacher)
    method.prepare(teacher, student, [toy_scene(method, teacher, student).batch])
    started = copy.deepcopy((student, method))
    parameters = [*student.parameters(), *method.param_groups()[0].parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(3):
        scene = toy_scene(method, teacher, student)
        loss = sum(term.value * term.weight for term in scene.run(method).terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert equal(teacher, frozen)
    moved = 0
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert not torch.equal(parameter, dict(started[1].named_parameters())[name]), name
        moved += 1
    assert moved == 2 * 4 + 2 + 2 * 2
    assert not equal(student.block, started[0].block)
    assert not torch.equal(student.neck.weight, started[0].neck.weight)


def test_overfitting_two_samples(pair, toy_scene):
    """Only adapters, kernels and the student's neck learn; every term falls to a fraction of its start."""
    teacher, student, build_method = pair
    torch.manual_seed(1)
    student.neck = nn.Conv2d(3, 10, 5, padding=2)
    method = build_method(taps=[NECK | {"adapter": "conv3x3"}])
    method.prepare(teacher, student, [toy_scene(method, teacher, student).batch])
    optimizer = torch.optim.AdamW([*student.neck.parameters(), *method.parameters()], lr=1e-2, weight_decay=0.0)
    # At a constant learning rate the last windows are noise, which the number of threads decides.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    history = []
    for _ in range(200):
        scene = toy_scene(method, teacher, student)
        terms = scene.run(method).terms
        history.append({name: term.value.item() for name, term in terms.items()})
        optimizer.zero_grad()
        sum(term.value * term.weight for term in terms.values()).backward()
        optimizer.step()
        schedule.step()
    for name in ("bev_neck/fg", "bev_neck/tn", "bev_neck/fp", "bev_neck/attention"):
        assert history[-1][name] < 0.05 * history[0][name], name
    totals = torch.tensor([sum(values.values()) for values in history]).view(10, 20).mean(dim=1)
    assert (totals.diff() < 0).all()


def test_panels(pair, toy_scene):
    teacher, student, build_method = pair
    method = build_method()
    scene = toy_scene(method, teacher, student)
    method.prepare(teacher, student, [scene.batch])
    method.train()
    before = copy.deepcopy(method.state_dict())
    panels = method.explain(scene.teacher, scene.student, scene.targets, scene.batch)
    assert method.training
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
    assert [panel.title for panel in panels] == [
        f"{layer}: {what}"
        for layer in ("bev_block1", "bev_neck")
        for what in ("regions", "attention", "teacher", "student")
    ]
    regions = panels[4]
    assert isinstance(regions, RegionPanel)
    assert regions.extent == (-8.0, 8.0, -8.0, 8.0)
    assert len(regions.legend) == 3
    counts = [(regions.values == index).sum().item() for index in range(3)]
    assert sum(counts) == 256
    assert counts[1] > 0
    assert counts[2] > 0
    assert regions.values[5, 10] == 1
    assert "foreground" in regions.legend[1]
    assert "false positive" in regions.legend[2]
    attention = panels[5].values
    assert attention.mean().item() == pytest.approx(1.0, abs=1e-5)
    neck = scene.teacher.taps["bev_neck"][0] / method.layers[1].teacher_rms
    torch.testing.assert_close(panels[6].values, neck.abs().mean(0))
    assert not any(panel.values.requires_grad for panel in panels)


def test_regions_of_the_worked_example_as_a_panel(worked_example, plain_method):
    scene = worked_example()
    regions = plain_method().explain(scene.teacher, scene.student, scene.targets, scene.batch)[0]
    assert regions.values.tolist() == [[2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_panels_have_their_extent_in_x_then_y(worked_example, plain_method):
    method = plain_method()
    layer = method.layers[0]
    layer.grid = layer.grid.__class__(x0=-2.0, y0=5.0, cell=1.0, nx=4, ny=4)
    scene = worked_example()
    assert method.explain(scene.teacher, scene.student, scene.targets, scene.batch)[0].extent == (
        -2.0,
        2.0,
        5.0,
        9.0,
    )


class QueryDetector(nn.Module):
    """A query head over nothing."""

    def __init__(self, queries: int, hidden_channels: int = 16) -> None:
        super().__init__()
        config = DetrHeadConfig(queries=queries, layers=2, hidden_channels=hidden_channels)
        self.head = build_detr_head(config, 8, Grid(-4.0, -4.0, 1.0, 8, 8), ("car", "bus"))
        self.taps = {"head": self.head.maps}
        self.parts = self.head.parts


def inherit_decoder(teacher: nn.Module, student: nn.Module, part: str = "decoder") -> None:
    config = DistillBevConfig(layers=(), inherit=part)
    method = build(config, Taps("Teacher", teacher.taps), Taps("Student", student.taps))
    method.prepare(teacher, student, [])


def test_a_decoder_is_inherited_and_the_queries_are_not():
    teacher, student = QueryDetector(queries=6).eval(), QueryDetector(queries=4)
    before = copy.deepcopy(student)
    inherit_decoder(teacher, student)
    assert equal(student.head.decoder, teacher.head.decoder)
    assert torch.equal(student.head.queries.weight, before.head.queries.weight)
    assert torch.equal(student.head.reference_points.weight, before.head.reference_points.weight)
    inherited = {name.split(".")[2] for name, _ in student.named_parameters() if name.startswith("head.decoder")}
    assert inherited == {"layers", "class_branches", "box_branches"}


def test_a_whole_query_head_is_inherited():
    teacher, student = QueryDetector(queries=6).eval(), QueryDetector(queries=6)
    inherit_decoder(teacher, student, "head")
    assert equal(student.head, teacher.head)


def test_a_decoder_of_another_size_cannot_be_inherited():
    teacher, student = QueryDetector(queries=6).eval(), QueryDetector(queries=6, hidden_channels=12)
    with pytest.raises(UserError) as caught:
        inherit_decoder(teacher, student)
    message = str(caught.value)
    assert "first head.decoder.layers.0.feed_forward.0.bias: (16,) and (12,) (6 in all)" in message
    assert "give both heads the same sizes, or set `inherit: none`" in message
