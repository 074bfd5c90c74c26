"""What a detector offers to a distillation method, described without a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bevkd_common.geometry.grid import Grid


@dataclass(frozen=True)
class BevMap:
    """A bird's-eye-view feature map [B, channels, Y, X].

    Attributes:
        channels: Number of channels.
        grid: Where the cells lie, in the batch's LiDAR axes.
        activation: What the map has passed last: "relu" maps are non-negative, "none" maps are not.
    """

    channels: int
    grid: Grid
    activation: str = "none"


@dataclass(frozen=True)
class ImageMap:
    """Image features [B, N, channels, H / stride, W / stride]."""

    channels: int
    stride: int


@dataclass(frozen=True)
class Attention:
    """Weights of a deformable attention [B, Y · X, heads, groups, points], non-negative; cells row by row.

    Attributes:
        layer: Number of the layer, from 0 on.
        heads: Number of heads.
        groups: Maps that are looked at: the earlier and the present one, or the levels of an image.
        points: Places of each map.
        grid: The cells that look.
        competing: Which weights sum to one: those of one map ("points"), or those of all maps ("groups").
    """

    layer: int
    heads: int
    groups: int
    points: int
    grid: Grid
    competing: Literal["points", "groups"]


@dataclass(frozen=True)
class HeadMaps:
    """The head's dense predictions, as logits.

    Attributes:
        grid: The cells of the maps.
        tasks: Class names, one tuple a task.
        branches: Branch name and channels in order; the heat map is not among them, its channels are the classes.
    """

    grid: Grid
    tasks: tuple[tuple[str, ...], ...]
    branches: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Queries:
    """The head's predictions of a set of queries, layer by layer: class logits and box codes.

    Attributes:
        grid: The cells of the map that the queries look at; boxes lie within its borders.
        classes: In the order of the logits.
        layers: Layers of the decoder.
        count: Queries of a sample.
        channels: Width of a query in the decoder.
    """

    grid: Grid
    classes: tuple[str, ...]
    layers: int
    count: int
    channels: int


TapSpec = BevMap | ImageMap | Attention | HeadMaps | Queries


@dataclass(frozen=True)
class Taps:
    """The taps of one detector, with its name, for messages.

    Attributes:
        detector: Name shown to the reader.
        specs: Tap name to description.
    """

    detector: str
    specs: Mapping[str, TapSpec]
