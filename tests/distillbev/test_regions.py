"""Regions of the grid: foreground, false positives, background, and their scale."""

import math

import pytest
import torch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from distillbev import losses
from distillbev.losses import (
    decompose,
    false_positive_mask,
    foreground_and_scale,
    ground_truth_heatmap,
    level_scale,
    level_weight,
    resample_heatmap,
    teacher_heatmap,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

GRID = Grid(-4.0, -4.0, 1.0, 8, 8)
QUARTER = math.pi / 2


def make_boxes(*footprints: tuple[float, float, float, float, float]) -> Boxes:
    """One sample of boxes from x, y, l, w, yaw; far off the ground, which must not matter."""
    rows = [[x, y, 30.0, length, width, 1.5, yaw, 0.0, 0.0] for x, y, length, width, yaw in footprints]
    return Boxes(torch.tensor(rows, dtype=torch.float64).reshape(1, -1, 9))


def foreground(*footprints, grid: Grid = GRID, **options) -> tuple[Tensor, Tensor]:
    boxes = make_boxes(*footprints)
    mask, scale = foreground_and_scale(boxes, torch.ones(1, len(boxes), dtype=torch.bool), grid, **options)
    return mask[0], scale[0]


def cells(mask: Tensor) -> set[tuple[int, int]]:
    return {(row, column) for row, column in mask.nonzero().tolist()}


def block(rows: range | list[int], columns: range | list[int]) -> set[tuple[int, int]]:
    return {(row, column) for row in rows for column in columns}


@pytest.mark.parametrize(
    ("yaw", "sample", "expected"),
    [
        (0.0, "center", block([2, 3], [4, 5, 6])),
        (math.pi, "center", block([2, 3], [4, 5, 6])),
        (QUARTER, "center", block([2, 3, 4], [4, 5])),
        (0.0, "corner", block([3, 4], [4, 5, 6])),
        (QUARTER, "corner", block([2, 3, 4], [5, 6])),
        (math.pi / 6, "center", {(2, 4), (2, 5), (3, 4), (3, 5), (3, 6)}),
        (math.pi / 6, "corner", {(2, 5), (3, 4), (3, 5), (3, 6), (4, 5), (4, 6)}),
    ],
)
def test_foreground_of_a_box(yaw, sample, expected):
    mask, scale = foreground((1.3, -0.8, 3.0, 2.0, yaw), sample=sample)
    assert cells(mask) == expected
    torch.testing.assert_close(scale, mask.double() * 0.408248, atol=1e-6, rtol=0)


def test_foreground_weights_of_an_object_sum_to_the_square_root_of_its_area():
    _, scale = foreground((1.3, -0.8, 3.0, 2.0, 0.0))
    assert scale.sum().item() == pytest.approx(2.449490, abs=1e-6)


def test_foreground_turns_counter_clockwise():
    mask, scale = foreground((0.0, 0.0, 4.0, 2.0, math.pi / 4))
    assert cells(mask) == {(2, 3), (3, 2), (3, 3), (3, 4), (4, 3), (4, 4), (4, 5), (5, 4)}
    assert scale[3, 2].item() == pytest.approx(0.353553, abs=1e-6)


def test_foreground_scale_counts_cells_not_metres():
    coarse = Grid(-4.0, -4.0, 2.0, 4, 4)
    mask, scale = foreground((1.0, 1.0, 4.6, 1.9, 0.0), grid=coarse)
    assert cells(mask) == {(2, 1), (2, 2), (2, 3)}
    assert scale[2, 2].item() == pytest.approx(math.sqrt(4.0 / (4.6 * 1.9)), abs=1e-12)


def test_foreground_excludes_the_border_of_a_box():
    """Eight sample points lie exactly on the four sides of this box."""
    mask, _ = foreground((0.5, 0.5, 2.0, 2.0, 0.0))
    assert cells(mask) == {(4, 4)}


def test_foreground_on_a_grid_that_is_neither_square_nor_centred():
    grid = Grid(10.0, -6.0, 0.5, 6, 4)
    mask, _ = foreground((11.2, -5.3, 1.0, 0.5, 0.0), grid=grid)
    assert mask.shape == (4, 6)
    assert cells(mask) == {(1, 1), (1, 2)}


def test_overlap_is_owned_by_the_first_box():
    small, large = (1.0, 0.0, 2.0, 2.0, 0.0), (0.0, 0.0, 4.0, 2.0, 0.0)
    mask, scale = foreground(small, large)
    assert int(mask.sum()) == 8
    assert cells(scale == 0.5) == block([3, 4], [4, 5])
    assert scale.sum().item() == pytest.approx(3.414214, abs=1e-6)
    mask, scale = foreground(large, small)
    assert int(mask.sum()) == 8
    assert scale.sum().item() == pytest.approx(2.828427, abs=1e-6)


def test_overlap_may_be_owned_by_the_smallest_box():
    small, large = (1.0, 0.0, 2.0, 2.0, 0.0), (0.0, 0.0, 4.0, 2.0, 0.0)
    for order in ((small, large), (large, small)):
        mask, scale = foreground(*order, overlap="smallest")
        assert int(mask.sum()) == 8
        assert cells(scale == 0.5) == block([3, 4], [4, 5])


def test_smallest_box_carries_its_own_validity():
    """Sorting by size moves the flags along with the boxes."""
    boxes = make_boxes((0.0, 0.0, 4.0, 4.0, 0.0), (-2.5, -2.5, 1.0, 1.0, 0.0))
    mask, scale = foreground_and_scale(boxes, torch.tensor([[True, False]]), GRID, overlap="smallest")
    assert cells(mask[0]) == block(range(2, 6), range(2, 6))
    assert scale[0, 3, 3].item() == 0.25


def test_no_boxes_no_foreground():
    mask, scale = foreground()
    assert mask.shape == scale.shape == (8, 8)
    assert not mask.any()
    assert not scale.any()


def test_padding_is_no_box():
    boxes = make_boxes((0.0, 0.0, 4.0, 4.0, 0.0), (0.0, 0.0, 0.0, 0.0, 0.0))
    valid = torch.tensor([[False, False]])
    for options in ({}, {"ensure_center_cell": True}, {"overlap": "smallest"}):
        mask, scale = foreground_and_scale(boxes, valid, GRID, **options)
        assert not mask.any()
        assert not scale.any()


@pytest.mark.parametrize(
    ("footprint", "sample", "count"),
    [
        ((0.0, 0.0, 0.4, 0.4, 0.0), "center", 0),
        ((0.0, 0.0, 0.4, 0.4, 0.0), "corner", 1),
        ((0.3, 0.3, 0.5, 0.5, 0.0), "center", 1),
        ((0.3, 0.3, 0.5, 0.5, 0.0), "corner", 0),
    ],
)
def test_small_boxes_need_a_sample_point(footprint, sample, count):
    mask, _ = foreground(footprint, sample=sample)
    assert int(mask.sum()) == count
    mask, scale = foreground(footprint, sample=sample, ensure_center_cell=True)
    assert cells(mask) == {(4, 4)}
    assert scale[4, 4].item() == pytest.approx(1 / footprint[2])


def test_ensured_cells_leave_boxes_with_sample_points_alone():
    """A thin diagonal box passes the sample point of its own centre's cell, but holds two others."""
    thin = (0.05, 0.05, 3.0, 0.3, -math.pi / 4)
    for options in ({}, {"ensure_center_cell": True}):
        mask, _ = foreground(thin, **options)
        assert cells(mask) == {(3, 4), (4, 3)}


def test_ensured_cells_off_the_grid_do_not_wrap_around():
    mask, _ = foreground((4.2, 0.1, 0.1, 0.1, 0.0), (0.1, -4.3, 0.1, 0.1, 0.0), ensure_center_cell=True)
    assert not mask.any()


def test_ensured_cells_on_a_grid_that_is_neither_square_nor_centred():
    grid = Grid(10.0, -6.0, 0.5, 6, 4)
    speck = (0.01, 0.01, 0.0)
    mask, _ = foreground((12.4, -5.6, *speck), (10.1, -4.1, *speck), grid=grid, ensure_center_cell=True)
    assert cells(mask) == {(0, 4), (3, 0)}


@pytest.mark.parametrize(("pairs", "sizes"), [(2 * 64 * 10, [10, 10, 3]), (1, [1] * 23), (1 << 22, [23])])
def test_blocks_bound_the_box_cell_pairs_at_once(monkeypatch, pairs, sizes):
    seen = []
    original = losses.points_in_boxes_bev

    def recorded(points, boxes):
        seen.append(len(boxes))
        return original(points, boxes)

    monkeypatch.setattr(losses, "BLOCK", pairs)
    monkeypatch.setattr(losses, "points_in_boxes_bev", recorded)
    foreground_and_scale(Boxes(torch.rand(2, 23, 9)), torch.ones(2, 23, dtype=torch.bool), GRID)
    assert seen == sizes


def test_blocks_of_boxes_change_nothing(monkeypatch):
    torch.manual_seed(0)
    boxes = Boxes(torch.cat([torch.randn(2, 23, 3) * 2, torch.rand(2, 23, 3) * 3 + 0.1, torch.randn(2, 23, 3)], -1))
    valid = torch.rand(2, 23) < 0.8
    whole = foreground_and_scale(boxes, valid, GRID)
    monkeypatch.setattr(losses, "BLOCK", 2 * 64 * 4)
    in_blocks = foreground_and_scale(boxes, valid, GRID)
    assert whole[0].any()
    assert torch.equal(whole[0], in_blocks[0])
    assert torch.equal(whole[1], in_blocks[1])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(-3.5, 3.5)] * 2, *[st.floats(0.2, 5.0)] * 2, st.floats(-7.0, 7.0)),
        min_size=1,
        max_size=4,
    )
)
def test_foreground_agrees_with_one_cell_and_one_box_at_a_time(footprints):
    mask, scale = foreground(*footprints)
    for row in range(8):
        for column in range(8):
            owner = None
            for footprint in reversed(footprints):
                x, y, length, width, yaw = footprint
                dx, dy = column - 3.5 - x, row - 3.5 - y
                along = dx * math.cos(yaw) + dy * math.sin(yaw)
                across = -dx * math.sin(yaw) + dy * math.cos(yaw)
                margins = (abs(along) - length / 2, abs(across) - width / 2)
                if any(abs(margin) < 1e-9 for margin in margins):
                    return
                if max(margins) < 0:
                    owner = footprint
            assert bool(mask[row, column]) == (owner is not None)
            expected = 0.0 if owner is None else 1 / math.sqrt(owner[2] * owner[3])
            assert scale[row, column].item() == pytest.approx(expected, abs=1e-9)


