"""One scene: the street, the ego's way, everything on it, the light."""

from dataclasses import dataclass

import numpy as np

from bevkd_common.config.world import WorldConfig

from .kinds import CLASS_KINDS, CLUTTER_SHARES, KINDS
from .motion import Arcs, concatenate, single
from .placement import Crowd, Motion, place
from .rigid import Floats
from .street import MAP_CENTRE, Street, draw_street

# The devkit's CAN-bus reader refuses these scene numbers, which have no CAN data in the real set.
NO_CAN_NUMBERS = frozenset([*range(161, 169), *range(170, 177), *range(309, 315)])
TRACK_STEP = 0.1  # seconds between the moments at which tracks are checked for contact
FIRST_TIMESTAMP = 1_600_000_000_000_000
SCENE_SPACING = 100_000_000  # microseconds between the starts of two scenes


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
        return f"scene-{self.number:04d}"

    def random(self, *key: int) -> np.random.Generator:
        """A generator of its own for one purpose, whatever else was drawn before."""
        return np.random.default_rng([*self.entropy, *key])


def scene_numbers(config: WorldConfig) -> list[int]:
    """Numbers of all scenes, training first."""
    numbers = (number for number in range(1, 10_000) if number not in NO_CAN_NUMBERS)
    return [next(numbers) for _ in range(config.scenes)]


def time_span(config: WorldConfig) -> tuple[float, float]:
    """First and last moment of a scene in seconds: frames begin one key-frame interval before the first."""
    return -1 / config.keyframe_rate, (config.keyframes_per_scene - 1) / config.keyframe_rate


def draw_scene(config: WorldConfig, index: int) -> Scene:
    """Draws scene `index` of a world, independently of all others."""
    rng = np.random.default_rng([config.seed, index])
    street = draw_street(rng)
    first, last = time_span(config)
    times = np.linspace(first - 0.05, last, max(2, round((last - first) / TRACK_STEP) + 1))
    crowd = Crowd(street, _draw_ego(street, times, rng), times)
    for kind in _draw_kinds(config, rng):
        place(crowd, kind, rng)
    number = scene_numbers(config)[index]
    return Scene(
        number=number,
        start=FIRST_TIMESTAMP + number * SCENE_SPACING,
        street=street,
        ego=crowd.ego,
        kinds=tuple(crowd.kinds),
        motions=tuple(crowd.motions),
        sizes=np.array(crowd.sizes).reshape(-1, 3),
        arcs=concatenate(crowd.arcs) if crowd.arcs else Arcs(*(np.zeros(0) for _ in range(7))),
        light=_draw_light(rng),
        entropy=(config.seed, index),
    )


def _draw_ego(street: Street, times: Floats, rng: np.random.Generator) -> Arcs:
    """The ego keeps to its lane; in one scene of six it stands."""
    speed = 0.0 if rng.random() < 1 / 6 else float(rng.uniform(2, 9))
    limit = min(1.5, 0.5 * speed / (times[-1] - times[0]))
    return single(
        MAP_CENTRE, MAP_CENTRE, street.yaw, speed, float(rng.uniform(-limit, limit)), street.curvature, 0.0
    )


def _draw_kinds(config: WorldConfig, rng: np.random.Generator) -> list[str]:
    """Kinds to place in order: large classes first, for which room is scarce, clutter last."""
    order = ("truck", "trailer", "bus", "construction_vehicle", "car", "motorcycle", "bicycle", "barrier")
    kinds: list[str] = []
    for name in (*order, "pedestrian", "traffic_cone"):
        count = int(np.floor(getattr(config.objects, name) + rng.random()))
        shares = CLASS_KINDS[name]
        kinds.extend(str(kind) for kind in rng.choice(list(shares), size=count, p=list(shares.values())))
    weights = np.array(list(CLUTTER_SHARES.values()))
    clutter = rng.choice(list(CLUTTER_SHARES), size=config.clutter, p=weights / weights.sum())
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
