"""Taps: the named outputs of a detector that a distillation method may read, and what each one is.

A tap is described by a `TapSpec`. The classes here cover the shipped detectors; a plug-in may add its own class,
because nothing in the project lists them. Each class carries the words that messages use and a check of a value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Literal

from torch import Tensor

from bevkd_common.geometry.grid import DepthBins, Grid
from bevkd_common.models.tokens import TokenFeatures


@dataclass(frozen=True)
class TapSpec(ABC):
    """The description of one tap."""

    noun: ClassVar[str]
    """What a tap of this class is, with its article, for messages."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The shape in a few words, for messages."""

    @abstractmethod
    def problem(self, value: object, samples: int) -> str | None:
        """What is wrong with a value of this tap.

        Args:
            value: `Outputs.value(name)` of a forward pass.
            samples: Number of samples in the batch.

        Returns:
            A few words, or None if the value is as described.
        """

    @property
    def heatmap_grid(self) -> Grid | None:
        """Cells of the class heat maps among these predictions; None where there are none.

        A detector whose `head` has heat maps returns `HeatmapTargets` from `targets`.
        """
        return None

    @property
    def ground(self) -> Grid | None:
        """Cells on the ground that the tap covers, its field `grid`; None where it has none."""
        grid = getattr(self, "grid", None)
        return grid if isinstance(grid, Grid) else None


@dataclass(frozen=True)
class BevMap(TapSpec):
    """A BEV map [B, channels, Y, X].

    Attributes:
        channels: Number of channels.
        grid: Position of the cells, in the LiDAR axes of the batch.
        activation: The last operation of the map: after "relu" it is non-negative; "none" is any other.
        norms: Of a map before its activation, `{name}_preactivation`: names in `Detector.parts` of the batch norms
            that make it, side by side in its channels. Of a residual block it is the norm of the branch.
    """

    channels: int
    grid: Grid
    activation: Literal["relu", "none"] = "none"
    norms: tuple[str, ...] = ()

    noun: ClassVar[str] = "a BEV map"

    @property
    def words(self) -> str:
        """Channels, cells, and the edge of a cell."""
        return f"{self.channels} x {self.grid.ny} x {self.grid.nx}, {self.grid.cell:g} m"

    def problem(self, value: object, samples: int) -> str | None:
        """See `TapSpec`."""
        wrong = _shape_problem(value, (samples, self.channels, self.grid.ny, self.grid.nx))
        if wrong is None and self.activation == "relu" and isinstance(value, Tensor) and bool((value < 0).any()):
            return "negative values in a map that has passed a ReLU"
        return wrong


@dataclass(frozen=True)
class ImageMap(TapSpec):
    """Image features [B, N, channels, H, W].

    Attributes:
        channels: Number of channels.
        stride: Image pixels per cell.
        size: H and W.
    """

    channels: int
    stride: int
    size: tuple[int, int]

    noun: ClassVar[str] = "an image feature map"

    @property
    def words(self) -> str:
        """Channels, cells and stride."""
        return f"{self.channels} x {self.size[0]} x {self.size[1]}, stride {self.stride}"

    def problem(self, value: object, samples: int) -> str | None:
        """See `TapSpec`."""
        return _shape_problem(value, (samples, None, self.channels, *self.size))


@dataclass(frozen=True)
class ImageDepths(TapSpec):
    """Logits of a depth distribution [B, N, D, H, W] in each cell of an image feature map.

    Attributes:
        bins: The D depths.
        stride: Image pixels per cell.
        size: H and W.
    """

    bins: DepthBins
    stride: int
    size: tuple[int, int]

    noun: ClassVar[str] = "a map of depth logits"

    @property
    def words(self) -> str:
        """Depths, cells and stride."""
        return f"{self.bins.count} depths, {self.size[0]} x {self.size[1]}, stride {self.stride}"

    def problem(self, value: object, samples: int) -> str | None:
        """See `TapSpec`."""
        return _shape_problem(value, (samples, None, self.bins.count, *self.size))


@dataclass(frozen=True)
class Tokens(TapSpec):
    """Features of points or pillars, a `TokenFeatures` value.

    Rows of two detectors correspond if `rows` is equal and both read the same batch: a point cloud makes the voxels
    of one `VoxelSpec` once.

    Attributes:
        channels: Number of channels.
        rows: What selects the rows, such as cloud and `VoxelSpec` of pillars; compared with `==`.
        columns: Names of the coordinate columns.
        unit: Of the coordinates.
    """

    channels: int
    rows: object
    columns: tuple[str, ...]
    unit: Literal["cells", "metres"]

    noun: ClassVar[str] = "a set of tokens"

    @property
    def words(self) -> str:
        """Channels and coordinates."""
        return f"{self.channels} channels at {', '.join(self.columns)} in {self.unit}"

    def problem(self, value: object, samples: int) -> str | None:
        """See `TapSpec`."""
        if not isinstance(value, TokenFeatures):
            return f"{type(value).__name__} instead of TokenFeatures"
        rows = sum(value.counts)
        if len(value.counts) != samples:
            return f"rows of {len(value.counts)} samples instead of {samples}"
        return _first_problem(
            ("features", _shape_problem(value.features, (rows, self.channels))),
            ("coordinates", _shape_problem(value.coordinates, (rows, len(self.columns)))),
            ("points", _shape_problem(value.points, (rows,))),
        )


