"""Scenes: the street, the trajectory of the ego vehicle, the objects and the light."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from bevkd_common.config.datasets.world import WorldConfig

from .kinds import CLASS_KINDS, CLUTTER_SHARES, KINDS, Motion
from .motion import Arcs, concatenate, single
from .placement import HOUSES, NEAR, Crowd, place
from .rigid import Floats, rigid, rotation_from_euler
from .street import Street, draw_street

TRACK_STEP = 0.1  # seconds between the times at which trajectories are checked for collisions
LEAD = 0.05  # seconds by which an image may precede the LiDAR sweep of its key frame
FASTEST_EGO = 9.0  # m/s


class Stream(IntEnum):
    """Independent random streams: additional draws from one stream do not change the others."""

    LAYOUT = 1
    APPEARANCE = 2
    SCHEDULE = 3
    SWEEP = 4
    IMAGE = 5
    RIG = 6


@dataclass(frozen=True)
class Light:
    """Light and colours of a scene; colours are RGB in [0, 1]."""

    sun: Floats  # unit vector towards the sun, map frame
    ambient: float
    exposure: float
    tint: Floats
    haze: float  # distance in metres over which contrast falls to 1 / e
    zenith: Floats
    horizon: Floats
    asphalt: Floats
    pavement: Floats
    verge: Floats


@dataclass(frozen=True)
class Scene:
    """One scene. Times in seconds are relative to its first key frame.

    Attributes:
        seed: Seed of the world.
        index: Index of the scene in the world. With the seed, it determines all random numbers of the scene.
        street: The street.
        ego: Trajectory of the ego vehicle.
        kinds: Kind of each object, [N].
        motions: Motion of each object, [N].
        sizes: Length, width and height of each object, [N, 3].
        arcs: Trajectories of the objects.
        light: The light.
    """

    seed: int
    index: int
    street: Street
    ego: Arcs
    kinds: tuple[str, ...]
    motions: tuple[Motion, ...]
    sizes: Floats
    arcs: Arcs
    light: Light

    def map_T_ego(self, seconds: float) -> Floats:  # noqa: N802
        """Returns the ego pose at a time as a matrix. The ego vehicle does not pitch or roll."""
        x, y, yaw = self.ego.poses(seconds)[0]
        return rigid(rotation_from_euler(yaw), np.array([x, y, 0.0]))

    def random(self, stream: Stream, *key: int) -> np.random.Generator:
        """Returns a new generator of one random stream of this scene."""
        return np.random.default_rng([self.seed, self.index, stream, *key])


def time_span(config: WorldConfig) -> tuple[float, float]:
    """Returns the times of the first frame and of the last key frame of a scene in seconds.

    Frames begin one key-frame interval before the first key frame.
    """
    return -1 / config.keyframe_rate, (config.keyframes_per_scene - 1) / config.keyframe_rate


def draw_scene(config: WorldConfig, index: int) -> Scene:
    """Draws scene `index` of a world. It does not depend on other scenes."""
    rng = np.random.default_rng([config.seed, index, Stream.LAYOUT])
    first, last = time_span(config)
    # With the largest acceleration, the ego vehicle drives a quarter farther than at constant speed.
    street = draw_street(rng, 1.25 * FASTEST_EGO * (last - first) + HOUSES)
    times = np.linspace(first - LEAD, last, max(2, round((last - first) / TRACK_STEP) + 1))
    ego = _draw_ego(street, times, rng)
    crowd = Crowd(street, ego, times)
    for kind in _draw_kinds(config, _crowding(ego, times), rng):
        place(crowd, kind, rng)
    return Scene(
        seed=config.seed,
        index=index,
        street=street,
        ego=ego,
        kinds=tuple(placed.kind for placed in crowd.objects),
        motions=tuple(placed.motion for placed in crowd.objects),
        sizes=np.array([placed.size for placed in crowd.objects]).reshape(-1, 3),
        arcs=concatenate([placed.arc for placed in crowd.objects]),
        light=_draw_light(rng),
    )


def _draw_ego(street: Street, times: Floats, rng: np.random.Generator) -> Arcs:
    """Draws the trajectory of the ego vehicle along its lane. In one of six scenes it stands still."""
    speed = 0.0 if rng.random() < 1 / 6 else rng.uniform(2, FASTEST_EGO)
    limit = min(1.5, 0.5 * speed / (times[-1] - times[0]))
    acceleration = rng.uniform(-limit, limit)
    return single(street.origin, street.origin, street.yaw, speed, acceleration, street.curvature, 0.0)


def _crowding(ego: Arcs, times: Floats) -> float:
    """Returns the factor on object counts that keeps their density along the ego trajectory constant."""
    moved = ego.poses(times)[:, 0, :2]
    return 1 + float(np.linalg.norm(np.diff(moved, axis=0), axis=1).sum()) / (2 * NEAR)


def _draw_kinds(config: WorldConfig, crowding: float, rng: np.random.Generator) -> list[str]:
    """Draws the kinds of the objects to place, in order of placement."""
    kinds: list[str] = []
    for name, shares in CLASS_KINDS.items():
        count = int(getattr(config.objects, name) * crowding + rng.random())
        kinds.extend(str(kind) for kind in rng.choice(list(shares), size=count, p=list(shares.values())))
    clutter = rng.choice(
        list(CLUTTER_SHARES), size=round(config.clutter * crowding), p=list(CLUTTER_SHARES.values())
    )
    return kinds + sorted((str(kind) for kind in clutter), key=lambda kind: -max(KINDS[kind].size[:2]))


def _draw_light(rng: np.random.Generator) -> Light:
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.35, 1.2)
    warmth, grey = rng.uniform(-0.06, 0.06), rng.uniform(0, 1)
    clear, cloudy = np.array([0.32, 0.50, 0.80]), np.array([0.62, 0.65, 0.68])
    return Light(
        sun=np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]),
        ambient=float(rng.uniform(0.5, 0.8)),
        exposure=float(rng.uniform(0.75, 1.15)),
        tint=np.array([1 + warmth, 1.0, 1 - warmth]),
        haze=float(rng.uniform(120, 400)),
        zenith=clear + grey * (cloudy - clear),
        horizon=np.array([0.80, 0.84, 0.88]) - 0.1 * grey,
        asphalt=np.full(3, rng.uniform(0.24, 0.38)),
        pavement=np.array([0.56, 0.54, 0.50]) * rng.uniform(0.8, 1.1),
        verge=np.array([[0.30, 0.38, 0.20], [0.45, 0.42, 0.34]])[int(rng.integers(2))] * rng.uniform(0.8, 1.1),
    )
