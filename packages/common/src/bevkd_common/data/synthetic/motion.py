"""Motion along circular arcs: one closed form for the ego, for traffic and for what stands still."""

from dataclasses import dataclass, fields

import numpy as np

from .rigid import Booleans, Floats


@dataclass(frozen=True)
class Arcs:
    """N movers on circles (or lines) at constant acceleration, in the map's frame.

    Each array is [N]. The pose and the speed hold at `reference` seconds; `curvature` is 1 / radius, positive to
    the left. Speeds must stay positive over the scene, which whoever draws the acceleration sees to.
    """

    x: Floats
    y: Floats
    yaw: Floats
    speed: Floats
    acceleration: Floats
    curvature: Floats
    reference: Floats

    def __len__(self) -> int:
        """Number of movers."""
        return len(self.x)

    def poses(self, seconds: float | Floats) -> Floats:
        """Poses (x, y, yaw) at the given time(s): [N, 3], or [T, N, 3] for times [T]."""
        time = np.asarray(seconds, dtype=np.float64)[..., None] - self.reference
        return self.along(time * (self.speed + 0.5 * self.acceleration * time))

    def along(self, distance: float | Floats) -> Floats:
        """Poses (x, y, yaw) that many metres ahead of the reference pose, [..., N, 3]."""
        turn = self.curvature * distance
        # The chord of an arc has a closed form without the division by a curvature that may be zero.
        chord = distance * np.sinc(turn / (2 * np.pi))
        direction = self.yaw + turn / 2
        return np.stack(
            [self.x + chord * np.cos(direction), self.y + chord * np.sin(direction), self.yaw + turn], axis=-1
        )

    def speeds(self, seconds: float | Floats) -> Floats:
        """Speeds along the heading in m/s: [N], or [T, N] for times [T]."""
        time = np.asarray(seconds, dtype=np.float64)[..., None] - self.reference
        return self.speed + self.acceleration * time


def concatenate(parts: list[Arcs]) -> Arcs:
    """Joins movers in order."""
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Arcs))
    return Arcs(*(np.concatenate([np.zeros(0), *column]) for column in columns))


def single(
    x: float, y: float, yaw: float, speed: float, acceleration: float, curvature: float, reference: float
) -> Arcs:
    """One mover."""
    values = (x, y, yaw, speed, acceleration, curvature, reference)
    return Arcs(*(np.array([value], dtype=np.float64) for value in values))


def rectangles_overlap(poses_a: Floats, half_a: Floats, poses_b: Floats, half_b: Floats) -> Booleans:
    """Whether upright rectangles overlap, by the separating-axis test.

    Args:
        poses_a: (x, y, yaw), [..., 3].
        half_a: half length and half width, [..., 2].
        poses_b: as `poses_a`; all shapes broadcast.
        half_b: as `half_a`.
    """
    offset = poses_b[..., :2] - poses_a[..., :2]
    turn = poses_b[..., 2] - poses_a[..., 2]
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    apart = np.zeros(turn.shape, dtype=np.bool_)
    for yaw, own, other in ((poses_a[..., 2], half_a, half_b), (poses_b[..., 2], half_b, half_a)):
        along = np.abs(offset[..., 0] * np.cos(yaw) + offset[..., 1] * np.sin(yaw))
        across = np.abs(offset[..., 1] * np.cos(yaw) - offset[..., 0] * np.sin(yaw))
        apart = apart | (along > own[..., 0] + cos * other[..., 0] + sin * other[..., 1])
        apart = apart | (across > own[..., 1] + sin * other[..., 0] + cos * other[..., 1])
    return ~apart
