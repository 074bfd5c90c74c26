import math
from collections.abc import Callable

import pytest
import torch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.transforms import quaternion_to_rotation, rigid
from torch import Tensor

RandomBoxes = Callable[[int, int], Boxes]
RandomRigid = Callable[[int, float, float], Tensor]


@pytest.fixture(scope="session")
def random_boxes() -> RandomBoxes:
    """`(seed, count)` to float64 boxes with centres within 50 m, all sizes different, any yaw in [-π, π)."""

    def make(seed: int, count: int) -> Boxes:
        unit = torch.rand(count, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        low = torch.tensor([-50, -50, -5, 3, 1.5, 0.5, -math.pi, -10, -10], dtype=torch.float64)
        high = torch.tensor([50, 50, 5, 9, 2.5, 1.4, math.pi, 10, 10], dtype=torch.float64)
        return Boxes(low + unit * (high - low))

    return make


@pytest.fixture(scope="session")
def random_rigid() -> RandomRigid:
    """`(seed, tilt, distance)` to a float64 matrix: any yaw, tilted by up to `tilt` rad."""

    def make(seed: int, tilt: float, distance: float) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        unit = torch.rand(6, dtype=torch.float64, generator=generator) * 2 - 1
        half_yaw = unit[0] * math.pi / 2
        turn = torch.stack([half_yaw.cos(), *(unit[1:3] * tilt / 2), half_yaw.sin()])
        return rigid(quaternion_to_rotation(turn), unit[3:] * distance)

    return make
