"""Rigid and affine transforms: 4x4 matrices named `dst_T_src` that act on column vectors.

Every function is batched over leading dimensions and keeps the precision of its input, float64 included.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bevkd_common.errors import UserError

RIGID_TOLERANCE = 1e-4
"""Largest entry of `|R·Rᵀ - I|` that still counts as a rotation: calibration files carry six digits or more."""


def wrap_angle(angle: Tensor) -> Tensor:
    """Bring angles into [-π, π); those already inside come back unchanged, bit for bit."""
    turns = torch.floor((angle + math.pi) / (2 * math.pi))
    wrapped = angle - 2 * math.pi * turns
    # Rounding can leave a result on the open end, or an ulp outside the closed one.
    return torch.where(wrapped >= math.pi, -math.pi, wrapped).clamp(min=-math.pi)


def rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """Assemble `dst_T_src` [..., 4, 4] from its rotation [..., 3, 3] and translation [..., 3]."""
    batch = np.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])  # torch's own imports sympy
    dtype = torch.promote_types(rotation.dtype, translation.dtype)
    matrix = torch.zeros(*batch, 4, 4, dtype=dtype, device=rotation.device)
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1
    return matrix


def rotation_z(angle: Tensor | float) -> Tensor:
    """Rotation [..., 3, 3] by `angle` [...] radians about z, counter-clockwise seen from above."""
    angle = torch.as_tensor(angle)
    cos, sin = torch.cos(angle), torch.sin(angle)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    return torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=-1).unflatten(-1, (3, 3))


def scaling(factor: Tensor | float) -> Tensor:
    """Uniform scaling [..., 4, 4] about the origin by `factor` [...]."""
    factor = torch.as_tensor(factor)
    return torch.diag_embed(torch.stack([factor, factor, factor, torch.ones_like(factor)], dim=-1))


def reflection(axis: Literal["x", "y"]) -> Tensor:
    """The 4x4 matrix that negates one coordinate: `"y"` mirrors left and right of the x axis."""
    return torch.diag(torch.tensor([-1.0 if axis == name else 1.0 for name in ("x", "y", "z", "w")]))


def inverse_rigid(dst_T_src: Tensor) -> Tensor:
    """`src_T_dst` of a rigid [..., 4, 4] matrix, by transposing its rotation."""
    rotation = dst_T_src[..., :3, :3].transpose(-1, -2)
    translation = -transform_vectors(rotation, dst_T_src[..., None, :3, 3])
    return rigid(rotation, translation[..., 0, :])


def inverse(dst_T_src: Tensor) -> Tensor:
    """`src_T_dst` of any invertible [..., 4, 4] matrix, such as one that carries augmentation."""
    return torch.linalg.inv(dst_T_src)


def transform_points(dst_T_src: Tensor, points: Tensor) -> Tensor:
    """Move points into another frame.

    Args:
        dst_T_src: affine matrices [..., 4, 4], or one [4, 4].
        points: metres in `src`, [..., P, 3], leading dimensions broadcast with those of the matrices; any
            [..., 3] for a single matrix.

    Returns:
        Metres in `dst`, in the dtype of `points`; computed in the wider of the two dtypes.
    """
    return _affine(dst_T_src, points, translate=True)


def transform_vectors(dst_T_src: Tensor, vectors: Tensor) -> Tensor:
    """Like `transform_points` without the translation: for headings, velocities and rays.

    `dst_T_src` may also be the linear part alone, [..., 3, 3].
    """
    return _affine(dst_T_src, vectors, translate=False)


def _affine(dst_T_src: Tensor, points: Tensor, *, translate: bool) -> Tensor:
    columns = dst_T_src[..., :3, :]
    if dst_T_src.dim() > 2:
        columns = columns.unsqueeze(-3)
    # Sums of products, not a matmul: autocast and TF32 would round metres to ten bits.
    moved = points[..., 0:1] * columns[..., 0]
    moved = moved + points[..., 1:2] * columns[..., 1]
    moved = moved + points[..., 2:3] * columns[..., 2]
    if translate:
        moved = moved + columns[..., 3]
    return moved.to(points.dtype)


def lidar_T_sweep(  # noqa: N802 - named like every matrix
    ego_T_lidar_key: Tensor, global_T_ego_key: Tensor, global_T_ego_src: Tensor, ego_T_src: Tensor
) -> Tensor:
    """Bring a sensor at its own time into the LiDAR frame of the key frame.

    The chain for past sweeps as well as for cameras, whose images are taken at other times than the sweep.
    It runs in float64: global positions are kilometres, and two of them are subtracted.

    Args:
        ego_T_lidar_key: mount of the key frame's LiDAR, [..., 4, 4].
        global_T_ego_key: ego pose at the time of the key frame's sweep.
        global_T_ego_src: ego pose at the time of the other sensor.
        ego_T_src: mount of the other sensor.

    Returns:
        `lidar_T_src` [..., 4, 4] in the dtype of `ego_T_lidar_key`, for `transform_points`.

    Upstream: mmdetection3d 1.1 to 1.4 applies the stored inverse of this matrix with the rotation right and
    the translation wrong, by (Rᵀ - I)·t; earlier releases agree with this function.
    """
    ego_key_T_ego_src = inverse_rigid(global_T_ego_key.double()) @ global_T_ego_src.double()
    chain = inverse_rigid(ego_T_lidar_key.double()) @ ego_key_T_ego_src @ ego_T_src.double()
    return chain.to(ego_T_lidar_key.dtype)


def yaw_of(rotation: Tensor) -> Tensor:
    """Yaw [...] of rotations [..., 3, 3]: the direction of the rotated x axis seen from above, in [-π, π).

    Upstream: the devkit's detection metrics use this angle; pyquaternion's `yaw_pitch_roll` differs from it in
    the second order of roll and pitch.
    """
    return wrap_angle(torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0]))


def quaternion_to_rotation(wxyz: Tensor) -> Tensor:
    """Rotations [..., 3, 3] of quaternions [..., 4] in the order w, x, y, z; they are normalised first."""
    w, x, y, z = torch.nn.functional.normalize(wxyz, dim=-1, eps=0.0).unbind(-1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def rotation_to_quaternion(rotation: Tensor) -> Tensor:
    """Unit quaternions [..., 4] in the order w, x, y, z, with w >= 0, of rotations [..., 3, 3].

    Of the four ways to divide, the one by the largest component is taken, so no rotation is ill-conditioned.
    """
    (r00, r01, r02), (r10, r11, r12), (r20, r21, r22) = (row.unbind(-1) for row in rotation.unbind(-2))
    # Row k is 4·q_k·(w, x, y, z).
    rows = [
        [1 + r00 + r11 + r22, r21 - r12, r02 - r20, r10 - r01],
        [r21 - r12, 1 + r00 - r11 - r22, r10 + r01, r02 + r20],
        [r02 - r20, r10 + r01, 1 - r00 + r11 - r22, r21 + r12],
        [r10 - r01, r02 + r20, r21 + r12, 1 - r00 - r11 + r22],
    ]
    candidates = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    largest = candidates.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    index = largest[..., None, None].expand(*largest.shape, 1, 4)
    quaternion = torch.nn.functional.normalize(candidates.gather(-2, index).squeeze(-2), dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def check_rigid(matrix: Tensor, what: str) -> None:
    """Refuse a calibration matrix [..., 4, 4] that is not a rotation and a translation.

    Args:
        matrix: the matrix as loaded; rotations may be off by `RIGID_TOLERANCE`.
        what: what it is and where it came from, for the message.

    Raises:
        UserError: if an entry is not finite, the bottom row is not 0 0 0 1, the rotation is not orthonormal,
            or it mirrors (determinant -1).
    """
    if matrix.shape[-2:] != (4, 4):
        raise UserError(
            f"{what} has shape {tuple(matrix.shape)}, expected a 4x4 matrix; check the calibration file"
        )
    if not torch.isfinite(matrix).all():
        raise UserError(f"{what} has entries that are not finite; check the calibration file")
    if not (matrix[..., 3, :] == matrix.new_tensor([0, 0, 0, 1])).all():
        raise UserError(f"{what} has a bottom row other than 0 0 0 1; is the matrix transposed?")
    rotation = matrix[..., :3, :3].double()
    error = (
        rotation @ rotation.transpose(-1, -2) - torch.eye(3, dtype=rotation.dtype, device=rotation.device)
    ).abs()
    if matrix.numel() and error.max() > RIGID_TOLERANCE:
        raise UserError(
            f"{what} is not a rigid transform: its rotation is off orthonormal by {error.max():.2g}, allowed is "
            f"{RIGID_TOLERANCE:g}; check the calibration file"
        )
    if (torch.linalg.det(rotation) < 0).any():
        raise UserError(f"{what} mirrors space (determinant -1); check the axes of the calibration file")
