"""Rendering of camera images and of the exact masks of the things in them.

Pixel (column, row) samples the ray through the image point (u, v) = (column, row): integers are pixel centres.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bevkd_common.config.datasets.world import WorldConfig

from .paint import box_colour, ground_colour, sky_colour
from .raycast import Hits, Windows, cast
from .rig import Calibration
from .rigid import Floats, Integers, inverse, transform
from .scene import Scene
from .solids import PlacedBoxes, Solids, upright_boxes

NEAR = 0.2  # metres; what is closer to the camera is not drawn
_EDGES = np.array([[a, b] for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1])


@dataclass(frozen=True)
class Image:
    """One rendered image.

    Attributes:
        colour: uint8 [H, W, 3].
        owner: index of the thing seen at each pixel, -1 for ground and sky, int64 [H, W].
        visible, covered: for each thing the pixels where it is seen and where it would be if nothing stood
            before it, [N].
    """

    colour: npt.NDArray[np.uint8]
    owner: Integers
    visible: Integers
    covered: Integers


def render(
    scene: Scene,
    solids: Solids,
    seconds: float,
    calibration: Calibration,
    config: WorldConfig,
    rng: np.random.Generator,
) -> Image:
    """Renders one camera at one moment."""
    if calibration.intrinsic is None:
        raise ValueError(f"{calibration.channel} is no camera")
    height, width = config.image_size
    map_T_camera = scene.map_T_ego(seconds) @ calibration.ego_T_sensor
    origin, directions = map_T_camera[:3, 3], _rays(calibration.intrinsic, height, width) @ map_T_camera[:3, :3].T
    poses = scene.arcs.poses(seconds)
    boxes = solids.placed(poses)
    everything = boxes.joined(_shadows(scene, poses))
    windows = camera_windows(everything, map_T_camera, calibration.intrinsic, height, width)
    hits, met_box, met_ray = cast(origin, directions, everything, *windows.pairs(width))

    things = len(scene.kinds)
    solid = hits.box < len(solids)
    owner = np.full(height * width, -1)
    owner[hits.ray[solid]] = solids.owner[hits.box[solid]]
    meets = met_box < len(solids)
    covered = np.zeros((things, height * width), dtype=np.bool_)
    covered[solids.owner[met_box[meets]], met_ray[meets]] = True

    shaded = hits.ray[~solid]
    colour = _shade(scene, solids, boxes, hits[solid], shaded, origin, directions)
    colour = colour * (scene.light.exposure * scene.light.tint * rng.normal(1, 0.03))
    colour += config.image_noise * rng.standard_normal(colour.shape, dtype=np.float32)
    return Image(
        colour=np.clip(np.round(255 * colour), 0, 255).astype(np.uint8).reshape(height, width, 3),
        owner=owner.reshape(height, width),
        visible=np.bincount(owner[owner >= 0], minlength=things),
        covered=covered.sum(axis=1),
    )


def _rays(intrinsic: Floats, height: int, width: int) -> Floats:
    """Rays through all pixels in camera axes, of unit depth, [H * W, 3]."""
    v, u = np.mgrid[:height, :width].astype(np.float64)
    x, y = (u - intrinsic[0, 2]) / intrinsic[0, 0], (v - intrinsic[1, 2]) / intrinsic[1, 1]
    return np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)


def _shade(
    scene: Scene,
    solids: Solids,
    boxes: PlacedBoxes,
    hits: Hits,
    shaded: Integers,
    origin: Floats,
    directions: Floats,
) -> Floats:
    """Colours of all pixels before exposure, RGB [H * W, 3]; `shaded` are pixels of ground in the shadow."""
    light = scene.light
    depth = np.full(len(directions), np.inf)
    falls = directions[:, 2] < -1e-6
    depth[falls] = -origin[2] / directions[falls, 2]
    sky, ground = ~falls, falls
    sky[hits.ray], ground[hits.ray] = False, False
    depth[hits.ray] = hits.distance

    colour = np.empty((len(directions), 3))
    colour[sky] = sky_colour(light, directions[sky])
    colour[ground] = ground_colour(scene, origin[:2] + depth[ground, None] * directions[ground, :2])
    colour[shaded] *= light.ambient
    colour[hits.ray] = box_colour(light, solids, boxes, hits)
    clear = np.exp(-depth / light.haze)[:, None]
    return np.where(sky[:, None], colour, light.horizon + clear * (colour - light.horizon))


def _shadows(scene: Scene, poses: Floats) -> PlacedBoxes:
    """Flat slabs on the ground beside all things, away from the sun."""
    sun = scene.light.sun
    shift = -0.5 * np.minimum(scene.sizes[:, 2:], 3.0) * sun[:2] / max(sun[2], 0.3)
    centre = np.column_stack([poses[:, :2] + 0.5 * shift, np.zeros(len(poses))])
    half = np.column_stack([scene.sizes[:, :2] / 2 + 0.1 + 0.15 * np.abs(shift), np.full(len(poses), 0.004)])
    return upright_boxes(centre, half, poses[:, 2])


def camera_windows(boxes: PlacedBoxes, map_T_camera: Floats, intrinsic: Floats, height: int, width: int) -> Windows:
    """Rectangle of pixels around each box, cut off where the box reaches behind the camera."""
    corners = transform(inverse(map_T_camera), boxes.corners())
    start, end = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
    crosses = (start[..., 2] > NEAR) != (end[..., 2] > NEAR)
    rise = np.where(crosses, end[..., 2] - start[..., 2], 1.0)
    cut = start + ((NEAR - start[..., 2]) / rise)[..., None] * (end - start)
    points = np.concatenate([corners, cut], axis=1)
    seen = np.concatenate([corners[..., 2] > NEAR, crosses], axis=1)
    depth = np.where(seen, np.maximum(points[..., 2], NEAR), 1.0)
    limits = []
    for axis, size in ((1, height), (0, width)):
        pixel = points[..., axis] / depth * intrinsic[axis, axis] + intrinsic[axis, 2]
        low = np.where(seen, pixel, np.inf).min(axis=1)
        high = np.where(seen, pixel, -np.inf).max(axis=1)
        first = np.clip(np.ceil(np.clip(low, -1, size)), 0, size).astype(np.int64)
        last = np.clip(np.floor(np.clip(high, -1, size)), -1, size - 1).astype(np.int64)
        limits += [first, np.maximum(last - first + 1, 0)]
    return Windows(*limits)
