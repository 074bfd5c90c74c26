"""Pictures of a report: loss curves, samples with boxes, and the method's panels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bevkd_common.distill.panels import MapPanel, MatrixPanel, Panel, PointPanel, RegionPanel
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.detector import Detections
from bevkd_common.report.inputs import ArmReport, Scene

COLORS = {"truth": "#1a9850", "teacher": "#3b6ea5", "baseline": "#d98c00", "distilled": "#c2304b"}
REGIONS = ("#eceef1", "#c2304b", "#edae49", "#3b6ea5", "#66a182")
POINTS = ("#c2304b", "#3b6ea5", "#edae49", "#66a182", "#7b5aa6")
POINT_AREA = 14.0
LARGEST_AREA = 90.0
"""Areas of markers in square points."""
SMOOTHING = 5
NEAREST = 0.5
"""Metres in front of a camera from which boxes are drawn."""
FAR = 60.0
"""Metres at which the colour of points ends."""
# Corners of a box by index in the order of `Boxes.corners`: bottom ring, top ring, and the posts between them.
EDGES = tuple((i, (i + 1) % 4) for i in range(4)) + tuple((4 + i, 4 + (i + 1) % 4) for i in range(4))
POSTS = tuple((i, 4 + i) for i in range(4))


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path


def curves(arms: Sequence[ArmReport]) -> Figure:
    """Loss terms over the steps: one axes per group of terms, one line per arm and seed, one colour per arm."""
    shown = [arm for arm in arms if arm.role != "control"]
    groups = sorted(
        {name.partition("/")[0] for arm in shown for run in arm.runs.values() for name in _terms(run.curve)}
    )
    figure = Figure(figsize=(4.4 * max(len(groups), 1), 3.2))
    for column, group in enumerate(groups):
        axes = figure.add_subplot(1, len(groups), column + 1)
        for arm in shown:
            for index, run in enumerate(arm.runs.values()):
                steps, values = _weighted_sum(run.curve, group)
                if steps:
                    label = arm.title if index == 0 else None
                    axes.plot(steps, _smooth(values), color=COLORS[arm.role], label=label, lw=1.2, alpha=0.85)
        axes.set(title=f"{group} loss", xlabel="step", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def birds_eye(scene: Scene, arms: Sequence[ArmReport]) -> Figure:
    """A sample from above: points, ground-truth boxes, and the detections of one model in each axes."""
    shown = [arm for arm in arms if arm.name in scene.detections]
    figure = Figure(figsize=(4.3 * len(shown), 4.5))
    for column, arm in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), column + 1)
        if scene.points is not None:
            axes.scatter(scene.points[:, 0], scene.points[:, 1], s=0.3, c="#9aa3ad", linewidths=0)
        _draw_above(axes, scene.truth.boxes, COLORS["truth"], 1.6)
        _draw_above(axes, _confident(scene, arm.name).boxes, COLORS[arm.role], 1.0)
        x0, x1, y0, y1 = scene.extent
        axes.set(title=arm.title, xlim=(x0, x1), ylim=(y0, y1), aspect="equal", xticks=[], yticks=[])
        axes.legend(
            handles=[
                Patch(color=COLORS["truth"], label="ground truth"),
                Patch(color=COLORS[arm.role], label="detections"),
            ],
            fontsize=7,
            loc="upper right",
        )
    return figure


def cameras(scene: Scene, arm: ArmReport) -> Figure | None:
    """The images of a sample with ground-truth boxes and the detections of one model; None without cameras."""
    figure = Figure()
    for axes, img_T_lidar in _image_axes(figure, scene):
        _draw_in_image(axes, scene.truth.boxes, img_T_lidar, COLORS["truth"], 1.4)
        _draw_in_image(axes, _confident(scene, arm.name).boxes, img_T_lidar, COLORS[arm.role], 0.9)
    return figure if figure.axes else None


def annotated_cameras(scene: Scene) -> Figure | None:
    """The images of a sample with LiDAR points by depth and ground-truth boxes; None without cameras."""
    figure = Figure()
    for axes, img_T_lidar in _image_axes(figure, scene):
        if scene.points is not None:
            points = np.pad(scene.points.astype(np.float64), ((0, 0), (0, 1)), constant_values=1.0)
            pixels = points @ img_T_lidar.T
            ahead = pixels[pixels[:, 2] >= NEAREST]
            u, v = (ahead[:, :2] / ahead[:, 2:3]).T
            axes.scatter(u, v, s=0.6, c=ahead[:, 2], cmap="turbo", vmin=0, vmax=FAR, linewidths=0)
        _draw_in_image(axes, scene.truth.boxes, img_T_lidar, COLORS["truth"], 1.0)
    return figure if figure.axes else None


def annotated_above(scene: Scene) -> Figure:
    """A sample from above: points and ground-truth boxes."""
    figure = Figure(figsize=(6.5, 6.5))
    axes = figure.add_subplot()
    if scene.points is not None:
        axes.scatter(scene.points[:, 0], scene.points[:, 1], s=0.3, c="#9aa3ad", linewidths=0)
    _draw_above(axes, scene.truth.boxes, COLORS["truth"], 1.2)
    x0, x1, y0, y1 = scene.extent
    axes.set(xlim=(x0, x1), ylim=(y0, y1), aspect="equal", xlabel="x / m", ylabel="y / m")
    return figure


def _image_axes(figure: Figure, scene: Scene) -> Iterator[tuple[Axes, npt.NDArray[np.float64]]]:
    """Yield one axes and its `img_T_lidar` per camera, laid out in two rows; one row for one camera."""
    if scene.images is None or scene.img_T_lidar is None:
        return
    count, height, width = scene.images.shape[:3]
    rows = min(count, 2)
    columns = -(-count // rows)
    figure.set_size_inches(4.2 * columns, rows * 4.4 * height / width + 0.6)
    for index in range(count):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.imshow(scene.images[index])
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
        axes.set_title(scene.camera_names[index], fontsize=8)
        yield axes, scene.img_T_lidar[index]
    figure.tight_layout(pad=0.3)


def panel(shown: Panel) -> Figure:
    """One of the method's own pictures."""
    figure = Figure(figsize=(3.9, 3.6))
    axes = figure.add_subplot()
    match shown:
        case RegionPanel():
            _draw_regions(axes, shown)
        case MapPanel():
            drawn = axes.imshow(shown.values.float().numpy(), origin="lower", extent=shown.extent, cmap="magma")
            figure.colorbar(drawn, shrink=0.8)
        case MatrixPanel():
            drawn = axes.imshow(shown.values.float().numpy(), cmap="magma", aspect="auto", interpolation="nearest")
            axes.set(xlabel=shown.columns, ylabel=shown.rows)
            figure.colorbar(drawn, shrink=0.8)
        case PointPanel():
            points = _draw_points(axes, shown)
            if not shown.legend:
                beside = "vertical" if shown.unit == "metres" else "horizontal"  # images are wide
                figure.colorbar(points, shrink=0.8, orientation=beside, pad=0.05)
    axes.set(xticks=[], yticks=[])
    axes.set_title(shown.title, fontsize=9)
    return figure


