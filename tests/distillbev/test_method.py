"""The losses of a step, through the method, against hand-computed values."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from bevkd_common.data.samples import Batch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.detector import Outputs
from distillbev import method as method_module
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLE = {"map0/fg": 0.024, "map0/tn": 0.08, "map0/fp": 0.12, "map0/attention": 0.04}


def with_boxes(batch: Batch, *footprints: tuple[float, float, float, float]) -> Batch:
    """The first sample's boxes replaced by upright ones of x, y, l, w."""
    tensor = torch.zeros(1, len(footprints), 9, dtype=torch.float64)
    tensor[0, :, [0, 1, 3, 4]] = torch.tensor(footprints, dtype=torch.float64)
    return replace(batch, boxes=Boxes(tensor), labels=torch.zeros(1, len(footprints), dtype=torch.int64))


PROPERTY = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_the_worked_example(worked_example, plain_method):
    terms = worked_example().weighted(plain_method())
    assert terms == pytest.approx(EXAMPLE, abs=1e-9)
    assert sum(terms.values()) == pytest.approx(0.264)


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        ("teacher", {"map0/fg": 0.01286343, "map0/tn": 0.05717079, "map0/fp": 0.08575618}),
        ("teacher_student", {"map0/fg": 0.01543171, "map0/tn": 0.06858539, "map0/fp": 0.10287809}),
    ],
)
def test_attention_moves_weight_to_where_the_teacher_is_strong(worked_example, plain_method, attention, expected):
    """Values of the released loss functions, run in isolation."""
    scene = worked_example()
    scene.teacher.taps["map0"][..., 3, 3] = 1.0
    terms = scene.weighted(plain_method(attention=attention))
    assert terms == pytest.approx(expected | {"map0/attention": 0.0375}, abs=1e-7)


def test_every_scalar_setting_of_the_attention_counts(worked_example, plain_method):
    scene = worked_example()
    scene.teacher.taps["map0"][..., 3, 3] = 1.0
    peak = {}
    for name, changes in {
        "base": {},
        "tau": {"tau": 1.0},
        "ratio": {"student_ratio": 0.0},
        "teacher": {"attention": "teacher"},
    }.items():
        peak[name] = scene.weighted(plain_method(**{"attention": "teacher_student"} | changes))["map0/tn"]
    assert peak["ratio"] == pytest.approx(peak["teacher"], abs=1e-12)
    assert len({round(value, 6) for value in peak.values()}) == 3


def test_a_repeated_sample_changes_nothing(worked_example, plain_method):
    assert worked_example(batch=2).weighted(plain_method()) == pytest.approx(EXAMPLE, abs=1e-9)


def test_a_scene_without_objects(worked_example, plain_method):
    terms = worked_example(boxes=False, seen=False).weighted(plain_method())
    assert terms == pytest.approx(EXAMPLE | {"map0/fg": 0.0, "map0/fp": 0.0}, abs=1e-9)


def test_without_false_positives_the_background_renormalises(worked_example, plain_method):
    terms = worked_example(seen=False).weighted(plain_method())
    assert terms == pytest.approx(EXAMPLE | {"map0/fp": 0.0}, abs=1e-9)


def test_a_teacher_that_sees_objects_everywhere_leaves_no_background(worked_example, plain_method):
    scene = worked_example()
    scene.teacher.head[1]["heatmap"].fill_(3.0)
    terms = scene.weighted(plain_method(gamma_ground_truth=1.0))
    assert terms == pytest.approx(EXAMPLE | {"map0/tn": 0.0}, abs=1e-9)


def test_three_layers_with_false_positives_at_the_last(worked_example, plain_method):
    terms = worked_example(layers=3).weighted(plain_method(layers=3))
    assert sum(terms.values()) == pytest.approx(3 * (0.024 + 0.08 + 0.04) + 0.12)
    assert [name for name in terms if name.endswith("/fp")] == ["map2/fp"]


