"""Motion of the ego worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from bevkd_common.data.samples import Batch, Cameras, EgoMotion, History
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.geometry.transforms import reflection, rigid, rotation_z, scaling
from bevkd_common.models.bevformer.memory import BevMemory, Moment, can_bus_signals, queue, turned_to
from bevkd_common.ops.deformable_attention import deformable_attention
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

PAPER = Grid(-51.2, -51.2, 0.512, 200, 200)
EGO_T_LIDAR = rigid(rotation_z(torch.tensor(-math.pi / 2, dtype=torch.float64)), torch.zeros(3))
"""x right and y forward, where the ego has x forward and y left."""
NOTHING = Cameras(*(torch.zeros(0) for _ in range(4)))


def pose(x: float, y: float, degrees: float) -> Tensor:
    """`global_T_ego` [1, 4, 4]."""
    turn = rotation_z(torch.tensor(math.radians(degrees), dtype=torch.float64))
    return rigid(turn, torch.tensor([x, y, 0.0], dtype=torch.float64))[None]


def now(global_T_ego: Tensor, lidar_T_axes: Tensor | None = None) -> Moment:
    axes = torch.eye(4, dtype=torch.float64) if lidar_T_axes is None else lidar_T_axes
    everywhere = torch.ones(len(global_T_ego), dtype=torch.bool)
    motion = torch.arange(9.0).expand(len(global_T_ego), 9)
    return Moment(NOTHING, global_T_ego @ EGO_T_LIDAR @ axes, global_T_ego, motion, everywhere)


def before(global_T_ego: Tensor, bev: Tensor | None = None, lidar_T_axes: Tensor | None = None) -> BevMemory:
    bev = torch.zeros(len(global_T_ego), 1, 2, 2) if bev is None else bev
    return BevMemory.of(bev, now(global_T_ego, lidar_T_axes), ("scene",) * len(global_T_ego))


@pytest.mark.parametrize(
    ("degrees", "move", "expected"),
    [
        (90, (0, 2), (0, 0.01953125)),
        (90, (-2, 0), (-0.01953125, 0)),
        (0, (2, 0), (0, 0.01953125)),
        (0, (1, 1), (-0.00976563, 0.00976563)),
    ],
)
def test_shift_of_the_places_in_the_earlier_map(degrees, move, expected):
    memory = before(pose(0, 0, degrees), torch.zeros(1, 1, 200, 200))
    _, shift = turned_to(now(pose(*move, degrees)), memory, PAPER, None)
    assert shift[0].tolist() == pytest.approx(expected, abs=1e-7)


def test_a_shift_is_a_share_of_the_extent_along_each_side():
    oblong = Grid(-8.0, -2.0, 1.0, 16, 4)
    memory = before(pose(0, 0, 0), torch.zeros(1, 1, 4, 16))
    _, shift = turned_to(now(pose(1, -2, 0)), memory, oblong, None)
    assert shift[0].tolist() == pytest.approx([2 / 16, 1 / 4])


NINE = torch.arange(9.0).view(1, 1, 3, 3)


@pytest.mark.parametrize("center", [None, (1.5, 1.5)])
def test_a_quarter_turn_to_the_left_moves_what_was_ahead_to_the_right(center):
    grid = Grid(-1.5, -1.5, 1.0, 3, 3)
    bev, shift = turned_to(now(pose(0, 0, 90)), before(pose(0, 0, 0), NINE), grid, center)
    assert bev[0, 0].tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
    assert shift[0].tolist() == pytest.approx([0, 0], abs=1e-7)


def test_a_centre_far_outside_turns_everything_away():
    grid = Grid(-2.0, -2.0, 1.0, 4, 4)
    bev, _ = turned_to(now(pose(0, 0, 90)), before(pose(0, 0, 0), torch.ones(1, 1, 4, 4)), grid, (100.0, 100.0))
    assert not bev.any()


@pytest.mark.parametrize("degrees", [-163.0, -31.7, -7.0, 12.3, 75.0])
def test_turns_are_those_of_torchvision(degrees):
    grid = Grid(-4.0, -6.0, 0.5, 16, 20)
    bev = torch.rand(1, 2, 20, 16, generator=torch.Generator().manual_seed(0))
    found, _ = turned_to(now(pose(3, 1, 40 + degrees)), before(pose(0, 0, 40), bev), grid, (7.0, 9.0))
    expected = rotate(bev, degrees, InterpolationMode.NEAREST, center=[7.0, 9.0])
    assert torch.equal(found, expected)
    assert not torch.equal(found, bev)


AUGMENTATIONS = {
    "none": torch.eye(4, dtype=torch.float64),
    "mirrored": reflection("x").double(),
    "turned and enlarged": rigid(rotation_z(torch.tensor(math.pi / 2).double()), torch.zeros(3))
    @ scaling(2.0).double(),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_thing_that_stands_still_is_found_in_the_earlier_map(name):
    grid = Grid(-8.0, -8.0, 1.0, 16, 16)
    lidar_T_axes = torch.linalg.inv(AUGMENTATIONS[name])
    earlier, present = pose(10, 20, 90), pose(12, 21, 180)
    place = torch.tensor([[[11.25, 22.25, 0.0, 1.0]]], dtype=torch.float64)

    def cell(moment: Moment) -> tuple[int, int]:
        x, y = (torch.linalg.inv(moment.global_T_lidar) @ place.mT)[0, :2, 0].tolist()
        return int((y - grid.y0) // grid.cell), int((x - grid.x0) // grid.cell)

    seen = torch.zeros(1, 1, 16, 16)
    seen[(0, 0, *cell(now(earlier, lidar_T_axes)))] = 1.0
    moment = now(present, lidar_T_axes)
    bev, shift = turned_to(moment, before(earlier, seen, lidar_T_axes), grid, None)
    row, column = cell(moment)
    assert cell(now(earlier, lidar_T_axes)) != (row, column)
    where = torch.tensor([(column + 0.5) / 16, (row + 0.5) / 16]) + shift[0]
    value = deformable_attention(
        bev.view(1, 256, 1, 1), [(16, 16)], where.view(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1)
    )
    assert float(value) == pytest.approx(1.0, abs=1e-4)


def test_poses_of_a_queue_are_those_of_augmented_axes():
    """A landmark has one place in the world, whichever key frame's augmented axes it is told in."""
    aug_T_lidar = AUGMENTATIONS["turned and enlarged"][None]
    earlier, present = (now(global_T_ego).global_T_lidar for global_T_ego in (pose(3, 4, 20), pose(5, 5, 50)))
    cameras = Cameras(
        torch.zeros(1, 1, 3, 1, 1, dtype=torch.uint8),
        torch.eye(3)[None, None],
        torch.eye(4)[None, None],
        torch.eye(3)[None, None],
    )
    lidar_T_aug = torch.linalg.inv(aug_T_lidar)
    aug_T_past = aug_T_lidar @ torch.linalg.inv(present) @ earlier @ lidar_T_aug
    batch = Batch(
        tokens=("token",),
        scenes=("scene",),
        boxes=Boxes(torch.zeros(1, 0, 9)),
        labels=torch.zeros(1, 0, dtype=torch.int64),
        cameras=cameras,
        clouds={},
        aug_T_lidar=aug_T_lidar.float(),
        global_T_lidar=present,
        history=History(
            Cameras(*(value[:, None] for value in vars(cameras).values())),
            aug_T_past[:, None].float(),
            torch.ones(1, 1),
            torch.ones(1, 1, dtype=torch.bool),
        ),
        ego=EgoMotion(torch.stack([earlier, present], dim=1), *(torch.zeros(1, 2, 3) for _ in range(3))),
    )
    first, last = queue(batch, 2)
    place = torch.tensor([6.0, 7, 1, 1], dtype=torch.float64)
    for moment, global_T_lidar in ((first, earlier), (last, present)):
        told = aug_T_lidar[0] @ torch.linalg.inv(global_T_lidar[0]) @ place
        torch.testing.assert_close(moment.global_T_lidar[0] @ told, place, atol=1e-4, rtol=0)
        assert torch.equal(moment.global_T_ego, global_T_lidar)
    assert len(queue(batch, 1)) == 1


def test_signals_of_a_first_key_frame():
    signals = can_bus_signals(now(pose(5, 6, -90)), None, wrap_yaw=True)[0].tolist()
    half = math.sqrt(0.5)
    assert signals == pytest.approx([0, 0, 0, half, 0, 0, -half, *range(9), 1.5 * math.pi, 0.0], abs=1e-6)


@pytest.mark.parametrize(("wrap_yaw", "turned"), [(True, 20.0), (False, -340.0)])
def test_signals_tell_what_happened_since(wrap_yaw, turned):
    memory = before(torch.cat([pose(1, 2, 350), pose(1, 2, 350)]))
    memory.known[1] = False
    moment = now(torch.cat([pose(4, 1, 10), pose(4, 1, 10)]))
    known, unknown = can_bus_signals(moment, memory, wrap_yaw=wrap_yaw).tolist()
    yaw = math.radians(10)
    attitude = [math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)]
    assert known == pytest.approx([3, -1, 0, *attitude, *range(9), yaw, turned], abs=1e-4)
    assert unknown == pytest.approx([0, 0, 0, *attitude, *range(9), yaw, 0], abs=1e-5)
