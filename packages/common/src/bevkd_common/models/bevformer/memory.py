"""The BEV map of an earlier key frame that BEVFormer keeps, and the motion of the ego since then."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bevkd_common.data.samples import Batch, Cameras
from bevkd_common.geometry.grid import Grid
from bevkd_common.geometry.transforms import (
    inverse,
    rigid,
    rotation_to_quaternion,
    rotation_z,
    wrap_angle,
    yaw_of,
)
from bevkd_common.ops.bev_warp import warp_bev

CAN_BUS_CHANNELS = 18


@dataclass(frozen=True, eq=False)
class Moment:
    """One key frame of a queue.

    Attributes:
        cameras: Leading to the LiDAR axes of this moment.
        global_T_lidar: [B, 4, 4] float64, pose of those axes, augmented as the batch is.
        global_T_ego: [B, 4, 4] float64.
        motion: [B, 9] acceleration, rotation rate and velocity, see `EgoMotion`.
        present: [B] bool; where False, the scene has no such key frame and another one replaces it.
    """

    cameras: Cameras
    global_T_lidar: Tensor
    global_T_ego: Tensor
    motion: Tensor
    present: Tensor


@dataclass(frozen=True, eq=False)
class BevMemory:
    """The map of an earlier key frame.

    Attributes:
        bev: [B, C, Y, X] in the LiDAR axes of its moment.
        global_T_lidar: As of its `Moment`.
        global_T_ego: As of its `Moment`.
        known: [B] bool; where False there is no map, and the values are arbitrary.
        scenes: B names of the scenes.
    """

    bev: Tensor
    global_T_lidar: Tensor
    global_T_ego: Tensor
    known: Tensor
    scenes: tuple[str, ...]

    @classmethod
    def of(cls, bev: Tensor, moment: Moment, scenes: tuple[str, ...]) -> BevMemory:
        """The memory of a moment."""
        return cls(bev.detach(), moment.global_T_lidar, moment.global_T_ego, moment.present, scenes)


def queue(batch: Batch, frames: int) -> list[Moment]:
    """The key frames of a batch, oldest first, the present one last; only the present one if no history was loaded.

    Args:
        batch: A batch with cameras and ego-motion.
        frames: Maximum number of key frames, including the present one.

    Raises:
        ValueError: If the batch lacks cameras or motion.
    """
    if batch.cameras is None or batch.ego is None:
        raise ValueError("BEVFormer needs images and ego-motion; the batch was loaded without them")
    assert batch.global_T_lidar is not None
    global_T_lidar = batch.global_T_lidar @ inverse(batch.aug_T_lidar.double())
    past = batch.history.last(frames - 1) if batch.history is not None and frames > 1 else None
    earlier = 0 if past is None else past.seconds.shape[1]
    ego = batch.ego
    motion = torch.cat([ego.acceleration, ego.rotation_rate, ego.velocity], dim=-1)[:, -earlier - 1 :]
    poses = ego.global_T_ego[:, -earlier - 1 :]
    everywhere = torch.ones(len(batch), dtype=torch.bool, device=batch.device)
    found = (
        []
        if past is None
        else [
            Moment(
                cameras=past.frame(place),
                global_T_lidar=global_T_lidar @ past.lidar_T_past[:, place].double(),
                global_T_ego=poses[:, place],
                motion=motion[:, place],
                present=past.present[:, place],
            )
            for place in range(earlier)
        ]
    )
    return [*found, Moment(batch.cameras, global_T_lidar, poses[:, -1], motion[:, -1], everywhere)]


def can_bus_signals(moment: Moment, memory: BevMemory | None, *, wrap_yaw: bool) -> Tensor:
    """The CAN-bus signals of the ego vehicle, [B, 18] float32.

    Metres moved since the memory in global axes (3), attitude as a quaternion w, x, y, z, acceleration, rotation
    rate, velocity, yaw in [0, 2π), and degrees turned since the memory. Without a memory, both motions are 0.

    Upstream: a turn through yaw 0 counts 360° too much or too little, unless `wrap_yaw`. The sign of a stored
    quaternion is kept; here w is not negative.

    Args:
        moment: The present moment.
        memory: The earlier map.
        wrap_yaw: Bring the turn into [-180°, 180°).
    """
    rotation = moment.global_T_ego[:, :3, :3]
    yaw = yaw_of(rotation) % (2 * math.pi)
    moved, turned = torch.zeros_like(rotation[:, 0]), torch.zeros_like(yaw)
    if memory is not None:
        step = moment.global_T_ego[:, :3, 3] - memory.global_T_ego[:, :3, 3]
        turn = yaw - yaw_of(memory.global_T_ego[:, :3, :3]) % (2 * math.pi)
        moved = torch.where(memory.known[:, None], step, moved)
        turned = torch.where(memory.known, wrap_angle(turn) if wrap_yaw else turn, turned)
    attitude = rotation_to_quaternion(rotation)
    parts = [moved, attitude, moment.motion.double(), yaw[:, None], turned.rad2deg()[:, None]]
    return torch.cat(parts, dim=-1).float()


def turned_to(
    moment: Moment, memory: BevMemory, grid: Grid, center: tuple[float, float] | None
) -> tuple[Tensor, Tensor]:
    """The earlier map, rotated by the ego's rotation since then, and the remaining shift.

    A cell of the present map at `p`, as a share of the map's extent, was at `p + shift` of the rotated map.

    Upstream: the ego's motion is used for the LiDAR, which is a metre in front of it.

    Args:
        moment: The present moment.
        memory: The earlier map.
        grid: Grid of the map.
        center: Centre of rotation, (column, row) in cells from the map's lower corner; None is the LiDAR.

    Returns:
        The map [B, C, Y, X], nearest-neighbour sampled, zero outside the earlier map; and the shift [B, 2].
    """
    lidar_T_past = inverse(moment.global_T_lidar) @ memory.global_T_lidar
    turn = rotation_z(yaw_of(lidar_T_past[:, :3, :3]))
    about = turn.new_zeros(3)
    if center is not None:
        about[:2] = turn.new_tensor([grid.x0 + center[0] * grid.cell, grid.y0 + center[1] * grid.cell])
    bev = warp_bev(memory.bev, rigid(turn, about - turn @ about), grid, mode="nearest")
    extent = turn.new_tensor([grid.nx * grid.cell, grid.ny * grid.cell])
    return bev, (-lidar_T_past[:, :2, 3] / extent).float()
