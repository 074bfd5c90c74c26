"""Do boxes, points and motion agree? What betrays a data set in a foreign convention.

LiDAR points know nothing of how somebody wrote their boxes down. Boxes in another convention hold fewer of them, or
point elsewhere than the objects move; the repair that mends this names the mistake.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from bevkd_common.data.needs import LIDAR
from bevkd_common.data.samples import Sample
from bevkd_common.geometry.boxes import Boxes, points_in_boxes
from bevkd_common.geometry.convention_checks import CONVENTION_CHECKS

MOVING = 2.0
"""Speed in m/s above which a heading must agree with the motion."""
STANDING = 0.2
"""Speed in m/s below which an object must be in the same place in every sweep."""
MARGIN = 1.1
"""How much better a repair must be than the boxes as they are, to be named."""
FEWEST_POINTS = 200
"""Points in boxes below which nothing is concluded."""
FEWEST_MOVING = 20
DISPLACED_SHARE = 0.85
"""Share of a standing object's points, a sweep, below which older sweeps are out of place."""


@dataclass
class Agreement:
    """How well one reading of the boxes agrees with points and motion."""

    points_inside: int = 0
    heading: float = 0.0
    """Sum over moving objects of the cosine between heading and motion."""

    def score(self, moving: int) -> float:
        """Points inside, weighted by how many of the moving objects point where they go."""
        ahead = 0.5 + 0.5 * self.heading / moving if moving >= FEWEST_MOVING else 1.0
        return self.points_inside * ahead


@dataclass
class Plausibility:
    """What is known after some samples.

    Attributes:
        as_is: Agreement of the boxes as they are read.
        repaired: Agreement after each repair.
        moving: Objects faster than `MOVING`.
        standing: Points of standing objects, [newest sweep, mean of the older ones].
    """

    as_is: Agreement = field(default_factory=Agreement)
    repaired: dict[str, Agreement] = field(
        default_factory=lambda: {name: Agreement() for name in CONVENTION_CHECKS}
    )
    moving: int = 0
    standing: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def add(self, sample: Sample) -> None:
        """Count one plain sample with points."""
        assert sample.global_T_lidar is not None
        boxes, points = sample.boxes, sample.clouds[LIDAR].points
        newest = points[points[:, 4] == 0, :3]
        self.moving += int((boxes.velocity.norm(dim=-1) > MOVING).sum())
        _count(self.as_is, boxes, newest)
        for name, check in CONVENTION_CHECKS.items():
            _count(self.repaired[name], check.repair(boxes, sample.global_T_lidar), newest)
        self._count_standing(boxes, points)

    def _count_standing(self, boxes: Boxes, points: Tensor) -> None:
        lags = points[:, 4].unique()
        older = len(lags) - 1
        standing = boxes[boxes.velocity.norm(dim=-1) < STANDING]
        if not older or not len(standing):
            return
        inside = points_in_boxes(points[:, :3], standing).any(dim=0)
        newest = int((inside & (points[:, 4] == 0)).sum())
        self.standing[0] += newest
        self.standing[1] += (int(inside.sum()) - newest) / older

    @property
    def best(self) -> str | None:
        """The convention check whose repair agrees clearly better than the boxes as they are, or None."""
        if max(self.as_is.points_inside, *(a.points_inside for a in self.repaired.values())) < FEWEST_POINTS:
            return None
        name = max(self.repaired, key=lambda name: self.repaired[name].score(self.moving))
        better = self.repaired[name].score(self.moving) > MARGIN * self.as_is.score(self.moving)
        return name if better else None

    @property
    def heading(self) -> float | None:
        """Mean cosine between heading and motion of moving objects; None where there are few."""
        return self.as_is.heading / self.moving if self.moving >= FEWEST_MOVING else None

    @property
    def standing_share(self) -> float | None:
        """Points of standing objects in an older sweep, as a share of the newest; None where there are few."""
        newest, older = self.standing
        return older / newest if newest >= FEWEST_POINTS else None

    def findings(self) -> list[str]:
        """One sentence for each thing that does not agree."""
        found = []
        if self.best is not None:
            repaired = self.repaired[self.best]
            found.append(
                f"{CONVENTION_CHECKS[self.best].sentence}: read so, the boxes hold {repaired.points_inside} LiDAR"
                f" points, as they are {self.as_is.points_inside}; heading agrees with motion to"
                f" {_share(repaired.heading, self.moving)}, as they are {_share(self.as_is.heading, self.moving)}"
            )
        share = self.standing_share
        # Boxes that are out of place themselves say nothing about sweeps.
        if not found and share is not None and share < DISPLACED_SHARE:
            found.append(
                f"an older LiDAR sweep puts only {share:.0%} as many points into standing objects as the newest:"
                " the ego-motion between sweeps is wrong"
            )
        return found


def _count(agreement: Agreement, boxes: Boxes, points: Tensor) -> None:
    agreement.points_inside += int(points_in_boxes(points, boxes).any(dim=0).sum())
    fast = boxes[boxes.velocity.norm(dim=-1) > MOVING]
    direction = fast.velocity / fast.velocity.norm(dim=-1, keepdim=True)
    agreement.heading += float((direction[:, 0] * fast.yaw.cos() + direction[:, 1] * fast.yaw.sin()).sum())


def _share(heading: float, moving: int) -> str:
    return f"{heading / moving:.2f}" if moving else "unknown"