def test_false_positives_are_the_same_at_every_layer(worked_example, plain_method):
    """With an in-place sigmoid upstream, the second and third layer would see 12 and no background."""
    output = worked_example(layers=3).run(plain_method(layers=3, false_positive_layers="all"))
    counts = [output.metrics[f"map{index}/cells_fp"].item() for index in range(3)]
    assert counts == [1.0, 1.0, 1.0]
    assert [output.metrics[f"map0/cells_{region}"].item() for region in ("fg", "tn")] == [4.0, 11.0]


def test_false_positives_can_be_left_out_everywhere(worked_example, plain_method):
    method = plain_method(false_positive_layers="none")
    scene = worked_example()
    del scene.teacher.head[:]
    assert "head" not in method.teacher_taps
    assert scene.weighted(method) == pytest.approx({k: v for k, v in EXAMPLE.items() if k != "map0/fp"}, abs=1e-9)


def test_thresholds_of_the_false_positives(worked_example, plain_method):
    def cells(**changes) -> float:
        return worked_example().run(plain_method(**changes)).metrics["map0/cells_fp"].item()

    assert cells() == 1.0
    assert cells(gamma_teacher=0.04) == 2.0
    assert cells(gamma_teacher=0.95) == 0.0
    assert cells(gamma_ground_truth=0.21) == 2.0
    assert cells(gamma_ground_truth=0.0) == 0.0


@pytest.mark.parametrize(("head_cells", "factor"), [(8, 2), (2, 0.5)])
def test_heat_maps_of_another_resolution(worked_example, plain_method, head_cells, factor):
    scene = worked_example()
    size = (head_cells, head_cells)

    def resized(heatmap):
        return (
            torch.nn.functional.adaptive_max_pool2d(heatmap, size)
            if factor < 1
            else heatmap.repeat_interleave(2, -1).repeat_interleave(2, -2)
        )

    scene.teacher.head[:] = [{"heatmap": resized(task["heatmap"])} for task in scene.teacher.head]
    scene.targets.heatmaps[:] = [resized(heatmap) for heatmap in scene.targets.heatmaps]
    output = scene.run(plain_method(head_cells=head_cells))
    # Pooled to 2 x 2, the teacher's peak shares its cell with a ground-truth value of 0.2.
    assert output.metrics["map0/cells_fp"].item() == (1.0 if factor > 1 else 0.0)


def test_gradients_of_the_worked_example(worked_example, plain_method):
    scene = worked_example()
    student = scene.student.taps["map0"].requires_grad_()
    terms = scene.run(plain_method()).terms
    features = sum(term.value * term.weight for name, term in terms.items() if "attention" not in name)
    (gradient,) = torch.autograd.grad(features, student, retain_graph=True)
    assert gradient[0, :, 2, 2].tolist() == pytest.approx([0.006] * 2)
    assert gradient[0, :, 0, 1].tolist() == pytest.approx([2 * 4e-2 / 11] * 2)
    assert gradient[0, :, 0, 0].tolist() == pytest.approx([0.12] * 2)
    imitation = terms["map0/attention"]
    (gradient,) = torch.autograd.grad(imitation.value * imitation.weight, student)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.00125))


def test_the_teacher_gets_no_gradient(worked_example, plain_method):
    scene = worked_example()
    maps = [scene.teacher.taps["map0"].requires_grad_()]
    maps += [task["heatmap"].requires_grad_() for task in scene.teacher.head]
    scene.student.taps["map0"].requires_grad_()
    total = sum(term.value for term in scene.run(plain_method(attention="teacher_student")).terms.values())
    total.backward()
    assert [gradient.grad for gradient in maps] == [None] * 3
    assert scene.student.taps["map0"].grad is not None