def heatmaps_of_two_classes() -> tuple[Tensor, Tensor, Tensor]:
    teacher, truth = torch.zeros(2, 1, 2, 4, 4)
    teacher[0, 0, 0, 0], teacher[0, 0, 2, 2] = 0.30, 0.95
    teacher[0, 1, 1, 3], teacher[0, 1, 3, 0] = 0.12, 0.08
    truth[0, 0, 2, 2], truth[0, 0, 2, 1] = 1.0, 0.4
    truth[0, 1, 0, 0] = 0.05
    in_boxes = torch.zeros(1, 4, 4, dtype=torch.bool)
    in_boxes[0, 2, 2] = True
    return teacher, truth, in_boxes


def test_false_positives():
    teacher, truth, in_boxes = heatmaps_of_two_classes()
    mask = false_positive_mask(teacher.amax(1), truth.amax(1), in_boxes, 0.1, 0.1)
    assert cells(mask[0]) == {(0, 0), (1, 3)}
    regions = decompose(in_boxes, in_boxes.float(), mask)
    assert [int(region.sum()) for region in regions[:3]] == [1, 2, 13]


def test_false_positives_on_a_coarser_feature_map():
    teacher, truth, in_boxes = heatmaps_of_two_classes()
    pooled = [resample_heatmap(heatmap.amax(1), 2, 2) for heatmap in (teacher, truth)]
    mask = false_positive_mask(*pooled, in_boxes[:, ::2, ::2], 0.1, 0.1)
    assert mask[0].tolist() == [[True, True], [False, False]]


