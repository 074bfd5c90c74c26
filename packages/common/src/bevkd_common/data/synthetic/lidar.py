"""A 32-beam spinning LiDAR, ray-cast against the boxes of the scene and the ground.

One sweep is taken at one instant, as if already corrected for the ego's motion.
"""

import numpy as np
import numpy.typing as npt

from bevkd_common.config.datasets.world import WorldConfig

from .patterns import glazed, striped
from .raycast import Hits, Windows, cast
from .rig import Calibration
from .rigid import Floats, Integers, inverse, transform
from .scene import Scene
from .solids import FACE_NORMALS, PlacedBoxes, Solids, upright_boxes
from .street import Ground

BEAMS = 32
LOWEST_BEAM, HIGHEST_BEAM = np.radians(-30.67), np.radians(10.67)
BEAM_STEP = (HIGHEST_BEAM - LOWEST_BEAM) / (BEAMS - 1)
# What the LiDAR sees of the car that carries it: a bar on the roof, (x, y, z) and half sizes in the ego frame.
ROOF_CENTRE, ROOF_HALF = np.array([0.94, 0.0, 1.48]), np.array([0.60, 0.12, 0.05])
ROOF_REFLECTIVITY, GLASS_REFLECTIVITY, SHEETING_REFLECTIVITY = 0.3, 0.06, 0.85
GROUND_REFLECTIVITY = {Ground.VERGE: 0.10, Ground.PAVEMENT: 0.14, Ground.ASPHALT: 0.05, Ground.MARKING: 0.45}
SHINE_NOISE = 0.12  # relative standard deviation of the intensity


