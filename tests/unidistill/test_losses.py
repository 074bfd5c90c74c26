"""Values computed by hand: cells of one metre, the grid's corner at the origin, rows along y."""

from __future__ import annotations

import math

import pytest
import torch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from torch import Tensor
from unidistill.losses import (
    class_maximum,
    crucial_points,
    feature_loss,
    masked_mean,
    relation_loss,
    relations,
    response_mask,
    sample_map,
)

CAR = (3.5, 2.5, 2.0, 1.0, 0.0)
SQUARE = Grid(0, 0, 1.0, 8, 8)
OBLONG = Grid(0, 0, 1.0, 8, 6)
PAPER = Grid(-54, -54, 0.6, 180, 180)


def boxes(*rows: tuple[float, float, float, float, float]) -> Boxes:
    """One sample of x, y, l, w, yaw."""
    return Boxes(
        torch.tensor([[[x, y, 0, *size, 1.5, yaw, 0, 0] for x, y, *size, yaw in rows]], dtype=torch.float64)
    )


def ramp(grid: Grid) -> Tensor:
    """x + 10 y at the number of each cell, [1, 1, Y, X]."""
    y, x = torch.meshgrid(torch.arange(grid.ny), torch.arange(grid.nx), indexing="ij")
    return (x + 10 * y)[None, None].double()


def all_valid(found: Boxes) -> Tensor:
    return torch.ones(found.tensor.shape[:2], dtype=torch.bool)


class TestPoints:
    @pytest.mark.parametrize(
        ("yaw", "expected"),
        [
            (0.0, "2.5,2 2.5,3 4.5,3 4.5,2 3.5,2.5 2.5,2.5 3.5,3 4.5,2.5 3.5,2"),
            (math.pi / 2, "4,1.5 3,1.5 3,3.5 4,3.5 3.5,2.5 3.5,1.5 3,2.5 3.5,3.5 4,2.5"),
        ],
    )
    def test_of_a_box(self, yaw: float, expected: str) -> None:
        points = crucial_points(boxes((*CAR[:4], yaw)))[0, 0]
        wanted = torch.tensor([[float(n) for n in pair.split(",")] for pair in expected.split()])
        torch.testing.assert_close(points, wanted.double())

    def test_of_a_turned_box(self) -> None:
        points = crucial_points(boxes((*CAR[:4], math.pi / 6)))[0, 0]
        wanted = torch.tensor([[2.883975, 1.566987], [4.116025, 3.433013], [2.633975, 2.0]]).double()
        torch.testing.assert_close(points[[0, 2, 5]], wanted, atol=1e-6, rtol=0)

    def test_half_a_turn_gives_the_same_set(self) -> None:
        one, other = (crucial_points(boxes((*CAR[:4], yaw)))[0, 0] for yaw in (0.4, 0.4 + math.pi))
        assert sorted(map(tuple, one.round(decimals=9).tolist())) == sorted(
            map(tuple, other.round(decimals=9).tolist())
        )
        torch.testing.assert_close(one.mean(dim=0), torch.tensor([3.5, 2.5]).double())

    def test_no_boxes(self) -> None:
        assert crucial_points(Boxes(torch.zeros(2, 0, 9))).shape == (2, 0, 9, 2)


