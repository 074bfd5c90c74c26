"""Attention, and the two imitation losses."""

import math

import pytest
import torch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from distillbev.losses import (
    attention_imitation,
    channel_attention,
    combined_attention,
    decompose,
    false_positive_mask,
    feature_imitation,
    foreground_and_scale,
    spatial_attention,
    squared_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

ALPHA, BETA, W_FP, LAMBDA, TAU = 6e-3, 4e-2, 6e-2, 2.5e-3, 0.5
CLOSE = {"atol": 1e-6, "rtol": 0.0}


def tensor(*channels) -> Tensor:
    return torch.tensor(channels, dtype=torch.float64)[None]


TEACHER = tensor([[1, 0], [0, 3]], [[1, 0], [0, 1]])
STUDENT = tensor([[0, 2], [0, 1]], [[0, 0], [0, 1]])


def assert_map(actual: Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(actual, torch.tensor([expected], dtype=actual.dtype), **CLOSE)


def test_spatial_attention():
    teacher, student = spatial_attention(TEACHER, TAU), spatial_attention(STUDENT, TAU)
    assert_map(teacher, [[0.461908, 0.062512], [0.062512, 3.413067]])
    assert_map(student, [[0.238406, 1.761594], [0.238406, 1.761594]])
    assert_map(spatial_attention(TEACHER, 1e9), [[1, 1], [1, 1]])


def test_spatial_attention_looks_at_magnitudes_of_each_sample_alone():
    both = torch.cat([TEACHER, -STUDENT])
    attention = spatial_attention(both, TAU)
    torch.testing.assert_close(attention[:1], spatial_attention(TEACHER, TAU))
    torch.testing.assert_close(attention[1:], spatial_attention(STUDENT, TAU))


def test_combined_attention():
    combined = combined_attention(TEACHER, STUDENT, "teacher_student", TAU, 1.0)
    assert_map(combined, [[0.350157, 0.912053], [0.150459, 2.587330]])
    assert combined.sum().item() == pytest.approx(4.0)
    torch.testing.assert_close(
        combined_attention(TEACHER, STUDENT, "teacher", TAU, 1.0), spatial_attention(TEACHER, TAU)
    )
    assert_map(combined_attention(TEACHER, STUDENT, "none", TAU, 1.0), [[1, 1], [1, 1]])


def test_combined_attention_weighs_the_student_by_its_ratio():
    combined = combined_attention(TEACHER, STUDENT, "teacher_student", TAU, 3.0)
    assert_map(combined[:, :1, :1], [[(0.461908 + 3 * 0.238406) / 4]])


@pytest.mark.parametrize("source", ["teacher_student", "teacher", "none"])
def test_attention_carries_no_gradient(source):
    teacher, student = TEACHER.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    assert not combined_attention(teacher, student, source, TAU, 1.0).requires_grad


def test_channel_attention():
    features = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])[None].double()
    torch.testing.assert_close(
        channel_attention(features, TAU), torch.tensor([[1.76159416, 0.23840584]]).double(), **CLOSE
    )
    assert torch.equal(channel_attention(-features, TAU), channel_attention(features, TAU))


def test_squared_error_sums_the_channels():
    assert_map(squared_error(TEACHER, STUDENT), [[2, 4], [0, 4]])
    assert_map(squared_error(TEACHER, STUDENT, torch.tensor([[0.5, 10.0]]).double()), [[10.5, 2], [0, 2]])