def test_what_the_teacher_sees_inside_a_box_is_no_false_positive():
    # The end of a long vehicle: inside its box, and far from the Gaussian at its centre.
    teacher = torch.tensor([[[0.9, 0.9]]])
    truth = torch.zeros(1, 1, 2)
    in_boxes = torch.tensor([[[True, False]]])
    assert false_positive_mask(teacher, truth, in_boxes, 0.1, 0.1).tolist() == [[[False, True]]]


def test_a_higher_teacher_threshold_never_adds_false_positives_a_higher_common_one_may():
    teacher, truth = torch.tensor([[[0.9, 0.3]]]), torch.tensor([[[0.2, 0.0]]])
    nowhere = torch.zeros(1, 1, 2, dtype=torch.bool)
    assert false_positive_mask(teacher, truth, nowhere, 0.1, 0.1).tolist() == [[[False, True]]]
    assert false_positive_mask(teacher, truth, nowhere, 0.5, 0.1).tolist() == [[[False, False]]]
    assert false_positive_mask(teacher, truth, nowhere, 0.25, 0.25).tolist() == [[[True, True]]]


def test_thresholds_are_strict():
    at_threshold = torch.tensor([[[0.1]]])
    nowhere = torch.zeros(1, 1, 1, dtype=torch.bool)
    assert not false_positive_mask(at_threshold, at_threshold * 0, nowhere, at_threshold.item(), 0.1).any()
    assert not false_positive_mask(at_threshold * 9, at_threshold, nowhere, 0.1, at_threshold.item()).any()