class TestSampling:
    def test_of_a_ramp_that_is_not_square(self) -> None:
        samples = sample_map(ramp(OBLONG), crucial_points(boxes(CAR)), OBLONG)
        assert samples.shape == (1, 1, 9, 1)
        expected = torch.tensor([17, 27, 29, 19, 23, 22, 28, 24, 18]).double()
        torch.testing.assert_close(samples.flatten(), expected)

    def test_in_the_order_of_the_released_code(self) -> None:
        samples = sample_map(ramp(SQUARE), crucial_points(boxes(CAR)), SQUARE, transposed=True)
        expected = torch.tensor([21.5, 22.5, 42.5, 41.5, 32, 22, 32.5, 42, 31.5]).double()
        torch.testing.assert_close(samples.flatten(), expected)

    def test_outside_the_map_there_is_nothing(self) -> None:
        half_outside = crucial_points(boxes((0.0, 4.0, 2.0, 2.0, 0.0)))
        samples = sample_map(torch.ones(1, 1, 8, 8).double(), half_outside, SQUARE).flatten()
        torch.testing.assert_close(samples, torch.tensor([0, 0, 1, 1, 0.5, 0, 0.5, 1, 0.5]).double())

    def test_a_coarser_map_of_the_same_ground_gives_the_same_linear_values(self) -> None:
        x = torch.arange(40).double() / 2 + 0.25
        fine, coarse = x.expand(1, 1, 40, 40), (torch.arange(20).double() + 0.5).expand(1, 1, 20, 20)
        points = crucial_points(boxes((9.3, 8.1, 4.0, 2.0, 0.7)))
        one = sample_map(fine, points, Grid(0, 0, 0.5, 40, 40))
        torch.testing.assert_close(one, sample_map(coarse, points, Grid(0, 0, 1.0, 20, 20)))
        torch.testing.assert_close(one[..., 0], points[..., 0])

    def test_the_grid_of_the_paper(self) -> None:
        cells = torch.arange(180).double().expand(1, 1, 180, 180)
        points = torch.tensor([[[[-53.7, 0], [0, 0], [53.7, 0]]]]).double()
        samples = sample_map(cells, points, PAPER).flatten()
        torch.testing.assert_close(samples, torch.tensor([0, 89.5, 179]).double(), atol=1e-3, rtol=0)


class TestFeatureLoss:
    @pytest.mark.parametrize(
        ("grid", "transposed", "expected"),
        [
            (OBLONG, False, 22.997700),
            (SQUARE, False, 22.997700),
            (SQUARE, True, 31.996800),
            (OBLONG, True, 24.080925),
        ],
    )
    def test_against_a_teacher_of_zeros(self, grid: Grid, transposed: bool, expected: float) -> None:
        found = boxes(CAR)
        samples = sample_map(ramp(grid), crucial_points(found), grid, transposed=transposed)
        loss = feature_loss(torch.zeros_like(samples), samples, all_valid(found))
        assert loss.item() == pytest.approx(expected, abs=1e-6)

    def test_boxes_count_once_each(self) -> None:
        found = boxes(CAR, (5.5, 4.5, 1.0, 1.0, 0.0))
        samples = sample_map(ramp(SQUARE), crucial_points(found), SQUARE)
        loss = feature_loss(torch.zeros_like(samples), samples, all_valid(found))
        assert loss.item() == pytest.approx(33.998300, abs=1e-6)

    def test_gradient_by_hand(self) -> None:
        student = torch.full((1, 1, 9, 2), 0.5, dtype=torch.float64, requires_grad=True)
        loss = feature_loss(torch.zeros_like(student), student, torch.ones(1, 1, dtype=torch.bool))
        loss.backward()
        assert loss.item() == pytest.approx(0.499950, abs=1e-6)
        torch.testing.assert_close(student.grad, torch.full_like(student, 1 / (9 * 2 * 1.0001)))

    def test_padding_order_and_equal_maps(self) -> None:
        generator = torch.Generator().manual_seed(0)
        teacher, student = torch.rand(2, 1, 3, 9, 4, generator=generator, dtype=torch.float64)
        valid = torch.tensor([[True, True, False]])
        loss = feature_loss(teacher, student, valid)
        assert loss > 0.1
        assert feature_loss(student, student, valid).item() == 0
        torch.testing.assert_close(feature_loss(teacher[:, :2], student[:, :2], valid[:, :2]), loss)
        swapped = [1, 0, 2]
        torch.testing.assert_close(feature_loss(teacher[:, swapped], student[:, swapped], valid[:, swapped]), loss)

    @pytest.mark.parametrize("count", [0, 2])
    def test_without_boxes_it_is_zero_with_a_gradient(self, count: int) -> None:
        features = torch.rand(1, 3, 8, 8, requires_grad=True)
        points = crucial_points(Boxes(torch.zeros(1, count, 9)))
        samples = sample_map(features, points, SQUARE)
        valid = torch.zeros(1, count, dtype=torch.bool)
        loss = feature_loss(torch.zeros_like(samples), samples, valid) + relation_loss(samples, samples, valid)
        loss.backward()
        assert loss.item() == 0
        torch.testing.assert_close(features.grad, torch.zeros_like(features))


