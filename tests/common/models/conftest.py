"""What the camera detectors' tests share: a batch without a data set, and a configuration that a CPU takes."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from bevkd_common.config.detectors.bevdet import BevDetConfig
from bevkd_common.config.detectors.center_head import CenterHeadConfig
from bevkd_common.data.samples import Batch, Cameras, DepthHits, History
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.transforms import rigid, rotation_z
from bevkd_common.models.detectors.bevdet import BevDet, build
from torch import Tensor, nn

KEYS = Path(__file__).parents[2] / "data" / "keys"
# Longer along x than along y, so that no transposed map passes.
TINY = """
image_size: [32, 80]
image_backbone: {kind: small_resnet, stem_channels: 8, channels: [8, 16, 24], blocks: [1, 1, 1], strides: [8, 16]}
image_neck_channels: 16
depth_bins: {start: 1, stop: 13, step: 1.0}
lift_channels: 8
grid: {x0: -12.8, y0: -6.4, cell: 0.8, nx: 32, ny: 16}
bev_stages: [{channels: 16, blocks: 1}, {channels: 24, blocks: 1}, {channels: 32, blocks: 1}]
bev_neck: {hidden_channels: 24, channels: 16}
head:
  channels: 16
  tasks: [[car, truck, construction_vehicle, bus, trailer, barrier, motorcycle, bicycle, pedestrian, traffic_cone]]
  nms: [{threshold: 1.0}]
"""


@pytest.fixture(scope="session")
def classes() -> tuple[str, ...]:
    return tuple(name for task in CenterHeadConfig().tasks for name in task)


@pytest.fixture
def tiny_config() -> dict[str, Any]:
    """Of BEVDet, less its kind."""
    return yaml.safe_load(TINY)


@pytest.fixture
def tiny(classes, tiny_config) -> Callable[..., BevDet]:
    def make(**changes) -> BevDet:
        torch.manual_seed(0)
        return build(BevDetConfig.model_validate(tiny_config | changes), classes)

    return make


@pytest.fixture(scope="session")
def released_shapes() -> Callable[[str], dict[str, tuple[int, ...]]]:
    """Shapes of a released checkpoint by its keys, from a file beside the tests."""

    def read(name: str) -> dict[str, tuple[int, ...]]:
        rows = (line.split("\t") for line in (KEYS / f"{name}.tsv").read_text().splitlines())
        return {key: ast.literal_eval(shape) for key, shape, _ in rows}

    return read


@pytest.fixture(scope="session")
def parameters() -> Callable[[nn.Module], int]:
    return lambda module: sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def batch_of() -> Callable[..., Batch]:
    """Noise seen by four level cameras at a height of 1.5 m, and three boxes a sample."""

    def make(samples: int = 2, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        yaw = torch.tensor([0.0, 0.5, 1.0, 1.5]) * math.pi + 0.1
        ahead = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
        cameras = Cameras(
            images=torch.randint(0, 256, (samples, 4, 3, 32, 80), generator=generator, dtype=torch.uint8),
            intrinsics=torch.tensor([[40.0, 0, 40], [0, 40, 14], [0, 0, 1]]).expand(samples, 4, 3, 3),
            lidar_T_cam=rigid(rotation_z(yaw) @ ahead, torch.tensor([0.0, 0.0, -0.3])).expand(samples, 4, 4, 4),
            image_aug=torch.eye(3).expand(samples, 4, 3, 3),
        )
        low = torch.tensor([-10.0, -5, -1, 1, 1, 1, -3, -2, -2])
        boxes = torch.rand(samples, 3, 9, generator=generator) * torch.tensor([20.0, 10, 1, 3, 1, 1, 6, 4, 4]) + low
        return Batch(
            tokens=tuple(f"token{i}" for i in range(samples)),
            scenes=("scene",) * samples,
            boxes=Boxes(boxes),
            labels=torch.randint(0, 10, (samples, 3), generator=generator),
            cameras=cameras,
            clouds={},
            aug_T_lidar=torch.eye(4).expand(samples, 4, 4),
            global_T_lidar=torch.eye(4, dtype=torch.float64).expand(samples, 4, 4),
        )

    return make


@pytest.fixture
def with_cameras() -> Callable[..., Batch]:
    """The same batch with some tensors of its cameras exchanged."""
    return lambda batch, **changes: replace(batch, cameras=replace(batch.cameras, **changes))


@pytest.fixture
def with_history() -> Callable[..., Batch]:
    """The same batch after another; `lidar_T_past` [4, 4] moved the ego in between."""

    def make(batch: Batch, lidar_T_past: Tensor | None = None, seconds=(1.5, 1.5), seed: int = 7) -> Batch:
        moved = torch.eye(4) if lidar_T_past is None else lidar_T_past
        images = torch.randint(
            0, 256, batch.cameras.images.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
        )
        past = replace(batch.cameras, images=images, lidar_T_cam=moved @ batch.cameras.lidar_T_cam)
        history = History(
            cameras=Cameras(**{name: value[:, None] for name, value in vars(past).items()}),
            lidar_T_past=moved.expand(len(batch), 1, 4, 4),
            seconds=torch.tensor(seconds)[:, None],
            present=torch.ones(len(batch), 1, dtype=torch.bool),
        )
        return replace(batch, history=history)

    return make


@pytest.fixture
def with_depth() -> Callable[..., Batch]:
    """The same batch with points: image, u, v and metres of each."""

    def make(batch: Batch, *rows: tuple[int, float, float, float]) -> Batch:
        table = torch.tensor(rows)
        return replace(batch, depth=DepthHits(table[:, 0].long(), table[:, 1:3], table[:, 3], table[:, 3] > 0))

    return make


@pytest.fixture
def settled() -> Callable[[BevDet, Batch], BevDet]:
    """Evaluation mode, the norms at the statistics of the batch, so that signals keep their size."""

    def settle(model: BevDet, batch: Batch) -> BevDet:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model(batch, frozenset({"head"}))
        return model.eval()

    return settle
