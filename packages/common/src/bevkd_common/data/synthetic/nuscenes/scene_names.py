"""Names and timestamps of the scenes of a world in the nuScenes format."""

from functools import cache
from itertools import count, islice

from bevkd_common.data.synthetic.scene import Scene

# Numbers of real scenes without CAN-bus data. The devkit's CAN-bus reader refuses them.
NO_CAN_NUMBERS = frozenset([*range(161, 169), *range(170, 177), *range(309, 315)])
FIRST_TIMESTAMP = 1_600_000_000_000_000  # microseconds
SCENE_SPACING = 100_000_000  # microseconds between the starts of two scenes


def scene_names(scenes: int) -> list[str]:
    """Returns the names of the first `scenes` scenes of a world."""
    return [_name(index) for index in range(scenes)]


def scene_name(scene: Scene) -> str:
    """Returns the name of a scene."""
    return _name(scene.index)


def scene_start(scene: Scene) -> int:
    """Returns the timestamp in microseconds of the time 0 of a scene."""
    return FIRST_TIMESTAMP + _number(scene.index) * SCENE_SPACING


def _name(index: int) -> str:
    return f"scene-{_number(index):04d}"


@cache
def _number(index: int) -> int:
    """Returns the number of the scene with a given index: 1 for 0, and so on, without `NO_CAN_NUMBERS`."""
    return next(islice((number for number in count(1) if number not in NO_CAN_NUMBERS), index, None))
