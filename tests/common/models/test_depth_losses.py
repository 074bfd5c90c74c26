"""Megvii's depth loss by hand and against loops in float64; the other form is tested with its detector."""

from __future__ import annotations

import math

import pytest
import torch
from bevkd_common.data.samples import DepthHits
from bevkd_common.geometry.grid import DepthBins
from bevkd_common.models.depth_losses import softmax_depth_loss
from torch import Tensor

BINS = DepthBins(2.0, 8.0, 0.5)
SIZE = (16, 24)


def hits(*rows: tuple[int, float, float, float]) -> DepthHits:
    """Image, u, v, depth."""
    table = torch.tensor(rows)
    return DepthHits(table[:, 0].long(), table[:, 1:3], table[:, 3], table[:, 3] > 0)


def many_hits() -> DepthHits:
    """More points than pixels, some beside the image and some out of the bins."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(1500, 3, generator=generator)
    pixels = draw[:, :2] * torch.tensor([26.0, 18.0]) - 1
    image = torch.randint(0, 4, (1500,), generator=generator)
    inner = torch.rand(1500, generator=generator) < 0.9
    # Half of the cells have no point.
    shown = (pixels[:, 0] // 8 + pixels[:, 1] // 8 + image) % 2 == 0
    return DepthHits(image[shown], pixels[shown], draw[shown, 2] * 40 + 0.5, inner[shown])


def by_loops(logits: Tensor, points: DepthHits) -> Tensor:
    """The same in float64: the last point of a pixel, the nearest pixel of a cell, one cell after the other."""
    pixels: dict[tuple[int, int, int], float] = {}
    assert 0 < points.inner.sum() < len(points.inner)
    rows = torch.cat([points.image[:, None], points.pixels, points.depth[:, None]], dim=1)[points.inner].tolist()
    for image, u, v, depth in rows:
        if 0 <= int(u) < SIZE[1] and 0 <= int(v) < SIZE[0]:
            pixels[int(image), int(v), int(u)] = depth
    cells: dict[tuple[int, int, int], float] = {}
    for (image, row, column), depth in pixels.items():
        cell = image, row // 8, column // 8
        cells[cell] = min(depth, cells.get(cell, math.inf))
    total, counted = logits.new_zeros((), dtype=torch.float64), 0
    for (image, row, column), depth in cells.items():
        label = math.floor((depth - BINS.start) / BINS.step)
        if 0 <= label < BINS.count:
            told = logits.double().flatten(0, 1)[image, :, row, column].softmax(0)
            wanted = torch.eye(BINS.count, dtype=torch.float64)[label]
            total = total - (wanted * told.log() + (1 - wanted) * (1 - told).log()).sum()
            counted += 1
    assert 2 < counted < len(cells)
    return total / counted


def test_it_equals_loops_over_cells_in_float64():
    logits = torch.randn(2, 2, BINS.count, 2, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss, expected = softmax_depth_loss(logits, many_hits(), BINS, SIZE), by_loops(logits, many_hits())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    (ours,), (theirs,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert ours.abs().max() > 0.01


def test_a_cell_by_hand():
    """Even logits over 12 bins: 1/12 each, of which one is right. Two cells with a depth, and four without."""
    seen = (0, 3.9, 3.2, 5.1), (0, 3.1, 3.9, 7.1), (0, 0.0, 9.0, 3.0)
    points = hits(*seen, (0, 17.0, 1.0, 1.9), (0, 17.0, 9.0, 8.0))
    logits = torch.zeros(1, 1, 12, 2, 3)
    per_cell = -math.log(1 / 12) - 11 * math.log(11 / 12)
    assert softmax_depth_loss(logits, points, BINS, SIZE).item() == pytest.approx(per_cell, rel=1e-6)
    # The first two share pixel (3, 3), whose last depth is 7.1 m: bin 10.
    logits[0, 0, 10, 0, 0] = 50.0
    assert softmax_depth_loss(logits, points, BINS, SIZE).item() == pytest.approx(per_cell / 2, rel=1e-5)


def test_without_a_point_it_is_zero_and_trains_nothing():
    logits = torch.randn(1, 1, 12, 2, 3, requires_grad=True)
    loss = softmax_depth_loss(logits, hits((0, 3.0, 3.0, 1.9)), BINS, SIZE)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_it_stays_in_float32_under_autocast():
    logits, points = torch.randn(2, 2, 12, 2, 3).bfloat16(), many_hits()
    with torch.autocast("cpu", torch.bfloat16):
        loss = softmax_depth_loss(logits, points, BINS, SIZE)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, softmax_depth_loss(logits.float(), points, BINS, SIZE))
