"""Rendering of camera images with exact instance masks.

Pixel (column, row) shows the ray through the image point (u, v) = (column, row): integers are pixel centres.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .paint import box_colour, ground_colour, sky_colour
from .raycast import Hits, Windows, cast
from .rig import Camera
from .rigid import Floats, Integers, inverse, transform
from .scene import Scene
from .solids import PlacedBoxes, Solids, upright_boxes

NEAR = 0.2  # metres; depth of the near plane
_EDGES = np.array([[a, b] for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1])


@dataclass(frozen=True)
class Image:
    """One rendered image.

    Attributes:
        colour: RGB, uint8 [H, W, 3].
        owner: Index of the object visible at each pixel, -1 for ground and sky, int64 [H, W].
        visible: Number of pixels in which each object is visible, [N].
        covered: Number of pixels in which each object would be visible without occlusion, [N].
    """

    colour: npt.NDArray[np.uint8]
    owner: Integers
    visible: Integers
    covered: Integers


def render(scene: Scene, solids: Solids, seconds: float, camera: Camera, rng: np.random.Generator) -> Image:
    """Renders one image.

    Args:
        scene: The scene.
        solids: Boxes of its objects.
        seconds: Time of the image.
        camera: The camera.
        rng: Source of the exposure and the pixel noise.
    """
    height, width = camera.image_size
    map_T_camera = scene.map_T_ego(seconds) @ camera.ego_T_sensor
    origin, directions = map_T_camera[:3, 3], pixel_rays(camera) @ map_T_camera[:3, :3].T
    poses = scene.arcs.poses(seconds)
    boxes = solids.placed(poses)
    everything = boxes.joined(_shadows(scene, poses))
    windows = camera_windows(everything, map_T_camera, camera)
    hits, met_box, met_ray = cast(origin, directions, everything, *windows.pairs(width))

    objects = len(scene.kinds)
    solid = hits.box < len(solids)
    owner = np.full(height * width, -1)
    owner[hits.ray[solid]] = solids.owner[hits.box[solid]]
    meets = met_box < len(solids)
    covered = np.zeros((objects, height * width), dtype=np.bool_)
    covered[solids.owner[met_box[meets]], met_ray[meets]] = True

    shaded = hits.ray[~solid]
    colour = _shade(scene, solids, boxes, hits[solid], shaded, origin, directions)
    colour = colour * (scene.light.exposure * scene.light.tint * rng.normal(1, 0.03))
    colour += camera.noise * rng.standard_normal(colour.shape, dtype=np.float32)
    return Image(
        colour=np.clip(np.round(255 * colour), 0, 255).astype(np.uint8).reshape(height, width, 3),
        owner=owner.reshape(height, width),
        visible=np.bincount(owner[owner >= 0], minlength=objects),
        covered=covered.sum(axis=1),
    )


def pixel_rays(camera: Camera) -> Floats:
    """Returns the rays through all pixels in camera axes, with unit depth, [H * W, 3]."""
    height, width = camera.image_size
    intrinsic = camera.intrinsic
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
    """Returns the colours of all pixels before exposure, RGB [H * W, 3]; `shaded` are pixels of shaded ground."""
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
    """Returns the shadows of all objects: flat boxes on the ground, shifted away from the sun."""
    sun = scene.light.sun
    shift = -0.5 * np.minimum(scene.sizes[:, 2:], 3.0) * sun[:2] / max(sun[2], 0.3)
    centre = np.column_stack([poses[:, :2] + 0.5 * shift, np.zeros(len(poses))])
    half = np.column_stack([scene.sizes[:, :2] / 2 + 0.1 + 0.15 * np.abs(shift), np.full(len(poses), 0.004)])
    return upright_boxes(centre, half, poses[:, 2])


def camera_windows(boxes: PlacedBoxes, map_T_camera: Floats, camera: Camera) -> Windows:
    """Returns the bounding rectangle of pixels of each box, clipped at the near plane."""
    corners = transform(inverse(map_T_camera), boxes.corners())
    start, end = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
    crosses = (start[..., 2] > NEAR) != (end[..., 2] > NEAR)
    rise = np.where(crosses, end[..., 2] - start[..., 2], 1.0)
    cut = start + ((NEAR - start[..., 2]) / rise)[..., None] * (end - start)
    points = np.concatenate([corners, cut], axis=1)
    seen = np.concatenate([corners[..., 2] > NEAR, crosses], axis=1)
    depth = np.where(seen, np.maximum(points[..., 2], NEAR), 1.0)
    limits = []
    for axis, size in zip((1, 0), camera.image_size, strict=True):
        pixel = points[..., axis] / depth * camera.intrinsic[axis, axis] + camera.intrinsic[axis, 2]
        low = np.where(seen, pixel, np.inf).min(axis=1)
        high = np.where(seen, pixel, -np.inf).max(axis=1)
        first = np.clip(np.ceil(np.clip(low, -1, size)), 0, size).astype(np.int64)
        last = np.clip(np.floor(np.clip(high, -1, size)), -1, size - 1).astype(np.int64)
        limits += [first, np.maximum(last - first + 1, 0)]
    return Windows(*limits)