def worked_example() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A 4 x 4 grid with one box, one false positive, a teacher of zeros and a student of ones."""
    grid = Grid(-2.0, -2.0, 1.0, 4, 4)
    boxes = Boxes(torch.tensor([[[1, 1, 0, 2, 2, 1, 0, 0, 0]]], dtype=torch.float64))
    in_boxes, scale = foreground_and_scale(boxes, torch.tensor([[True]]), grid)
    seen, truth = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    for (row, column), value in {(0, 0): 0.9, (0, 1): 0.2, (3, 3): 0.9, (1, 0): 0.05}.items():
        seen[0, row, column] = value
    for (row, column), value in {(3, 3): 1.0, (2, 2): 0.5, (0, 1): 0.2}.items():
        truth[0, row, column] = value
    regions = decompose(in_boxes, scale, false_positive_mask(seen, truth, in_boxes, 0.1, 0.1))
    assert [int(mask.sum()) for mask in regions[:3]] == [4, 1, 11]
    weights = {
        "fg": ALPHA * regions.foreground * regions.scale,
        "fp": W_FP * regions.false_positive * regions.scale,
        "tn": BETA * regions.background * regions.scale,
    }
    return weights, torch.zeros(1, 2, 4, 4, dtype=torch.float64), torch.ones(1, 2, 4, 4, dtype=torch.float64)


def imitation(weights: dict[str, Tensor], error: Tensor, attention: Tensor) -> dict[str, float]:
    return {name: feature_imitation(error, weight, attention).item() for name, weight in weights.items()}


def test_feature_imitation_of_the_worked_example():
    weights, teacher, student = worked_example()
    terms = imitation(weights, squared_error(teacher, student), torch.ones(1, 4, 4))
    assert terms == pytest.approx({"fg": 0.024, "tn": 0.08, "fp": 0.12})
    attention = LAMBDA * attention_imitation(teacher, student, "signed_mean", lambda mean: mean)
    assert attention.item() == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("teacher", {"fg": 0.01286343, "tn": 0.05717079, "fp": 0.08575618}),
        ("teacher_student", {"fg": 0.01543171, "tn": 0.06858539, "fp": 0.10287809}),
    ],
)
def test_feature_imitation_with_attention(source, expected):
    """Values of the released loss functions, run in isolation."""
    weights, teacher, student = worked_example()
    teacher[..., 3, 3] = 1.0
    attention = combined_attention(teacher, student, source, TAU, 1.0)
    error = squared_error(teacher, student)
    assert imitation(weights, error, attention) == pytest.approx(expected, abs=1e-7)
    imitated = LAMBDA * attention_imitation(teacher, student, "signed_mean", lambda mean: mean)
    assert imitated.item() == pytest.approx(0.0375)


def test_feature_imitation_averages_the_batch_only():
    weights, teacher, student = worked_example()
    error = squared_error(teacher, student)
    one = feature_imitation(error, weights["fg"], torch.ones_like(error))
    twice = feature_imitation(
        *(torch.cat([value, value]) for value in (error, weights["fg"], torch.ones_like(error)))
    )
    assert twice.item() == pytest.approx(one.item())


def test_channel_attention_on_false_positives():
    """Values of the released loss functions, run in isolation."""
    weights, _, _ = worked_example()
    teacher = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])[None].double()
    student = teacher + torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    attention = combined_attention(teacher, student, "teacher", TAU, 1.0)
    plain = squared_error(teacher, student)
    by_channel = squared_error(teacher, student, channel_attention(teacher, TAU))
    assert imitation(weights, plain, attention) == pytest.approx({"fg": 0.06, "tn": 0.2, "fp": 0.3})
    assert imitation(weights, by_channel, attention)["fp"] == pytest.approx(0.16291305, abs=1e-7)


def test_attention_imitation():
    teacher = tensor([[1, -1], [2, 0]], [[3, 1], [0, 2]])
    student = tensor([[0, 0], [2, -2]], [[2, 0], [0, 2]])

    def box_blur(mean: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(mean, torch.full((1, 1, 3, 3), 1 / 9).double(), padding=1)

    def loss(attention_map, kernel=lambda mean: mean) -> float:
        return LAMBDA * attention_imitation(teacher, student, attention_map, kernel).item()

    assert loss("signed_mean") == pytest.approx(0.0050)
    assert loss("abs_mean") == pytest.approx(0.0075)
    assert loss("signed_mean", box_blur) == pytest.approx(0.00888889, abs=1e-8)


def test_attention_imitation_averages_the_batch():
    teacher, student = torch.cat([TEACHER, TEACHER]), torch.cat([STUDENT, TEACHER])
    one = attention_imitation(TEACHER, STUDENT, "signed_mean", lambda mean: mean)
    assert attention_imitation(teacher, student, "signed_mean", lambda mean: mean).item() == one.item() / 2 > 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 5.0), st.floats(0.0, 4.0))
def test_attention_has_mean_one_and_orders_cells_by_magnitude(seed, tau, ratio):
    generator = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    for source in ("teacher", "teacher_student"):
        attention = combined_attention(teacher, student, source, tau, ratio)
        assert attention.mean(dim=(1, 2)).tolist() == pytest.approx([1.0, 1.0])
    order = teacher.abs().mean(1)[0].flatten().argsort()
    sorted_attention = spatial_attention(teacher, tau)[0].flatten()[order]
    assert (sorted_attention.diff() >= 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 5.0))
def test_attention_depends_on_magnitude_over_temperature(seed, factor):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64)
    plain = spatial_attention(features, TAU)
    torch.testing.assert_close(spatial_attention(features * factor, TAU * factor), plain)
    if abs(math.log(factor)) > 0.1:
        assert not torch.allclose(spatial_attention(features * factor, TAU), plain, rtol=1e-3)