def test_attention_has_no_gradient(worked_example, plain_method):
    """The gradient of the weighted error is that of a weight which is held fixed."""
    scene = worked_example()
    scene.teacher.taps["map0"].normal_()
    student = scene.student.taps["map0"].normal_().requires_grad_()
    term = scene.run(plain_method(attention="teacher_student")).terms["map0/tn"].value
    (gradient,) = torch.autograd.grad(term, student)
    doubled = (gradient * (student - scene.teacher.taps["map0"])).sum()
    assert doubled.item() == pytest.approx(2 * term.item())


def test_channel_attention_on_false_positives(worked_example, plain_method):
    """Values of the released loss functions, run in isolation."""
    scene = worked_example()
    scene.teacher.taps["map0"][:, 0] = 1.0
    scene.student.taps["map0"][:, 0], scene.student.taps["map0"][:, 1] = 2.0, 2.0
    plain = scene.weighted(plain_method(attention="teacher"))
    official = scene.weighted(plain_method(attention="teacher", false_positive_channel_attention=True))
    assert plain | {"map0/attention": 0} == pytest.approx(
        {"map0/fg": 0.06, "map0/tn": 0.2, "map0/fp": 0.3, "map0/attention": 0}
    )
    assert official == pytest.approx(plain | {"map0/fp": 0.16291305}, abs=1e-7)


def test_attention_imitation_through_the_method(worked_example, plain_method):
    scene = worked_example()
    scene.teacher.taps["map0"].copy_(torch.tensor([1.0, -3.0]).view(2, 1, 1))
    scene.student.taps["map0"].copy_(torch.tensor([2.0, -1.0]).view(2, 1, 1))

    def term(**changes) -> float | None:
        return scene.weighted(plain_method(**changes)).get("map0/attention")

    assert term() == pytest.approx(2.5e-3 * 16 * 1.5)
    assert term(attention_imitation="abs_mean") == pytest.approx(2.5e-3 * 16 * 0.5)
    assert term(attention_imitation="none") is None


def test_components_of_the_papers_ablation_keep_the_total_weight(worked_example, plain_method):
    """Where the error is the same everywhere, switching a component off must not change the sum."""
    scene = worked_example()
    scene.batch = with_boxes(scene.batch, (1.0, 1.0, 2.0, 2.0), (-1.5, 1.5, 1.1, 1.1))
    full = scene.weighted(plain_method())
    level = scene.weighted(plain_method(adaptive_scaling=False))
    assert level == pytest.approx(full)
    plain = scene.weighted(plain_method(region_decomposition=False))
    assert plain["map0/all"] == pytest.approx(full["map0/fg"] + full["map0/tn"] + full["map0/fp"])
    assert set(plain) == {"map0/all", "map0/attention"}

    scene.student.taps["map0"][..., 3, 0] = 3.0
    assert scene.weighted(plain_method(adaptive_scaling=False))["map0/fg"] != pytest.approx(
        scene.weighted(plain_method())["map0/fg"], rel=0.01
    )


def test_global_weight_and_eta(worked_example, plain_method):
    scene = worked_example()
    halved = scene.weighted(plain_method(weight=0.5))
    assert halved == pytest.approx({name: value / 2 for name, value in EXAMPLE.items()})
    assert scene.weighted(plain_method(eta=20.0)) == pytest.approx(EXAMPLE | {"map0/fp": 0.24})


def test_settings_of_the_foreground_reach_it(worked_example, plain_method):
    """A box of 2.2 m around four cells' centres and nine cells' corners, a smaller one in it, and a speck."""
    scene = worked_example()
    scene.batch = with_boxes(scene.batch, (1.0, 1.0, 2.2, 2.2), (1.5, 1.5, 1.0, 1.0), (-1.25, -1.25, 0.1, 0.1))

    def seen(**changes) -> tuple[float, float]:
        output = scene.run(plain_method(**changes))
        return output.metrics["map0/cells_fg"].item(), output.terms["map0/fg"].value.item()

    cells, loss = seen()
    assert (cells, loss) == (5.0, pytest.approx(2 * (4 / 2.2 + 10)))
    cells, loss = seen(ensure_center_cell=False)
    assert (cells, loss) == (4.0, pytest.approx(2 * 4 / 2.2))
    cells, loss = seen(overlap="smallest")
    assert (cells, loss) == (5.0, pytest.approx(2 * (3 / 2.2 + 1 + 10)))
    cells, _ = seen(sample_point="corner")
    assert cells == 5.0
    cells, _ = seen(sample_point="corner", ensure_center_cell=False)
    assert cells == 4.0