def test_teacher_heatmap_is_the_largest_probability_of_all_tasks_kept_off_zero_and_one():
    tasks = [
        torch.tensor([[[[0.0, -30.0]]]]),
        torch.tensor(
            [
                [[[-1.0, -30.0]], [[1.0, -30.0]]],
            ]
        ),
    ]
    heatmap = teacher_heatmap(tasks)
    assert heatmap.shape == (1, 1, 2)
    assert heatmap[0, 0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1e-4])
    assert teacher_heatmap([torch.full((1, 1, 1, 1), 30.0)]).item() == pytest.approx(1 - 1e-4)


def test_ground_truth_heatmap_is_the_maximum_over_tasks_and_classes():
    tasks = [torch.tensor([[[[0.2, 0.0]], [[0.1, 0.3]]]]), torch.tensor([[[[0.1, 0.9]]]])]
    assert ground_truth_heatmap(tasks)[0, 0].tolist() == pytest.approx([0.2, 0.9])


def test_teacher_logits_stay_logits():
    """With a sigmoid in place, the second and third call would see 15 false positives instead of one."""
    probability = torch.full((1, 1, 4, 4), 0.01)
    probability[0, 0, 0, 0] = probability[0, 0, 3, 3] = 0.9
    logits = [torch.logit(probability)]
    truth = torch.zeros(1, 4, 4)
    truth[0, 3, 3] = 1.0
    counts = [
        int(false_positive_mask(teacher_heatmap(logits), truth, truth > 0.5, 0.1, 0.1).sum()) for _ in range(3)
    ]
    assert counts == [1, 1, 1]


