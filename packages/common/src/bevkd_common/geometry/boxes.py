"""3D boxes in the one convention that is used everywhere inside the project.

A box is x, y, z, l, w, h, yaw, vx, vy: gravity centre, length along the heading, yaw counter-clockwise from
+x seen from above; metres, radians, metres per second. The frame is that of the key frame's LiDAR unless a
caller says otherwise. Foreign conventions live in `conventions.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bevkd_common.geometry.transforms import (
    reflection,
    rigid,
    rotation_z,
    scaling,
    transform_points,
    transform_vectors,
    wrap_angle,
)

BOX_CHANNELS = 9
X, Y, Z, LENGTH, WIDTH, HEIGHT, YAW, VX, VY = range(BOX_CHANNELS)

SIMILARITY_TOLERANCE = 1e-3
"""Largest relative deviation from a similarity that `Boxes.transform` takes for rounding."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """A set of boxes.

    Attributes:
        tensor: [..., M, 9] floating point: x, y, z, l, w, h, yaw, vx, vy. A velocity of NaN is unknown.

    Raises:
        ValueError: if the last dimension is not 9, or there are fewer than two dimensions.
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        if self.tensor.dim() < 2 or self.tensor.shape[-1] != BOX_CHANNELS:
            raise ValueError(f"boxes need a tensor [..., M, {BOX_CHANNELS}], got {tuple(self.tensor.shape)}")

    @classmethod
    def empty(cls, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Boxes:
        """A set of no boxes."""
        return cls(torch.empty(0, BOX_CHANNELS, device=device, dtype=dtype))

    @classmethod
    def from_parts(cls, centers: Tensor, size: Tensor, yaw: Tensor, velocity: Tensor | None = None) -> Boxes:
        """Assemble boxes from centers [..., M, 3], size (l, w, h) [..., M, 3], yaw [..., M], velocity [..., M, 2].

        Without a velocity it is unknown (NaN).
        """
        if velocity is None:
            velocity = torch.full_like(centers[..., :2], torch.nan)
        return cls(torch.cat([centers, size, yaw.unsqueeze(-1), velocity], dim=-1))

    @classmethod
    def cat(cls, sets: Sequence[Boxes]) -> Boxes:
        """Join sets along M, in order."""
        return cls(torch.cat([boxes.tensor for boxes in sets], dim=-2))

    def to(self, *args: Any, **kwargs: Any) -> Boxes:
        """Move to a device or dtype; takes what `Tensor.to` takes."""
        return Boxes(self.tensor.to(*args, **kwargs))

    def __len__(self) -> int:
        return self.tensor.shape[-2]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Boxes:
        """Choose boxes of an unbatched set by position, slice, indices or mask; one position gives a set of one."""
        if self.tensor.dim() != 2:
            raise ValueError(f"only a set [M, {BOX_CHANNELS}] can be indexed, this is {tuple(self.tensor.shape)}")
        return Boxes(self.tensor[[index]] if isinstance(index, int) else self.tensor[index])

    def __iter__(self) -> Iterator[Boxes]:
        return (self[i] for i in range(len(self)))

    @property
    def x(self) -> Tensor:
        """Centre x [..., M]."""
        return self.tensor[..., X]

    @property
    def y(self) -> Tensor:
        """Centre y [..., M]."""
        return self.tensor[..., Y]

    @property
    def z(self) -> Tensor:
        """Centre z [..., M]: half-way up the box."""
        return self.tensor[..., Z]

    @property
    def l(self) -> Tensor:  # noqa: E743
        """Length [..., M], along the heading."""
        return self.tensor[..., LENGTH]

    @property
    def w(self) -> Tensor:
        """Width [..., M], across the heading."""
        return self.tensor[..., WIDTH]

    @property
    def h(self) -> Tensor:
        """Height [..., M]."""
        return self.tensor[..., HEIGHT]

    @property
    def yaw(self) -> Tensor:
        """Heading [..., M]: radians counter-clockwise from +x."""
        return self.tensor[..., YAW]

    @property
    def vx(self) -> Tensor:
        """Ground velocity along x [..., M]; NaN if unknown."""
        return self.tensor[..., VX]

    @property
    def vy(self) -> Tensor:
        """Ground velocity along y [..., M]; NaN if unknown."""
        return self.tensor[..., VY]

    @property
    def centers(self) -> Tensor:
        """Gravity centres [..., M, 3]."""
        return self.tensor[..., X : Z + 1]

    @property
    def size(self) -> Tensor:
        """Length, width, height [..., M, 3]."""
        return self.tensor[..., LENGTH : HEIGHT + 1]

    @property
    def velocity(self) -> Tensor:
        """Ground velocity [..., M, 2]; NaN if unknown."""
        return self.tensor[..., VX : VY + 1]

    @property
    def bev(self) -> Tensor:
        """The footprint as x, y, l, w, yaw [..., M, 5]."""
        return self.tensor[..., [X, Y, LENGTH, WIDTH, YAW]]

    def bev_corners(self) -> Tensor:
        """Footprint corners [..., M, 4, 2], counter-clockwise: front left, rear left, rear right, front right."""
        return bev_corners(self.bev)

    def corners(self) -> Tensor:
        """Corners [..., M, 8, 3]: the four of `bev_corners` at the bottom, then the same four at the top."""
        footprint = self.bev_corners()
        half_height = (self.h / 2)[..., None].expand(footprint.shape[:-1])
        z = self.z[..., None]
        bottom = torch.cat([footprint, (z - half_height)[..., None]], dim=-1)
        top = torch.cat([footprint, (z + half_height)[..., None]], dim=-1)
        return torch.cat([bottom, top], dim=-2)

    def transform(self, dst_T_src: Tensor) -> Boxes:
        """Move the boxes into another frame, or augment them.

        Exact for rotations about z, uniform scalings, reflections of x or y, translations, and their products.
        Under a rotation that also tilts (sensor mounts, slopes) the centres are exact, and yaw and velocity
        are those of the box seen from above in `dst`. Sizes and velocities scale with the matrix.

        Args:
            dst_T_src: [4, 4], or [..., 4, 4] with the leading dimensions of the boxes.

        Raises:
            ValueError: if the matrix shears, scales unevenly, or turns the boxes on their side.
        """
        linear = dst_T_src[..., :3, :3]
        scale = torch.linalg.vector_norm(linear[..., :, 2], dim=-1)
        _check_similarity(linear, scale)
        heading = torch.stack([self.yaw.cos(), self.yaw.sin(), torch.zeros_like(self.yaw)], dim=-1)
        heading = transform_vectors(dst_T_src, heading)
        velocity = torch.nn.functional.pad(self.velocity, (0, 1))
        return Boxes.from_parts(
            centers=transform_points(dst_T_src, self.centers),
            size=self.size * scale[..., None, None].to(self.size.dtype),
            yaw=wrap_angle(torch.atan2(heading[..., 1], heading[..., 0])),
            velocity=transform_vectors(dst_T_src, velocity)[..., :2],
        )

    def rotate(self, angle: Tensor | float) -> Boxes:
        """Turn about the origin's z axis, counter-clockwise, by `angle` radians."""
        rotation = rotation_z(torch.as_tensor(angle, dtype=self.tensor.dtype, device=self.tensor.device))
        return self.transform(rigid(rotation, torch.zeros_like(rotation[..., 0])))

    def scale(self, factor: Tensor | float) -> Boxes:
        """Scale about the origin: centres, sizes and velocities."""
        return self.transform(scaling(torch.as_tensor(factor, dtype=self.tensor.dtype, device=self.tensor.device)))

    def flip(self, axis: Literal["x", "y"]) -> Boxes:
        """Negate one coordinate: `flip("y")` mirrors y, and with it yaw and vy."""
        return self.transform(reflection(axis).to(self.tensor))

    def wrap_yaw(self) -> Boxes:
        """The same boxes with yaw in [-π, π)."""
        return Boxes.from_parts(self.centers, self.size, wrap_angle(self.yaw), self.velocity)


def folded(boxes: Boxes, symmetric: Tensor) -> Boxes:
    """The boxes [..., M, 9], those marked [..., M] turned by half a turn where their yaw is not in [-π/2, π/2).

    For things whose front is like their rear: the two yaws are one and the same.
    """
    yaw = torch.where(symmetric, torch.remainder(boxes.yaw + torch.pi / 2, torch.pi) - torch.pi / 2, boxes.yaw)
    return Boxes.from_parts(boxes.centers, boxes.size, yaw, boxes.velocity)


def bev_corners(bev: Tensor) -> Tensor:
    """Corners [..., 4, 2] of footprints x, y, l, w, yaw [..., 5], counter-clockwise from front left."""
    x, y, length, width, yaw = bev.unbind(-1)
    along = torch.stack([length, -length, -length, length], dim=-1) / 2
    across = torch.stack([width, width, -width, -width], dim=-1) / 2
    cos, sin = yaw.cos()[..., None], yaw.sin()[..., None]
    return torch.stack(
        [x[..., None] + along * cos - across * sin, y[..., None] + along * sin + across * cos], dim=-1
    )


def points_in_boxes_bev(points_xy: Tensor, boxes: Boxes, strict: bool = True) -> Tensor:
    """Which points lie in which footprints.

    Args:
        points_xy: [..., P, 2] metres, in the frame of the boxes.
        boxes: [..., M, 9] with the same leading dimensions, or none.
        strict: whether a point on the border is outside.

    Returns:
        bool [..., M, P].
    """
    delta_x = points_xy[..., None, :, 0] - boxes.x[..., :, None]
    delta_y = points_xy[..., None, :, 1] - boxes.y[..., :, None]
    cos, sin = boxes.yaw.cos()[..., None], boxes.yaw.sin()[..., None]
    along = (delta_x * cos + delta_y * sin).abs()
    across = (delta_y * cos - delta_x * sin).abs()
    half_length, half_width = boxes.l[..., None] / 2, boxes.w[..., None] / 2
    if strict:
        return (along < half_length) & (across < half_width)
    return (along <= half_length) & (across <= half_width)


def points_in_boxes(points_xyz: Tensor, boxes: Boxes, strict: bool = True) -> Tensor:
    """Which points lie in which boxes: like `points_in_boxes_bev`, with points [..., P, 3] and the height."""
    height = (points_xyz[..., None, :, 2] - boxes.z[..., :, None]).abs()
    half_height = boxes.h[..., None] / 2
    level = height < half_height if strict else height <= half_height
    return level & points_in_boxes_bev(points_xyz[..., :2], boxes, strict)


def _check_similarity(linear: Tensor, scale: Tensor) -> None:
    gram = (linear.unsqueeze(-1) * linear.unsqueeze(-2)).sum(dim=-3)
    expected = torch.eye(3, dtype=gram.dtype, device=gram.device) * scale[..., None, None] ** 2
    deviation = (gram - expected).abs() / scale[..., None, None] ** 2
    upright = linear[..., 2, 2] > scale / 2
    if not ((deviation <= SIMILARITY_TOLERANCE).all() and upright.all()):
        raise ValueError(
            "boxes can be moved by rotations, uniform scalings, reflections of x and y, and translations; "
            f"this matrix does something else:\n{linear.tolist()}"
        )