def test_metrics(worked_example, plain_method):
    scene = worked_example(batch=2)
    scene.teacher.taps["map0"].copy_(torch.tensor([3.0, 4.0]).view(2, 1, 1))
    scene.student.taps["map0"].requires_grad_()
    metrics = scene.run(plain_method()).metrics
    assert {name: metric.item() for name, metric in metrics.items()} == pytest.approx(
        {
            "map0/cells_fg": 4.0,
            "map0/cells_fp": 1.0,
            "map0/cells_tn": 11.0,
            "map0/teacher_rms": math.sqrt(12.5),
            "map0/student_rms": 1.0,
            "map0/cosine": 7 / (5 * math.sqrt(2)),
        }
    )
    assert not any(metric.requires_grad for metric in metrics.values())


def random_scene(scene, seed: int):
    torch.manual_seed(seed)
    scene.teacher.taps["map0"].uniform_(0, 2)
    scene.student.taps["map0"].uniform_(0, 2)
    return scene


@PROPERTY
@given(st.integers(0, 1000))
def test_a_perfect_student_pays_nothing(worked_example, plain_method, seed):
    scene = random_scene(worked_example(), seed)
    scene.student.taps["map0"].copy_(scene.teacher.taps["map0"])
    terms = scene.weighted(plain_method(attention="teacher_student"))
    assert list(terms.values()) == [0.0] * 4
    learnable = scene.weighted(plain_method(attention_kernel="conv3x3").double())
    assert learnable["map0/attention"] > 0


@PROPERTY
@given(st.integers(0, 1000), st.floats(0.5, 3.0))
def test_losses_scale_with_the_features_if_the_temperature_does(worked_example, plain_method, seed, factor):
    scene = random_scene(worked_example(), seed)
    before = scene.weighted(plain_method(attention="teacher_student"))
    for outputs in (scene.teacher, scene.student):
        outputs.taps["map0"].mul_(factor)
    after = scene.weighted(plain_method(attention="teacher_student", tau=0.5 * factor))
    for name, value in before.items():
        power = 1 if name.endswith("attention") else 2
        assert after[name] == pytest.approx(value * factor**power)
    if abs(factor - 1) > 0.1:
        raw = scene.weighted(plain_method(attention="teacher_student"))
        assert raw["map0/tn"] != pytest.approx(before["map0/tn"] * factor**2, rel=1e-4)


@PROPERTY
@given(st.integers(0, 1000), st.floats(0.1, 5.0))
def test_a_common_offset_of_non_negative_features_changes_nothing(worked_example, plain_method, seed, offset):
    scene = random_scene(worked_example(), seed)
    method = plain_method(attention="teacher_student")
    before = scene.weighted(method)
    for outputs in (scene.teacher, scene.student):
        outputs.taps["map0"].add_(offset)
    assert scene.weighted(method) == pytest.approx(before)


@PROPERTY
@given(st.integers(0, 1000))
def test_a_common_order_of_channels_changes_nothing(worked_example, plain_method, seed):
    scene = random_scene(worked_example(), seed)
    method = plain_method(attention="teacher_student", false_positive_channel_attention=True)
    before = scene.weighted(method)
    for outputs in (scene.teacher, scene.student):
        outputs.taps["map0"].copy_(outputs.taps["map0"].flip(1))
    assert scene.weighted(method) == pytest.approx(before)


