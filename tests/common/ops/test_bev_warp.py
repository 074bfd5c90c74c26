"""Hand-computed moves of single cells (F16 of the specification)."""

from __future__ import annotations

import math

import pytest
import torch
from bevkd_common.geometry.grid import Grid
from bevkd_common.geometry.transforms import rigid, rotation_z
from bevkd_common.ops.bev_warp import warp_bev

GRID = Grid(-51.2, -51.2, 0.8, 128, 128)


def moved(lidar_T_past: torch.Tensor, cell: tuple[int, int] = (77, 64), **options) -> tuple[int, int]:
    """Where the value of one cell (row, column) of the earlier map is afterwards."""
    past = torch.zeros(1, 1, 128, 128)
    past[0, 0][cell] = 1.0
    now = warp_bev(past, lidar_T_past[None], GRID, **options)[0, 0]
    assert float(now.max()) == pytest.approx(1.0, abs=1e-3)
    assert float(now.sum()) == pytest.approx(1.0, abs=2e-2)
    row, column = divmod(int(now.argmax()), 128)
    return row, column


@pytest.mark.parametrize("anchor", ["center", "corner"])
def test_what_stands_comes_nearer_when_the_ego_drives(anchor):
    # 1.6 m forward: what was ahead at y lies at y - 1.6 now.
    lidar_T_past = rigid(torch.eye(3), torch.tensor([0.0, -1.6, 0.0]))
    assert moved(lidar_T_past, anchor=anchor) == (75, 64)
    assert moved(rigid(torch.eye(3), torch.tensor([2.4, 0.0, 9.0])), anchor=anchor) == (77, 67)


@pytest.mark.parametrize("anchor", ["center", "corner"])
def test_no_motion_changes_nothing(anchor):
    past = torch.randn(2, 3, 128, 128)
    now = warp_bev(past, torch.eye(4).expand(2, 4, 4), GRID, anchor=anchor)
    torch.testing.assert_close(now, past, atol=1e-4, rtol=0)


def test_half_a_turn_keeps_cells_exactly_unless_corners_move():
    half_turn = rigid(rotation_z(torch.tensor(math.pi)), torch.zeros(3))
    assert moved(half_turn) == (50, 63)
    assert moved(half_turn, anchor="corner") == (51, 64)


def test_a_left_turn_moves_what_was_ahead_to_the_right():
    # The ego turned by +90 degrees, so what lay along +y lies along +x now.
    quarter = rigid(rotation_z(torch.tensor(-math.pi / 2)), torch.zeros(3))
    assert moved(quarter, (100, 64)) == (63, 100)


def test_what_was_not_seen_is_zero():
    past = torch.ones(1, 1, 128, 128)
    now = warp_bev(past, rigid(torch.eye(3), torch.tensor([0.0, -8.0, 0.0]))[None], GRID)[0, 0]
    assert torch.equal(now[118:], torch.zeros(10, 128))
    torch.testing.assert_close(now[:117], torch.ones(117, 128), atol=1e-4, rtol=0)


def test_samples_move_on_their_own_and_gradients_flow():
    past = torch.zeros(2, 1, 128, 128, requires_grad=True)
    shifts = torch.stack([rigid(torch.eye(3), torch.tensor([0.0, y, 0.0])) for y in (-0.8, 0.8)])
    warp_bev(past, shifts, GRID)[:, 0, 60, 60].sum().backward()
    assert past.grad is not None
    rows = past.grad[:, 0, :, 60].argmax(dim=1)
    assert rows.tolist() == [61, 59]
