"""Simulation of a spinning LiDAR: its beams are cast against the boxes of a scene and against the ground.

All points of a sweep are measured at one time, as if they were already compensated for ego motion.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .patterns import glazed, striped
from .raycast import Hits, Windows, cast
from .rig import BodyPart, Lidar, Rig
from .rigid import Floats, Integers, inverse, transform
from .scene import Scene
from .solids import FACE_NORMALS, PlacedBoxes, Solids, upright_boxes
from .street import Ground

BODY_REFLECTIVITY, GLASS_REFLECTIVITY, SHEETING_REFLECTIVITY = 0.3, 0.06, 0.85
SLACK = 0.05  # metres by which the windows of rays are larger than the boxes
GROUND_REFLECTIVITY = {Ground.VERGE: 0.10, Ground.PAVEMENT: 0.14, Ground.ASPHALT: 0.05, Ground.MARKING: 0.45}
REFLECTANCE_NOISE = 0.12  # relative standard deviation


@dataclass(frozen=True, eq=False)
class Sweep:
    """The P points of one sweep in the order of firing.

    Attributes:
        points: x, y, z in metres, LiDAR axes, float32 [P, 3].
        reflectance: Share of the light that returns, float64 [P]. Values are not clipped to [0, 1].
        beam: Index of the beam, 0 for the lowest, int64 [P].
    """

    points: npt.NDArray[np.float32]
    reflectance: Floats
    beam: Integers


def sweep(scene: Scene, solids: Solids, seconds: float, rig: Rig, rng: np.random.Generator) -> Sweep:
    """Simulates one sweep.

    Args:
        scene: The scene.
        solids: Boxes of its objects.
        seconds: Time of the sweep.
        rig: The LiDAR and the parts of the vehicle in its view.
        rng: Source of the phase, the dropout and the noise.
    """
    lidar = rig.lidar
    phase = rng.uniform(0, 2 * np.pi / lidar.azimuths)
    directions = ray_directions(lidar, phase)
    map_T_ego = scene.map_T_ego(seconds)
    map_T_lidar = map_T_ego @ lidar.ego_T_sensor
    origin, map_directions = map_T_lidar[:3, 3], directions @ map_T_lidar[:3, :3].T
    boxes = solids.placed(scene.arcs.poses(seconds))
    boxes = boxes.joined(_placed_body(rig.body, map_T_ego, float(scene.ego.poses(seconds)[0, 2])))
    windows = lidar_windows(boxes, map_T_lidar, lidar, phase)
    hits, _, _ = cast(origin, map_directions, boxes, *windows.pairs(lidar.azimuths))

    distance = np.full(len(directions), np.inf)
    down = map_directions[:, 2] < -1e-6
    distance[down] = -origin[2] / map_directions[down, 2]
    hits = hits[hits.distance < distance[hits.ray]]
    distance[hits.ray] = hits.distance
    kept = (distance < lidar.range) & (rng.random(len(distance)) >= lidar.dropout)

    reflectivity = np.zeros(len(directions))
    ground = kept.copy()
    ground[hits.ray] = False
    where = origin[:2] + distance[ground, None] * map_directions[ground, :2]
    reflectivity[ground] = np.array([GROUND_REFLECTIVITY[kind] for kind in Ground])[scene.street.ground(where)]
    reflectivity[hits.ray] = _box_reflectivity(solids, boxes, hits, map_directions)
    order = _firing_order(lidar)
    order = order[kept[order]]
    measured = distance[order] + lidar.noise * rng.standard_normal(len(order))
    return Sweep(
        points=(measured[:, None] * directions[order]).astype(np.float32),
        reflectance=reflectivity[order] * np.exp(REFLECTANCE_NOISE * rng.standard_normal(len(order))),
        beam=order // lidar.azimuths,
    )


def _placed_body(body: tuple[BodyPart, ...], map_T_ego: Floats, heading: float) -> PlacedBoxes:
    """Returns the parts of the ego vehicle in the map frame."""
    centre = np.array([part.centre for part in body]).reshape(-1, 3)
    half = np.array([part.half for part in body]).reshape(-1, 3)
    return upright_boxes(transform(map_T_ego, centre), half, np.full(len(body), heading))


def ray_directions(lidar: Lidar, phase: float) -> Floats:
    """Returns unit vectors in LiDAR axes, beam by beam from the lowest, [beams * azimuths, 3].

    Args:
        lidar: The LiDAR.
        phase: Azimuth of the first column in radians.
    """
    elevation = lidar.elevations[:, None]
    azimuth = phase + 2 * np.pi / lidar.azimuths * np.arange(lidar.azimuths)
    flat = np.cos(elevation)
    grid = np.broadcast_arrays(flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation))
    return np.stack(grid, axis=-1).reshape(-1, 3)


def _firing_order(lidar: Lidar) -> Integers:
    """Returns ray indices column by column. Azimuths descend because the LiDAR turns clockwise."""
    rays = np.arange(lidar.beams * lidar.azimuths).reshape(lidar.beams, lidar.azimuths)
    return rays[:, ::-1].T.reshape(-1)


def lidar_windows(boxes: PlacedBoxes, map_T_lidar: Floats, lidar: Lidar, phase: float) -> Windows:
    """Returns the beams and columns that can hit each box.

    Args:
        boxes: The boxes.
        map_T_lidar: Pose of the LiDAR. Its z axis points up, tilted by less than 90 degrees.
        lidar: The LiDAR.
        phase: Azimuth of the first column in radians.
    """
    corners = transform(inverse(map_T_lidar), boxes.corners())
    angle = np.arctan2(corners[..., 1], corners[..., 0])
    middle = angle[:, :1]
    offset = np.mod(angle - middle + np.pi, 2 * np.pi) - np.pi
    step = 2 * np.pi / lidar.azimuths
    first = np.ceil((middle[:, 0] + offset.min(axis=1) - phase) / step).astype(np.int64)
    last = np.floor((middle[:, 0] + offset.max(axis=1) - phase) / step).astype(np.int64)

    local = boxes.to_local(np.arange(len(boxes.centre)), map_T_lidar[:3, 3] - boxes.centre)
    gap = np.maximum(np.abs(local[:, :2]) - boxes.half[:, :2], 0)
    # A lower bound of the horizontal distance in the axes of a tilted LiDAR.
    upright = map_T_lidar[2, 2]
    height = np.abs(local[:, 2]) + boxes.half[:, 2]
    near = upright * np.hypot(gap[:, 0], gap[:, 1]) - np.sqrt(max(1 - upright**2, 0.0)) * height
    near = np.maximum(near - SLACK, SLACK)
    far = np.hypot(corners[..., 0], corners[..., 1]).max(axis=1)
    top, bottom = corners[..., 2].max(axis=1), corners[..., 2].min(axis=1)
    highest = np.arctan2(top, np.where(top > 0, near, far))
    lowest = np.arctan2(bottom, np.where(bottom < 0, near, far))
    row = np.searchsorted(lidar.elevations, lowest, side="left")
    end = np.searchsorted(lidar.elevations, highest, side="right")
    return Windows(row, np.maximum(end - row, 0), first % lidar.azimuths, np.maximum(last - first + 1, 0))


def _box_reflectivity(solids: Solids, boxes: PlacedBoxes, hits: Hits, directions: Floats) -> Floats:
    """Returns the share of the light that boxes reflect. Boxes after the solids are parts of the ego vehicle."""
    box = np.minimum(hits.box, len(solids) - 1)
    pattern, place = solids.pattern[box], hits.point / solids.half[box]
    plain = solids.reflectivity[box] + solids.gradient[box] * (solids.centre[box, 0] + hits.point[:, 0])
    plain[glazed(pattern, place, hits.point, hits.face)] = GLASS_REFLECTIVITY
    plain[striped(pattern, place, hits.point)] = SHEETING_REFLECTIVITY
    plain[hits.box >= len(solids)] = BODY_REFLECTIVITY
    incidence = np.abs((boxes.to_local(hits.box, directions[hits.ray]) * FACE_NORMALS[hits.face]).sum(axis=1))
    return plain * (0.6 + 0.4 * incidence)


def points_in_boxes(points: Floats, boxes: Floats) -> Integers:
    """Counts the points inside each box, faces included.

    Args:
        points: [P, 3], in metres, map frame.
        boxes: Centre x, y, z, length, width, height, yaw, [M, 7], map frame.
    """
    reach = np.hypot(boxes[:, 3], boxes[:, 4]) / 2
    # Most points are on the ground, below all boxes.
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