class TestRelationLoss:
    teacher = torch.tensor([1.0, 0.0]).double().expand(1, 1, 9, 2)
    valid = torch.ones(1, 1, dtype=torch.bool)

    def loss(self, student: Tensor) -> float:
        return relation_loss(self.teacher, student, self.valid).item()

    def vectors(self, *degrees: float) -> Tensor:
        angles = torch.tensor(degrees).double().deg2rad()
        return torch.stack([angles.cos(), angles.sin()], dim=-1)[None, None]

    @pytest.mark.parametrize(("scale", "expected"), [(1, 0.493679), (5, 0.493760), (100, 0.493779)])
    def test_right_angles_at_any_scale(self, scale: float, expected: float) -> None:
        assert self.loss(scale * self.vectors(*[0] * 5, *[90] * 4)) == pytest.approx(expected, abs=1e-6)

    def test_sixty_degrees(self) -> None:
        assert self.loss(self.vectors(0, 60, 0, 60, 0, 60, 0, 60, 0)) == pytest.approx(0.246840, abs=1e-6)

    def test_one_of_nine_flipped(self) -> None:
        assert self.loss(self.vectors(*[0] * 8, 180)) == pytest.approx(0.394943, abs=1e-6)

    def test_a_student_of_zeros_has_a_gradient_of_zeros(self) -> None:
        student = torch.zeros(1, 1, 9, 2, dtype=torch.float64, requires_grad=True)
        loss = relation_loss(self.teacher, student, self.valid)
        loss.backward()
        assert loss.item() == pytest.approx(0.999700, abs=1e-6)
        torch.testing.assert_close(student.grad, torch.zeros_like(student))
        assert self.loss(1e-4 * self.vectors(*[0] * 9)) == pytest.approx(0.749725, abs=1e-6)

    def test_invariants(self) -> None:
        generator = torch.Generator().manual_seed(0)
        samples, other = torch.randn(2, 1, 4, 9, 16, generator=generator, dtype=torch.float64)
        turn, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64))
        valid = torch.ones(1, 4, dtype=torch.bool)
        loss = relation_loss(samples, other, valid)
        torch.testing.assert_close(relation_loss(samples @ turn, other @ turn, valid), loss)
        assert 0 < loss < 2
        found = relations(samples)
        torch.testing.assert_close(found, found.mT)
        norm = samples.norm(dim=-1)
        torch.testing.assert_close(found.diagonal(dim1=-2, dim2=-1), (norm / (norm + 1e-4)) ** 2)