@PROPERTY
@given(st.integers(0, 1000), st.sampled_from(["x", "y"]))
def test_a_mirrored_world_costs_the_same(worked_example, plain_method, seed, axis):
    scene = random_scene(worked_example(), seed)
    scene.batch.boxes.tensor[0, 0, [0, 1, 3, 4, 6]] = torch.tensor([0.7, 0.4, 2.9, 1.3, 0.5]).double()
    method = plain_method(attention="teacher_student")
    before = scene.weighted(method)
    dim = -1 if axis == "x" else -2
    mirrored = type(scene)(
        Outputs(
            {"map0": scene.teacher.taps["map0"].flip(dim)},
            [{"heatmap": task["heatmap"].flip(dim)} for task in scene.teacher.head],
        ),
        Outputs({"map0": scene.student.taps["map0"].flip(dim)}),
        replace(scene.targets, heatmaps=[heatmap.flip(dim) for heatmap in scene.targets.heatmaps]),
        replace(scene.batch, boxes=scene.batch.boxes.flip(axis)),
    )
    assert mirrored.weighted(method) == pytest.approx(before)
    half_mirrored = replace(mirrored, batch=scene.batch)
    assert half_mirrored.weighted(method) != pytest.approx(before)


def test_boxes_are_laid_on_each_grid_once(worked_example, plain_method, monkeypatch):
    laid: Counter = Counter()
    original = method_module.foreground_and_scale

    def counted(boxes, valid, grid, *rest):
        laid[grid] += 1
        return original(boxes, valid, grid, *rest)

    monkeypatch.setattr(method_module, "foreground_and_scale", counted)
    worked_example(layers=3).run(plain_method(layers=3))
    assert list(laid.values()) == [1]


def test_losses_are_in_full_precision_under_autocast(worked_example, plain_method):
    method = plain_method(attention="teacher_student", attention_kernel="conv3x3")
    scene = random_scene(worked_example(), 0)
    scene.batch = replace(scene.batch, boxes=scene.batch.boxes.to(torch.float32))
    for outputs in (scene.teacher, scene.student):
        outputs.taps["map0"] = outputs.taps["map0"].bfloat16()
    expected = scene.weighted(method)
    with torch.autocast("cpu", torch.bfloat16):
        output = scene.run(method)
    assert {term.value.dtype for term in output.terms.values()} == {torch.float32}
    weighted = {name: term.value.item() * term.weight for name, term in output.terms.items()}
    assert weighted == pytest.approx(expected, rel=1e-6)


def test_settings_of_a_tiny_experiment_give_terms_of_comparable_size(worked_example, plain_method):
    """64 channels on 64 x 64 cells, a student 0.3 (rms) away from its teacher."""
    torch.manual_seed(0)
    taps = [
        {
            "name": "map0",
            "teacher": "map0",
            "student": "map0",
            "adapter": "identity",
            "alpha": 4.5e-4,
            "beta": 0.08,
            "w_fp": 3e-3,
            "false_positives": True,
        }
    ]
    method = plain_method(cells=64, channels=64, taps=taps, attention="teacher_student")
    scene = worked_example()
    scene.batch = with_boxes(scene.batch, (4.0, 3.0, 4.6, 1.9), (-9.0, 12.0, 0.7, 0.7), (-5.0, -20.0, 11.0, 2.9))
    scene.teacher.taps["map0"] = torch.randn(1, 64, 64, 64).relu()
    scene.student.taps["map0"] = scene.teacher.taps["map0"] + 0.3 * torch.randn(1, 64, 64, 64)
    scene.teacher.head[:] = [{"heatmap": torch.randn(1, 2, 64, 64) - 6}]
    scene.targets.heatmaps[:] = [torch.zeros(1, 2, 64, 64)]
    scene.teacher.head[0]["heatmap"][0, 0, 5, 5:9] = 1.0
    terms = scene.weighted(method)
    assert set(terms) == {"map0/fg", "map0/tn", "map0/fp", "map0/attention"}
    assert all(1e-2 < value < 2.0 for value in terms.values()), terms