def test_heatmaps_are_pooled_or_repeated():
    heatmap = torch.arange(8.0).view(1, 2, 4)
    assert resample_heatmap(heatmap, 2, 4).tolist() == heatmap.tolist()
    assert resample_heatmap(heatmap, 1, 2).tolist() == [[[5.0, 7.0]]]
    assert resample_heatmap(heatmap, 4, 4)[0, :, 1].tolist() == [1.0, 1.0, 5.0, 5.0]
    assert resample_heatmap(heatmap, 2, 8)[0, 1].tolist() == [4.0, 4.0, 5.0, 5.0, 6.0, 6.0, 7.0, 7.0]
    with pytest.raises(ValueError, match="does not fit"):
        resample_heatmap(heatmap, 3, 4)


def random_regions(seed: int, with_false_positives: bool) -> losses.Regions:
    torch.manual_seed(seed)
    in_boxes = torch.rand(3, 5, 7) < 0.2
    scale = in_boxes * torch.rand(3, 5, 7)
    candidates = (torch.rand(3, 5, 7) < 0.2) & ~in_boxes
    return decompose(in_boxes, scale, candidates if with_false_positives else None)


@pytest.mark.parametrize("with_false_positives", [True, False])
def test_regions_partition_the_grid_and_share_one_unit_of_weight_each(with_false_positives):
    regions = random_regions(0, with_false_positives)
    counts = torch.stack([mask.sum(dim=(1, 2)) for mask in regions[:3]])
    assert counts.sum(dim=0).tolist() == [35, 35, 35]
    assert len(set(counts[0].tolist())) > 1, "the samples must differ for the next lines to mean anything"
    for mask in regions[1:3]:
        share = (mask * regions.scale).sum(dim=(1, 2))
        assert share.tolist() == pytest.approx([float(mask.any()) and 1.0] * 3)
        assert torch.equal(mask, (regions.scale > 0) & mask)


@pytest.mark.parametrize("taken", ["boxes", "false positives"])
def test_an_empty_background_has_no_weight(taken):
    everywhere, nowhere = torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(1, 2, 2, dtype=torch.bool)
    in_boxes, candidates = (everywhere, nowhere) if taken == "boxes" else (nowhere, everywhere)
    regions = decompose(in_boxes, 0.5 * in_boxes, candidates)
    assert not regions.background.any()
    assert regions.scale.tolist() == [[[0.5, 0.5], [0.5, 0.5]]] if taken == "boxes" else [[[0.25] * 2] * 2]


def test_levelled_scale_keeps_the_weight_of_the_foreground():
    regions = random_regions(1, with_false_positives=True)
    level = level_scale(regions)
    for sample in range(3):
        in_boxes = regions.foreground[sample]
        values = level.scale[sample][in_boxes]
        assert values.tolist() == pytest.approx([values[0].item()] * len(values))
        assert values.sum().item() == pytest.approx(regions.scale[sample][in_boxes].sum().item())
        assert torch.equal(level.scale[sample][~in_boxes], regions.scale[sample][~in_boxes])
    assert not torch.allclose(level.scale, regions.scale)


def test_level_weight_spreads_each_samples_total_over_the_grid():
    regions = random_regions(2, with_false_positives=True)
    regions.false_positive[1] = False
    alpha, w_fp, beta = 2.0, 30.0, 500.0
    weight = level_weight(regions, alpha, w_fp, beta)
    assert weight.shape == (3, 5, 7)
    for sample in range(3):
        foreground, false_positive, background = (
            (mask[sample] * regions.scale[sample]).sum().item() for mask in regions[:3]
        )
        total = alpha * foreground + w_fp * false_positive + beta * background
        assert weight[sample].flatten().tolist() == pytest.approx([total / 35] * 35)
    assert len({round(weight[sample, 0, 0].item(), 6) for sample in range(3)}) == 3