@dataclass(frozen=True)
class Attention(TapSpec):
    """Weights of a deformable attention [B, Y · X, heads, groups, points], non-negative; cells row by row.

    Attributes:
        layer: Number of the layer, from 0 on.
        heads: Number of heads.
        groups: Maps that are sampled: the earlier and the present one, or the levels of an image.
        points: Sampling points in each map.
        grid: Cells of the queries.
        competing: Which weights sum to one: those of one map ("points"), or those of all maps ("groups").
    """

    layer: int
    heads: int
    groups: int
    points: int
    grid: Grid
    competing: Literal["points", "groups"]

    noun: ClassVar[str] = "a set of attention weights"

    @property
    def words(self) -> str:
        """Cells, and weights of a cell."""
        return f"{self.grid.ny} x {self.grid.nx} cells, {self.heads} x {self.groups} x {self.points} weights"

    def problem(self, value: object, samples: int) -> str | None:
        """See `TapSpec`."""
        cells = self.grid.ny * self.grid.nx
        wrong = _shape_problem(value, (samples, cells, self.heads, self.groups, self.points))
        if wrong is not None or not isinstance(value, Tensor):
            return wrong
        total = value.sum(dim=-1) if self.competing == "points" else value.sum(dim=(-2, -1))
        # A cell that is visible in no camera has no spatial attention: its weights are zero.
        if bool((value < 0).any()) or not bool((((total - 1).abs() < 1e-3) | (total.abs() < 1e-6)).all()):
            return "weights that are negative or do not sum to one"
        return None


class Meaning(StrEnum):
    """The meanings that a `Branch` can have: a closed vocabulary, so that methods can compare branches."""

    CENTER_OFFSET = "centre offset in cells, x then y"
    POSITION = "position of the centre in m, x then y"
    HEIGHT = "height of the centre in m"
    LOG_SIZE = "log of length, width and height in m"
    LOG_WIDTH_LENGTH = "log of width and length in m"
    LOG_HEIGHT = "log of the height in m"
    YAW = "sine and cosine of the yaw"
    VELOCITY = "velocity in m/s, x then y"
    DISPLACEMENT = "displacement since the earlier frame in m, x then y"
    IOU = "IoU of the box with its ground truth"
    ANCHOR_OFFSET = "centre offset in diagonals of the anchor, x then y"
    ANCHOR_HEIGHT = "height offset in heights of the anchor"
    ANCHOR_LOG_SIZE = "log of length, width and height over the anchor's"
    ANCHOR_YAW = "yaw relative to the anchor's in radians"


@dataclass(frozen=True)
class Branch:
    """One output of a head beside its class scores, or one part of a box code.

    Attributes:
        name: Key in the head's predictions.
        channels: Number of channels.
        meaning: What the channels mean.
    """

    name: str
    channels: int
    meaning: Meaning

    @property
    def layout(self) -> tuple[str, int]:
        """Name and channels: branches of equal layout have weights of equal shapes."""
        return self.name, self.channels


@dataclass(frozen=True)
class HeadMaps(TapSpec):
    """Dense predictions of a centre-point head: a mapping per task, from branch name to logits [B, C, Y, X].

    Each task also predicts `heatmap`, whose channels are the classes of the task.

    Attributes:
        grid: Cells of the maps.
        tasks: Class names, one tuple per task.
        branches: The branches of every task in the order of the box code.
    """

    grid: Grid
    tasks: tuple[tuple[str, ...], ...]
    branches: tuple[Branch, ...]

    noun: ClassVar[str] = "a set of head maps"

    @property
    def words(self) -> str:
        """Tasks and cells."""
        return f"{len(self.tasks)} tasks, {self.grid.ny} x {self.grid.nx}"

    @property
    def layout(self) -> tuple[tuple[str, int], ...]:
        """Names and channels of the branches, whatever they mean."""
        return tuple(branch.layout for branch in self.branches)

    @property
    def heatmap_grid(self) -> Grid:
        """The cells of the maps."""
        return self.grid

    def problem(self, value: object, samples: int) -> str | None:
        """See `TapSpec`."""
        cells = (self.grid.ny, self.grid.nx)
        wanted = [
            {name: (samples, count, *cells) for name, count in (*self.layout, ("heatmap", len(task)))}
            for task in self.tasks
        ]
        return _predictions_problem(value, wanted)


