"""Motion along circular arcs in closed form, for the ego vehicle, moving objects and static objects."""

from dataclasses import dataclass, fields

import numpy as np

from .rigid import Booleans, Floats


@dataclass(frozen=True)
class Arcs:
    """Trajectories of N objects on circles or lines with constant acceleration, in the map frame.

    All arrays are [N]. The caller must choose accelerations with which speeds stay positive during the scene.

    Attributes:
        x: Position at the reference time in metres.
        y: Position at the reference time in metres.
        yaw: Heading at the reference time.
        speed: Speed at the reference time in m/s.
        acceleration: Acceleration along the heading in m/s^2.
        curvature: 1 / radius, positive to the left.
        reference: Reference time in seconds.
    """

    x: Floats
    y: Floats
    yaw: Floats
    speed: Floats
    acceleration: Floats
    curvature: Floats
    reference: Floats

    def __len__(self) -> int:
        """Number of trajectories."""
        return len(self.x)

    def poses(self, seconds: float | Floats) -> Floats:
        """Returns poses (x, y, yaw) at one time, [N, 3], or at times [T], [T, N, 3]."""
        time = np.asarray(seconds, dtype=np.float64)[..., None] - self.reference
        return self.along(time * (self.speed + 0.5 * self.acceleration * time))

    def along(self, distance: float | Floats) -> Floats:
        """Returns poses (x, y, yaw) at a distance in metres ahead of the reference pose, [..., N, 3]."""
        turn = self.curvature * distance
        # This form of the chord does not divide by the curvature, which may be zero.
        chord = distance * np.sinc(turn / (2 * np.pi))
        direction = self.yaw + turn / 2
        return np.stack(
            [self.x + chord * np.cos(direction), self.y + chord * np.sin(direction), self.yaw + turn], axis=-1
        )

    def speeds(self, seconds: float | Floats) -> Floats:
        """Returns speeds along the heading in m/s at one time, [N], or at times [T], [T, N]."""
        time = np.asarray(seconds, dtype=np.float64)[..., None] - self.reference
        return self.speed + self.acceleration * time


def concatenate(parts: list[Arcs]) -> Arcs:
    """Concatenates trajectories in order."""
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Arcs))
    return Arcs(*(np.concatenate([np.zeros(0), *column]) for column in columns))


def single(
    x: float, y: float, yaw: float, speed: float, acceleration: float, curvature: float, reference: float
) -> Arcs:
    """Returns one trajectory."""
    values = (x, y, yaw, speed, acceleration, curvature, reference)
    return Arcs(*(np.array([value], dtype=np.float64) for value in values))


def rectangles_overlap(poses_a: Floats, half_a: Floats, poses_b: Floats, half_b: Floats) -> Booleans:
    """Tests whether rotated rectangles overlap, with the separating-axis theorem. All shapes broadcast.

    Args:
        poses_a: Centre x, y and yaw, [..., 3].
        half_a: Half length and half width, [..., 2].
        poses_b: Like `poses_a`.
        half_b: Like `half_a`.
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
