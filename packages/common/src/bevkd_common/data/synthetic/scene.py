"""One scene: the street, the ego's way, everything on it, the light."""

from dataclasses import dataclass
from enum import IntEnum
from itertools import islice

import numpy as np

from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.errors import UserError

from .kinds import CLASS_KINDS, CLUTTER_SHARES, KINDS, Motion
from .motion import Arcs, concatenate, single
from .placement import HOUSES, NEAR, Crowd, place
from .rigid import Booleans, Floats, rigid, rotation_from_euler
from .street import Street, draw_street

# The devkit's CAN-bus reader refuses these scene numbers, which have no CAN data in the real set.
NO_CAN_NUMBERS = frozenset([*range(161, 169), *range(170, 177), *range(309, 315)])
TRACK_STEP = 0.1  # seconds between the moments at which tracks are checked for contact
EARLIEST = 0.05  # seconds by which the first camera may be ahead of the LiDAR
FASTEST_EGO = 9.0  # m/s
MOST_INSTANCES = 255  # masks have eight bits
FIRST_TIMESTAMP = 1_600_000_000_000_000
SCENE_SPACING = 100_000_000  # microseconds between the starts of two scenes


class Stream(IntEnum):
    """Separate sources of random numbers, so that one more draw in one place changes nothing elsewhere."""

    LAYOUT = 1
    APPEARANCE = 2
    SCHEDULE = 3
    SWEEP = 4
    IMAGE = 5
    RIG = 6


@dataclass(frozen=True)
class Light:
    """How a scene looks as a whole; colours are RGB in [0, 1]."""

    sun: Floats  # unit vector towards the sun, in the map's frame
    ambient: float
    exposure: float
    tint: Floats
    haze: float  # distance in metres at which about two thirds of a thing's colour are lost
    zenith: Floats
    horizon: Floats
    asphalt: Floats
    pavement: Floats
    verge: Floats


@dataclass(frozen=True)
class Scene:
    """Everything of one scene that does not change with time.

    Attributes:
        number: number in the scene's name, from 1.
        start: timestamp of the first key frame in microseconds; times in seconds count from it.
        kinds, motions, sizes, arcs: the things in it; sizes are (length, width, height), [N, 3].
        entropy: the world's seed and the scene's index, from which all its random numbers come.
    """

    number: int
    start: int
    street: Street
    ego: Arcs
    kinds: tuple[str, ...]
    motions: tuple[Motion, ...]
    sizes: Floats
    arcs: Arcs
    light: Light
    entropy: tuple[int, int]

    @property
    def name(self) -> str:
        """Name in the nuScenes tables."""
        return _name(self.number)

    @property
    def annotated(self) -> Booleans:
        """Whether each thing has a category and so gets annotations, [N]."""
        return np.array([KINDS[kind].category is not None for kind in self.kinds], dtype=np.bool_)

    def map_T_ego(self, seconds: float) -> Floats:  # noqa: N802
        """Pose matrix of the ego at a moment; the ground is level and so is the ego."""
        x, y, yaw = self.ego.poses(seconds)[0]
        return rigid(rotation_from_euler(yaw), np.array([x, y, 0.0]))

    def random(self, stream: Stream, *key: int) -> np.random.Generator:
        """The random numbers for one purpose, whatever else was drawn before."""
        return np.random.default_rng([*self.entropy, stream, *key])


def scene_names(config: WorldConfig) -> list[str]:
    """Names of all scenes, training first."""
    return [_name(number) for number in _numbers(config)]


def _name(number: int) -> str:
    return f"scene-{number:04d}"


def _numbers(config: WorldConfig) -> list[int]:
    free = (number for number in range(1, 10_000) if number not in NO_CAN_NUMBERS)
    return list(islice(free, config.scenes))


def time_span(config: WorldConfig) -> tuple[float, float]:
    """First and last moment of a scene in seconds: frames begin one key-frame interval before the first."""
    return -1 / config.keyframe_rate, (config.keyframes_per_scene - 1) / config.keyframe_rate


def draw_scene(config: WorldConfig, index: int) -> Scene:
    """Draws scene `index` of a world, independently of all others.

    Raises:
        UserError: the configuration asks for more annotated things than a mask can number.
    """
    rng = np.random.default_rng([config.seed, index, Stream.LAYOUT])
    first, last = time_span(config)
    # Gaining speed all the way, the ego gets a quarter farther than at its first speed.
    street = draw_street(rng, 1.25 * FASTEST_EGO * (last - first) + HOUSES)
    times = np.linspace(first - EARLIEST, last, max(2, round((last - first) / TRACK_STEP) + 1))
    ego = _draw_ego(street, times, rng)
    crowd = Crowd(street, ego, times)
    for kind in _draw_kinds(config, _crowding(ego, times), rng):
        place(crowd, kind, rng)
    number = _numbers(config)[index]
    scene = Scene(
        number=number,
        start=FIRST_TIMESTAMP + number * SCENE_SPACING,
        street=street,
        ego=ego,
        kinds=tuple(thing.kind for thing in crowd.things),
        motions=tuple(thing.motion for thing in crowd.things),
        sizes=np.array([thing.size for thing in crowd.things]).reshape(-1, 3),
        arcs=concatenate([thing.arc for thing in crowd.things]),
        light=_draw_light(rng),
        entropy=(config.seed, index),
    )
    if scene.annotated.sum() > MOST_INSTANCES:
        raise UserError(
            f"{scene.name} would have {scene.annotated.sum()} annotated things and a mask numbers only "
            f"{MOST_INSTANCES}: lower the counts in `objects`, `clutter` or keyframes_per_scene"
        )
    return scene


def _draw_ego(street: Street, times: Floats, rng: np.random.Generator) -> Arcs:
    """The ego keeps to its lane; in one scene of six it stands."""
    speed = 0.0 if rng.random() < 1 / 6 else rng.uniform(2, FASTEST_EGO)
    limit = min(1.5, 0.5 * speed / (times[-1] - times[0]))
    acceleration = rng.uniform(-limit, limit)
    return single(street.origin, street.origin, street.yaw, speed, acceleration, street.curvature, 0.0)


def _crowding(ego: Arcs, times: Floats) -> float:
    """How many times more things a scene needs for the ego's way to be as busy as around an ego that stands."""
    moved = ego.poses(times)[:, 0, :2]
    return 1 + float(np.linalg.norm(np.diff(moved, axis=0), axis=1).sum()) / (2 * NEAR)


def _draw_kinds(config: WorldConfig, crowding: float, rng: np.random.Generator) -> list[str]:
    """Kinds to place, in order."""
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