def _draw_regions(axes: Axes, shown: RegionPanel) -> None:
    colors = ListedColormap(REGIONS[: len(shown.legend)])
    norm = BoundaryNorm(np.arange(len(shown.legend) + 1) - 0.5, len(shown.legend))
    values = shown.values.numpy()
    axes.imshow(values, origin="lower", extent=shown.extent, cmap=colors, norm=norm, interpolation="nearest")
    _label(axes, REGIONS, shown.legend)


def _draw_points(axes: Axes, shown: PointPanel) -> PathCollection:
    """Points over their background; colours are those of the legend, or a continuous scale."""
    x, y = shown.points.float().numpy().T
    in_pixels = shown.unit == "pixels"
    if shown.background is not None:
        extent = None if in_pixels else shown.extent
        axes.imshow(
            shown.background.numpy(), cmap="gray_r", origin="upper" if in_pixels else "lower", extent=extent
        )
    areas = POINT_AREA if shown.sizes is None else _areas(shown.sizes.float().numpy())
    colors: Sequence[str] | npt.NDArray[np.float32] = shown.values.float().numpy()
    if shown.legend:
        colors = [POINTS[int(value)] for value in shown.values]
        _label(axes, POINTS, shown.legend)
    cmap = None if shown.legend else "plasma"
    drawn = axes.scatter(x, y, s=areas, c=colors, cmap=cmap, linewidths=0.4, edgecolors="white")
    axes.set_aspect("equal")
    if in_pixels and shown.background is None:
        axes.invert_yaxis()
    elif not in_pixels and shown.extent is not None:
        x0, x1, y0, y1 = shown.extent
        axes.set(xlim=(x0, x1), ylim=(y0, y1))
    return drawn