@dataclass(frozen=True)
class AnchorMaps(TapSpec):
    """Dense predictions of an anchor head: one mapping from name to logits [B, C, Y, X].

    `class_logits` has one number per class for each anchor, `box_code` those of `code`, and `direction_logits`, if
    there are directions, one per direction. Number c of anchor a is channel a · C + c of a map of C numbers an
    anchor; `bevkd_common.models.heads.anchor_code.by_anchor` reads maps in this order.

    Attributes:
        grid: Cells of the maps.
        classes: Class names in the order of the logits.
        anchors: Anchors of a cell.
        code: The parts of the box code of an anchor, in order.
        directions: Classes of the heading; 0 where the head has no direction classifier.
    """

    grid: Grid
    classes: tuple[str, ...]
    anchors: int
    code: tuple[Branch, ...]
    directions: int = 0

    noun: ClassVar[str] = "a set of anchor maps"

    @property
    def words(self) -> str:
        """Anchors, classes and cells."""
        cells = f"{self.grid.ny} x {self.grid.nx}"
        return f"{self.anchors} anchors of {len(self.classes)} classes, {cells}"

    def problem(self, value: object, samples: int) -> str | None:
        """See `TapSpec`."""
        code = sum(part.channels for part in self.code)
        widths = {"class_logits": len(self.classes), "box_code": code, "direction_logits": self.directions}
        wanted = {
            name: (samples, self.anchors * width, self.grid.ny, self.grid.nx)
            for name, width in widths.items()
            if width
        }
        return _predictions_problem(value, [wanted])


@dataclass(frozen=True)
class Queries(TapSpec):
    """Predictions of a query head, a mapping per decoder layer: `class_logits` [B, Q, K], `box_code` [B, Q, C].

    Attributes:
        grid: Cells of the map that the queries attend to; boxes lie within its borders.
        classes: Class names in the order of the logits.
        layers: Layers of the decoder.
        count: Queries of a sample.
        channels: Width of a query in the decoder.
        code: The parts of the box code, in order.
        heatmap: Whether the first layer also predicts `heatmap` [B, K, Y, X], at whose peaks the queries start.
        maps: Further maps [B, C, Y, X] that the first layer predicts beside the heat map.
    """

    grid: Grid
    classes: tuple[str, ...]
    layers: int
    count: int
    channels: int
    code: tuple[Branch, ...]
    heatmap: bool = False
    maps: tuple[Branch, ...] = ()

    noun: ClassVar[str] = "a set of queries"

    @property
    def words(self) -> str:
        """Layers and queries."""
        return f"{self.layers} layers of {self.count} queries"

    @property
    def heatmap_grid(self) -> Grid | None:
        """The cells of the map if the queries start at the peaks of a heat map."""
        return self.grid if self.heatmap else None

    def problem(self, value: object, samples: int) -> str | None:
        """See `TapSpec`."""
        layer = {
            "class_logits": (samples, self.count, len(self.classes)),
            "box_code": (samples, self.count, sum(part.channels for part in self.code)),
        }
        widths = {"heatmap": len(self.classes)} if self.heatmap else {}
        widths |= dict(branch.layout for branch in self.maps)
        maps = {name: (samples, width, self.grid.ny, self.grid.nx) for name, width in widths.items()}
        return _predictions_problem(value, [layer | maps] + [layer] * (self.layers - 1))


@dataclass(frozen=True)
class Taps:
    """The taps of one detector, with its name, for messages.

    Attributes:
        detector: Name shown to the reader.
        specs: Tap name to description.
    """

    detector: str
    specs: Mapping[str, TapSpec]


Shape = tuple[int | None, ...]
"""Sizes of a tensor; None where any is right."""


def _shape_problem(value: object, wanted: Shape) -> str | None:
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} instead of a tensor"
    fits = value.ndim == len(wanted) and all(w in (None, s) for s, w in zip(value.shape, wanted, strict=True))
    return None if fits else f"shape {tuple(value.shape)} instead of {wanted}"


def _predictions_problem(value: object, wanted: Sequence[Mapping[str, Shape]]) -> str | None:
    """What is wrong with a list of mappings from name to tensor."""
    if not isinstance(value, Sequence):
        return f"{type(value).__name__} instead of a sequence"
    if len(value) != len(wanted):
        return f"{len(value)} parts instead of {len(wanted)}"
    for part, shapes in zip(value, wanted, strict=True):
        if set(part) != set(shapes):
            return f"names {sorted(part)} instead of {sorted(shapes)}"
        problem = _first_problem(*((name, _shape_problem(part[name], shape)) for name, shape in shapes.items()))
        if problem is not None:
            return problem
    return None


def _first_problem(*named: tuple[str, str | None]) -> str | None:
    found: Iterable[str] = (f"{name}: {problem}" for name, problem in named if problem is not None)
    return next(iter(found), None)
