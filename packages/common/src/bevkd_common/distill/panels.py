"""Pictures that explain a method, as data; a report draws each kind without any knowledge of the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Extent = tuple[float, float, float, float]
"""x0, x1, y0, y1 in metres."""


@dataclass(frozen=True, eq=False)
class RegionPanel:
    """A map of labels.

    Attributes:
        title: Above the picture.
        caption: One sentence: what is shown.
        values: [Y, X] integers on the CPU that index `legend`.
        legend: Name of each label.
        extent: Of the map, where it lies on the ground.
    """

    title: str
    caption: str
    values: Tensor
    legend: tuple[str, ...]
    extent: Extent | None = None


@dataclass(frozen=True, eq=False)
class MapPanel:
    """A continuous map.

    Attributes:
        title: Above the picture.
        caption: One sentence: what is shown.
        values: [Y, X] on the CPU.
        extent: Of the map, where it lies on the ground.
    """

    title: str
    caption: str
    values: Tensor
    extent: Extent | None = None


@dataclass(frozen=True, eq=False)
class MatrixPanel:
    """A matrix of pairwise values, drawn with row 0 at the top.

    Attributes:
        title: Above the picture.
        caption: One sentence: what is shown.
        values: [R, C] on the CPU.
        rows: What the rows are, such as "teacher points"; labels the axis.
        columns: What the columns are.
    """

    title: str
    caption: str
    values: Tensor
    rows: str = ""
    columns: str = ""


@dataclass(frozen=True, eq=False)
class PointPanel:
    """Points on the ground or in an image.

    Attributes:
        title: Above the picture.
        caption: One sentence: what is shown.
        points: [P, 2] x, y on the CPU: metres with y up, or pixels (u, v) with v down.
        values: [P] colour of each point: an index into `legend` where there is one, else a continuous value.
        unit: "metres" or "pixels".
        sizes: [P] relative areas of the points, such as weights; None draws all alike.
        background: Behind the points: a map [Y, X] on the ground or an image [H, W, 3] of bytes.
        extent: Of the picture in metres; it is that of a background map too. None fits the points.
        legend: Names of the values, where these are labels.
    """

    title: str
    caption: str
    points: Tensor
    values: Tensor
    unit: Literal["metres", "pixels"]
    sizes: Tensor | None = None
    background: Tensor | None = None
    extent: Extent | None = None
    legend: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the parts fit each other.

        Raises:
            ValueError: If numbers of points differ, or a map on the ground has no extent.
        """
        count = len(self.points)
        if self.points.shape != (count, 2) or self.values.shape != (count,):
            raise ValueError(f"points {tuple(self.points.shape)} and values {tuple(self.values.shape)} do not fit")
        if self.sizes is not None and self.sizes.shape != (count,):
            raise ValueError(f"{count} points have sizes of shape {tuple(self.sizes.shape)}")
        if self.unit == "metres" and self.background is not None and self.extent is None:
            raise ValueError("a background map on the ground needs an extent")


Panel = RegionPanel | MapPanel | MatrixPanel | PointPanel