def sweep(
    scene: Scene,
    solids: Solids,
    seconds: float,
    calibration: Calibration,
    config: WorldConfig,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Casts one sweep.

    Returns:
        Points x, y, z (metres, LiDAR axes), intensity (0 to 255), ring (0 is the lowest beam): float32 [P, 5], in
        the order of firing.
    """
    azimuths = config.lidar_azimuths
    phase = rng.uniform(0, 2 * np.pi / azimuths)
    directions = _directions(azimuths, phase)
    map_T_ego = scene.map_T_ego(seconds)
    map_T_lidar = map_T_ego @ calibration.ego_T_sensor
    origin, map_directions = map_T_lidar[:3, 3], directions @ map_T_lidar[:3, :3].T
    roof_centre, heading = transform(map_T_ego, ROOF_CENTRE[None]), scene.ego.poses(seconds)[:, 2]
    roof = upright_boxes(roof_centre, ROOF_HALF[None], heading)
    boxes = solids.placed(scene.arcs.poses(seconds)).joined(roof)
    windows = lidar_windows(boxes, map_T_lidar, azimuths, phase)
    hits, _, _ = cast(origin, map_directions, boxes, *windows.pairs(azimuths))

    distance = np.full(len(directions), np.inf)
    down = map_directions[:, 2] < -1e-6
    distance[down] = -origin[2] / map_directions[down, 2]
    hits = hits[hits.distance < distance[hits.ray]]
    distance[hits.ray] = hits.distance
    kept = (distance < config.lidar_range) & (rng.random(len(distance)) >= config.lidar_dropout)

    reflectivity = np.zeros(len(directions))
    ground = kept.copy()
    ground[hits.ray] = False
    where = origin[:2] + distance[ground, None] * map_directions[ground, :2]
    reflectivity[ground] = np.array([GROUND_REFLECTIVITY[kind] for kind in Ground])[scene.street.ground(where)]
    reflectivity[hits.ray] = _box_reflectivity(solids, boxes, hits, map_directions)
    order = _firing_order(azimuths)
    order = order[kept[order]]
    measured = distance[order] + config.lidar_noise * rng.standard_normal(len(order))
    shine = 255 * reflectivity[order] * np.exp(SHINE_NOISE * rng.standard_normal(len(order)))
    columns = [measured[:, None] * directions[order], np.clip(np.round(shine), 0, 255), order // azimuths]
    return np.column_stack(columns).astype(np.float32)


def _directions(azimuths: int, phase: float) -> Floats:
    """Unit rays in LiDAR axes, [32 * azimuths, 3], beam by beam from the lowest."""
    elevation = LOWEST_BEAM + BEAM_STEP * np.arange(BEAMS)[:, None]
    azimuth = phase + 2 * np.pi / azimuths * np.arange(azimuths)
    flat = np.cos(elevation)
    grid = np.broadcast_arrays(flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation))
    return np.stack(grid, axis=-1).reshape(-1, 3)


def _firing_order(azimuths: int) -> Integers:
    """Ray indices column by column, against the sense in which azimuth grows: the unit turns clockwise."""
    rays = np.arange(BEAMS * azimuths).reshape(BEAMS, azimuths)
    return rays[:, ::-1].T.reshape(-1)


def lidar_windows(boxes: PlacedBoxes, map_T_lidar: Floats, azimuths: int, phase: float) -> Windows:
    """Beams and columns that can touch each box."""
    corners = transform(inverse(map_T_lidar), boxes.corners())
    angle = np.arctan2(corners[..., 1], corners[..., 0])
    middle = angle[:, :1]
    offset = np.mod(angle - middle + np.pi, 2 * np.pi) - np.pi
    step = 2 * np.pi / azimuths
    first = np.ceil((middle[:, 0] + offset.min(axis=1) - phase) / step).astype(np.int64)
    last = np.floor((middle[:, 0] + offset.max(axis=1) - phase) / step).astype(np.int64)

    local = boxes.to_local(np.arange(len(boxes.centre)), map_T_lidar[:3, 3] - boxes.centre)
    gap = np.maximum(np.abs(local[:, :2]) - boxes.half[:, :2], 0)
    # The unit is tilted by two degrees: horizontal distances in its own axes differ by less than this.
    near = np.maximum(np.hypot(gap[:, 0], gap[:, 1]) - 0.3, 0.05)
    far = np.hypot(corners[..., 0], corners[..., 1]).max(axis=1)
    top, bottom = corners[..., 2].max(axis=1), corners[..., 2].min(axis=1)
    highest = np.arctan2(top, np.where(top > 0, near, far))
    lowest = np.arctan2(bottom, np.where(bottom < 0, near, far))
    row = np.clip(np.ceil((lowest - LOWEST_BEAM) / BEAM_STEP), 0, BEAMS).astype(np.int64)
    end = np.clip(np.floor((highest - LOWEST_BEAM) / BEAM_STEP) + 1, 0, BEAMS).astype(np.int64)
    return Windows(row, np.maximum(end - row, 0), first % azimuths, np.maximum(last - first + 1, 0))


def _box_reflectivity(solids: Solids, boxes: PlacedBoxes, hits: Hits, directions: Floats) -> Floats:
    """Share of the light that comes back from boxes; the last box is the bar on the ego's roof."""
    box = np.minimum(hits.box, len(solids) - 1)
    pattern, place = solids.pattern[box], hits.point / solids.half[box]
    plain = solids.reflectivity[box] + solids.gradient[box] * (solids.centre[box, 0] + hits.point[:, 0])
    plain[glazed(pattern, place, hits.point, hits.face)] = GLASS_REFLECTIVITY
    plain[striped(pattern, place, hits.point)] = SHEETING_REFLECTIVITY
    plain[hits.box == len(solids)] = ROOF_REFLECTIVITY
    incidence = np.abs((boxes.to_local(hits.box, directions[hits.ray]) * FACE_NORMALS[hits.face]).sum(axis=1))
    return plain * (0.6 + 0.4 * incidence)


def points_in_boxes(points: Floats, boxes: Floats) -> Integers:
    """Counts the points inside each box, faces included.

    Args:
        points: [P, 3] metres, map frame.
        boxes: (x, y, z of the middle, length, width, height, yaw), [M, 7], map frame.
    """
    reach = np.hypot(boxes[:, 3], boxes[:, 4]) / 2
    # Boxes end above the road, where most points lie.
    raised = points[points[:, 2] >= (boxes[:, 2] - boxes[:, 5] / 2).min(initial=np.inf)]
    near = np.abs(raised[:, 0] - boxes[:, :1]) <= reach[:, None]
    near &= np.abs(raised[:, 1] - boxes[:, 1:2]) <= reach[:, None]
    box, point = np.nonzero(near)
    offset = raised[point] - boxes[box, :3]
    cos, sin = np.cos(boxes[box, 6]), np.sin(boxes[box, 6])
    along = np.abs(cos * offset[:, 0] + sin * offset[:, 1])
    across = np.abs(cos * offset[:, 1] - sin * offset[:, 0])
    half = boxes[box, 3:6] / 2
    inside = (along <= half[:, 0]) & (across <= half[:, 1]) & (np.abs(offset[:, 2]) <= half[:, 2])
    return np.bincount(box[inside], minlength=len(boxes))