class TestMask:
    @pytest.mark.parametrize(
        ("length", "width", "total"),
        [
            (4.63, 1.97, 1.614604),
            (6.93, 2.51, 1.614604),
            (6.56, 2.95, 1.614604),
            (11.19, 2.95, 4.350453),
            (12.29, 2.90, 4.350453),
            (0.50, 2.53, 1.0),
            (2.11, 0.77, 1.0),
            (1.70, 0.60, 1.0),
            (0.73, 0.67, 1.0),
            (0.41, 0.41, 1.0),
            (0.0, 0.0, 1.0),
        ],
    )
    def test_size_of_the_gaussian_of_each_class(self, length: float, width: float, total: float) -> None:
        found = boxes((10.3, -20.2, length, width, 0.3))
        mask = response_mask(found, all_valid(found), PAPER, overlap=0.7)
        assert mask.sum().item() == pytest.approx(total, abs=1e-6)
        assert mask[0, 56, 107] == 1

    def test_values_of_the_kernel(self) -> None:
        big = boxes((3.5, 2.5, 10.0, 4.0, 0.0))
        mask = response_mask(big, all_valid(big), OBLONG, overlap=0.7)[0]
        assert mask[2, 3:5].tolist() == pytest.approx([1, 0.135335], abs=1e-6)
        assert mask[3, 4].item() == pytest.approx(0.018316, abs=1e-6)

    def test_the_larger_value_counts_and_borders_cut(self) -> None:
        pair = boxes((3.5, 2.5, 10.0, 4.0, 0.0), (4.5, 2.5, 10.0, 4.0, 0.0))
        mask = response_mask(pair, all_valid(pair), OBLONG, overlap=0.7)
        assert (mask.sum().item(), mask.max().item()) == (pytest.approx(2.885274, abs=1e-6), 1.0)
        corner = boxes((0.5, 0.5, 10.0, 4.0, 0.0))
        assert response_mask(corner, all_valid(corner), OBLONG, overlap=0.7).sum().item() == pytest.approx(1.288986)

    def test_padding_draws_nothing_unless_it_is_asked_for(self) -> None:
        found = Boxes(torch.cat([boxes((3.0, 3.0, 0.4, 0.4, 0.0)).tensor, torch.zeros(1, 1, 9)], dim=1))
        valid = torch.tensor([[True, False]])
        grid = Grid(-4, -4, 1.0, 8, 8)
        assert response_mask(found, valid, grid, overlap=0.7).nonzero().tolist() == [[0, 7, 7]]
        stamped = response_mask(found, valid, grid, overlap=0.7, padding_stamps=True)
        assert stamped.nonzero().tolist() == [[0, 4, 4], [0, 7, 7]]

    def test_boxes_beside_the_grid_and_no_boxes_draw_nothing(self) -> None:
        beside = boxes((-0.5, 2.0, 1, 1, 0), (8.5, 2.0, 1, 1, 0))
        assert response_mask(beside, all_valid(beside), OBLONG, overlap=0.7).sum() == 0
        none = Boxes(torch.zeros(2, 0, 9))
        assert response_mask(none, torch.zeros(2, 0, dtype=torch.bool), OBLONG, overlap=0.7).shape == (2, 6, 8)


class TestResponse:
    mask = response_mask(boxes((3.5, 2.5, 10.0, 4.0, 0.0)), torch.ones(1, 1, dtype=torch.bool), OBLONG, overlap=0.7)

    @pytest.mark.parametrize(("temperature", "expected"), [(2.0, 0.131050), (1.0, 0.280780)])
    def test_class_maxima_of_two_tasks(self, temperature: float, expected: float) -> None:
        student = [probability(0.2), torch.cat([probability(0.1), probability(0.6)], dim=1)]
        teacher = [torch.full((1, 1, 6, 8), 2.0), torch.full((1, 2, 6, 8), -2.0)]
        ours = class_maximum(student, temperature=1.0, clamp=1e-4)
        theirs = class_maximum(teacher, temperature=temperature, clamp=1e-4)
        assert masked_mean((ours - theirs).abs(), self.mask).item() == pytest.approx(expected, abs=1e-6)
        permuted = class_maximum([student[1].flip(1), student[0]], temperature=1.0, clamp=1e-4)
        torch.testing.assert_close(permuted, ours)

    def test_one_channel_of_twenty_two(self) -> None:
        error = torch.zeros(1, 22, 6, 8)
        error[:, 7] = 1.1
        assert masked_mean(error.abs().mean(dim=1), self.mask).item() == pytest.approx(0.049997, abs=1e-6)

    def test_the_clamp_of_the_teacher(self) -> None:
        student = torch.zeros(1, 6, 8)
        student[0, 2, 3] = 0.5
        theirs = class_maximum([torch.full((1, 1, 6, 8), -40.0)], temperature=1.0, clamp=1e-4)
        assert masked_mean((student - theirs).abs(), self.mask).item() == pytest.approx(0.309630, abs=1e-6)

    def test_outside_the_mask_nothing_counts(self) -> None:
        error = torch.rand(1, 6, 8, generator=torch.Generator().manual_seed(0))
        elsewhere = torch.where(self.mask > 0, error, error + 9)
        assert not torch.equal(error, elsewhere)
        torch.testing.assert_close(masked_mean(error, self.mask), masked_mean(elsewhere, self.mask))
        assert masked_mean(error, torch.zeros(1, 6, 8)).item() == 0


def probability(value: float) -> Tensor:
    """Logits of a probability, [1, 1, 6, 8]."""
    return torch.full((1, 1, 6, 8), math.log(value / (1 - value)))
