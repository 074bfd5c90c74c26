"""Depth maps of hand-placed points, in the forms of the released detectors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bevkd_common.data.samples import DepthHits
from bevkd_common.geometry.grid import DepthBins
from bevkd_common.ops.depth_maps import depth_labels, depth_map, pool_nearest


def hits(*rows: tuple[int, float, float, float]) -> DepthHits:
    """Image, u, v, depth."""
    table = torch.tensor(rows)
    return DepthHits(table[:, 0].long(), table[:, 1:3], table[:, 3], table[:, 3] > 0)


def shown(depth: torch.Tensor) -> dict[tuple[int, ...], float]:
    return {tuple(place.tolist()): float(depth[tuple(place)]) for place in torch.isfinite(depth).nonzero()}


def test_the_nearest_point_of_a_cell_counts_and_images_are_apart():
    points = hits((0, 5.0, 3.0, 9.0), (0, 6.9, 1.0, 7.0), (1, 6.0, 2.0, 8.0), (1, 20.0, 9.0, 5.0))
    depth = depth_map(points, 2, (16, 32), stride=4)
    assert depth.shape == (2, 4, 8)
    assert shown(depth) == {(0, 0, 1): 7.0, (1, 0, 1): 8.0, (1, 2, 5): 5.0}


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("floor", {(0, 0, 0): 2.0, (0, 0, 1): 3.0}),
        ("truncate", {(0, 0, 0): 1.0, (0, 0, 1): 3.0}),
        ("nearest", {(0, 0, 0): 1.0, (0, 0, 2): 3.0}),
    ],
)
def test_rounding_decides_the_cell(rounding, expected):
    # u / 16: -0.4, 0.45, 1.6.
    points = hits((0, -6.4, 1.0, 1.0), (0, 7.2, 1.0, 2.0), (0, 25.6, 1.0, 3.0))
    assert shown(depth_map(points, 1, (16, 48), stride=16, rounding=rounding)) == expected


def test_the_last_point_may_win_and_depths_are_limited():
    points = hits(
        (0, 1.0, 0.0, 4.0), (0, 1.0, 0.0, 6.0), (0, 2.0, 0.0, 60.0), (0, 3.0, 0.0, 0.5), (0, 0.0, 0.0, 1.0)
    )
    last = depth_map(points, 1, (1, 4), keep="last", between=(1.0, 60.0))
    assert shown(last) == {(0, 0, 0): 1.0, (0, 0, 1): 6.0}
    assert shown(depth_map(points, 1, (1, 4), between=(1.0, 60.0)))[(0, 0, 1)] == 4.0


def test_points_of_the_outermost_recorded_pixel_may_be_left_out():
    points = hits((0, 1.0, 0.0, 4.0), (0, 2.0, 0.0, 6.0))
    points = replace(points, inner=torch.tensor([False, True]))
    assert shown(depth_map(points, 1, (1, 4))) == {(0, 0, 1): 4.0, (0, 0, 2): 6.0}
    assert shown(depth_map(points, 1, (1, 4), inner=True)) == {(0, 0, 2): 6.0}


def test_points_beside_the_image_do_not_wrap_around():
    points = hits((0, 32.0, 1.0, 4.0), (0, -1.0, 1.0, 4.0), (0, 3.0, 16.0, 4.0), (0, 3.0, -0.1, 4.0))
    assert shown(depth_map(points, 2, (16, 32))) == {}


def test_pooling_takes_the_nearest_of_a_block():
    depth = torch.full((1, 4, 4), torch.inf)
    depth[0, 0, 1], depth[0, 1, 1], depth[0, 3, 2] = 5.0, 3.0, 8.0
    assert shown(pool_nearest(depth, 2)) == {(0, 0, 0): 3.0, (0, 1, 1): 8.0}


def test_labels_of_the_specification():
    """F12: bins of half a metre from 2 to 58 m; and of a metre from 1 to 60 m."""
    depth = torch.tensor([10.0, 2.0, 1.9, 57.9, 58.0, torch.inf])
    assert depth_labels(depth, DepthBins(2.0, 58.0, 0.5)).tolist() == [16, 0, -1, 111, -1, -1]
    assert depth_labels(torch.tensor([10.4]), DepthBins(1.0, 60.0, 1.0)).tolist() == [9]