def _areas(sizes: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Areas of markers in square points: proportional to the sizes, the largest at `LARGEST_AREA`."""
    return LARGEST_AREA * sizes.astype(np.float64) / max(float(sizes.max(initial=0.0)), 1e-12)


def _label(axes: Axes, colors: Sequence[str], legend: Sequence[str]) -> None:
    handles = [Patch(color=colors[index], label=name) for index, name in enumerate(legend)]
    axes.legend(handles=handles, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.02))


def _terms(curve: Sequence[Mapping[str, object]]) -> Mapping[str, Mapping[str, float]]:
    terms = curve[-1].get("terms", {}) if curve else {}
    assert isinstance(terms, Mapping)
    return terms


def _weighted_sum(curve: Sequence[Mapping[str, object]], group: str) -> tuple[list[int], list[float]]:
    steps, values = [], []
    for line in curve:
        terms, step = line.get("terms", {}), line["step"]
        assert isinstance(terms, Mapping)
        assert isinstance(step, int)
        chosen = [term["value"] * term["weight"] for name, term in terms.items() if name.partition("/")[0] == group]
        if chosen:
            steps.append(step)
            values.append(sum(chosen))
    return steps, values


def _smooth(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """A running mean over a few logged steps, shorter at the ends."""
    window = np.ones(min(SMOOTHING, len(values)))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _confident(scene: Scene, arm: str) -> Detections:
    found = scene.detections[arm]
    keep = (found.scores >= scene.threshold).cpu()
    return Detections(Boxes(found.boxes.tensor.cpu()[keep]), found.scores.cpu()[keep], found.labels.cpu()[keep])


def _draw_above(axes: Axes, boxes: Boxes, color: str, width: float) -> None:
    """Footprints, with a stroke from the centre to the front."""
    rings = boxes.bev_corners().cpu().numpy()
    center = boxes.centers[:, :2].cpu().numpy()
    yaw, length = boxes.yaw.cpu().numpy(), boxes.l.cpu().numpy()
    front = center + 0.5 * length[:, None] * np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
    segments = [*np.concatenate([rings, rings[:, :1]], axis=1), *np.stack([center, front], axis=1)]
    axes.add_collection(LineCollection(segments, colors=color, linewidths=width))


def _draw_in_image(
    axes: Axes, boxes: Boxes, img_T_lidar: npt.NDArray[np.float64], color: str, width: float
) -> None:
    """Wire frames of the boxes that lie in front of the camera as a whole."""
    corners = boxes.corners().cpu().double().numpy()
    pixels = np.concatenate([corners, np.ones_like(corners[..., :1])], axis=-1) @ img_T_lidar.T
    seen = pixels[(pixels[..., 2] >= NEAREST).all(axis=1)]
    uv = seen[..., :2] / seen[..., 2:3]
    segments = uv[:, np.array(EDGES + POSTS)].reshape(-1, 2, 2)
    axes.add_collection(LineCollection(list(segments), colors=color, linewidths=width))
