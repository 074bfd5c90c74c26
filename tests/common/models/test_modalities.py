"""UniDistill's detectors of cameras, LiDAR and both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import yaml
from bevkd_common.config.detectors.modalities import (
    CameraConfig,
    FusionConfig,
    LidarConfig,
    describe_camera,
    describe_fusion,
    describe_lidar,
)
from bevkd_common.data.samples import Cloud
from bevkd_common.models.detectors.modalities import ChannelGate, build_camera, build_fusion, build_lidar
from pydantic import ValidationError

BEHIND = """
backbone_channels: [8, 12]
backbone_layers: [1, 1]
neck_channels: [8, 8]
head:
  channels: 8
  tasks: [[car, truck, construction_vehicle, bus, trailer, barrier, motorcycle, bicycle, pedestrian, traffic_cone]]
"""
IMAGES = """
image_size: [32, 80]
image_backbone: {kind: small_resnet, stem_channels: 8, channels: [8, 16, 24], blocks: [1, 1, 1], strides: [8, 16]}
image_neck_channels: 16
lift_stride: 8
depth_bins: {start: 1, stop: 13, step: 1.0}
lift_channels: 8
grid: {x0: -12.8, y0: -6.4, cell: 0.8, nx: 32, ny: 16}
"""
POINTS = """
sweeps: 1
point_range: [-12.8, -6.4, -5.0, 12.8, 6.4, 3.0]
reader: {kind: pillars, pillar: 0.8, channels: 8}
"""
BUILDS = {
    "camera": (CameraConfig, build_camera, BEHIND + IMAGES, describe_camera),
    "lidar": (LidarConfig, build_lidar, BEHIND + POINTS, describe_lidar),
    "fusion": (FusionConfig, build_fusion, BEHIND + IMAGES + POINTS + "fused_channels: 8\n", describe_fusion),
}
PAPER = {"camera": 32_136_008, "lidar": 9_167_400, "fusion": 36_274_136}
"""Learned parameters of the released detectors."""


def config_of(kind, **changes):
    config, _, text, _ = BUILDS[kind]
    return config.model_validate(yaml.safe_load(text) | changes)


@pytest.fixture
def make(classes):
    def build(kind, **changes):
        torch.manual_seed(0)
        return BUILDS[kind][1](config_of(kind, **changes), classes)

    return build


@pytest.fixture
def both(batch_of):
    """A batch with images and points."""
    batch = batch_of()
    generator = torch.Generator().manual_seed(3)
    spread = torch.tensor([25.0, 12.0, 4.0, 1.0, 0.0])
    shift = torch.tensor([-12.5, -6.0, -2.0, 0.0, 0.0])
    clouds = [torch.rand(300, 5, generator=generator) * spread + shift for _ in range(2)]
    columns = ("x", "y", "z", "intensity", "seconds")
    return replace(batch, clouds={"lidar": Cloud(torch.cat(clouds), (300, 300), columns)})


@pytest.mark.parametrize("kind", PAPER)
def test_the_defaults_have_the_parameters_of_the_released_detectors(kind, classes, parameters):
    config, build, _, _ = BUILDS[kind]
    backbone = {"image_backbone": {"kind": "timm", "weights": None, "strides": [4, 8, 16, 32], "frozen_stages": 0}}
    with torch.device("meta"):
        detector = build(config.model_validate({} if kind == "lidar" else backbone), classes)
    assert parameters(detector) == PAPER[kind]
    low, high = detector.taps["bev_in"], detector.taps["bev_neck"]
    assert (low.channels, high.channels) == (256, 512)
    assert low.grid == high.grid == detector.taps["head"].grid
    assert (low.grid.nx, low.grid.ny, low.grid.cell) == (180, 180, 0.6)


@pytest.mark.parametrize("kind", BUILDS)
def test_it_detects_and_learns(kind, make, both):
    detector = make(kind).train()
    outputs = detector(both, frozenset({"head", "bev_in", "bev_neck"}))
    for name in ("head", "bev_in", "bev_neck"):
        assert detector.taps[name].problem(outputs.value(name), 2) is None
    losses = detector.losses(outputs, detector.targets(outputs, both), both)
    assert set(losses.terms) == {"heatmap", "boxes", "iou", "penalty", "overlap"}
    sum(term.value * term.weight for term in losses.terms.values()).backward()
    untrained = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert untrained == []
    assert len(detector.decode(detector.eval()(both, frozenset({"head"})), both)) == 2


def test_pillars_of_half_a_cell_reach_the_same_map(make, both):
    halved = {"kind": "pillars", "pillar": 0.4, "stride": 2, "channels": 8}
    detector = make("lidar", reader=halved).train()
    low = detector(both, frozenset({"bev_in"})).taps["bev_in"]
    assert detector.taps["bev_in"].problem(low, 2) is None
    assert detector.taps["bev_in"].grid == make("lidar").taps["bev_in"].grid
    assert (low >= 0).all()
    assert detector.points.spec.cells[:2] == (64, 32)


@pytest.mark.parametrize(
    ("kind", "cameras", "clouds"),
    [("camera", True, set()), ("lidar", False, {"lidar"}), ("fusion", True, {"lidar"})],
)
def test_needs_and_parts(kind, cameras, clouds, make):
    detector = make(kind)
    assert (detector.needs.cameras, detector.needs.clouds) == (cameras, clouds)
    assert ("image_backbone" in detector.parts) == cameras
    assert ("reader" in detector.parts) == bool(clouds)
    assert {"backbone", "bev_neck", "head", "head.task_heads"} <= set(detector.parts)


def test_only_what_is_wanted_is_computed(make, both):
    detector = make("camera")
    outputs = detector(both, frozenset({"image_neck"}))
    assert set(outputs.taps) == {"image_neck"}
    assert outputs.head == ()
    with pytest.raises(ValueError, match="has no tap"):
        detector(both, frozenset({"pillars"}))
    with pytest.raises(ValueError, match="loaded without cameras"):
        detector(replace(both, cameras=None), frozenset({"head"}))


def test_points_and_pixels_of_a_place_light_the_same_cell(make, both):
    """A cluster of points at x 5.3, y -3.1 m: column (5.3 + 12.8) / 0.8 = 22, row (-3.1 + 6.4) / 0.8 = 4."""
    place = torch.tensor([5.3, -3.1, -0.5, 0.5, 0.0])
    cloud = Cloud(place + 0.05 * torch.rand(20, 5), (20,), ("x", "y", "z", "intensity", "seconds"))
    detector = make("lidar").eval()
    low = detector.points(replace(both, clouds={"lidar": cloud}, tokens=("a",)))
    assert {tuple(cell) for cell in low[0].sum(dim=0).nonzero().tolist()} == {(4, 22)}
    # The same place, seen by the camera that looks along x: 5.3 m - 0 ahead, at the column of y.
    camera = make("camera").eval()
    cameras = both.cameras
    frustum = camera.images.lift_splat.frustum
    cells = camera.images.lift_splat.cells(cameras)[0, 0]
    pixel = torch.cat([frustum[..., :2], torch.ones_like(frustum[..., :1])], dim=-1)
    rays = (pixel * frustum[..., 2:]) @ torch.linalg.inv(cameras.intrinsics[0, 0]).T
    x, y, z = (rays @ cameras.lidar_T_cam[0, 0, :3, :3].T + cameras.lidar_T_cam[0, 0, :3, 3]).unbind(-1)
    column, row = ((x + 12.8) / 0.8).floor().long(), ((y + 6.4) / 0.8).floor().long()
    inside = (column >= 0) & (column < 32) & (row >= 0) & (row < 16) & (z > -5) & (z < 3)
    assert 50 < inside.sum() < inside.numel()
    assert torch.equal(cells[inside], (row * 32 + column)[inside])


def test_the_gate_weighs_channels_by_their_means():
    gate = ChannelGate(4, 3, 0.1).eval()
    points, images = torch.rand(2, 2, 5, 5), torch.rand(2, 2, 5, 5)
    both = torch.cat([points, images], dim=1)
    weights = gate.gate(both.mean(dim=(2, 3), keepdim=True)).sigmoid()
    torch.testing.assert_close(gate(points, images), gate.mix(both * weights))
    assert (gate(points, images) >= 0).all()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "fusion",
            {"grid": {"x0": -12.8, "y0": -6.4, "cell": 0.4, "nx": 64, "ny": 32}},
            "must have the same cells",
        ),
        (
            "lidar",
            {"point_range": [-12.7, -6.4, -5.0, 12.8, 6.4, 3.0]},
            "along x is not a whole number of cells of 0.8 m",
        ),
        ("lidar", {"neck_channels": [8]}, "one number for each of the 2 stages"),
        ("lidar", {"neck_upsampling": [1.0, 4.0]}, "stage 1 must undo its stride 2, got 4"),
        ("camera", {"image_neck_channels": 15}, "cannot be divided among 2 levels"),
        ("camera", {"lift_stride": 12, "image_size": [48, 96]}, "not in whole steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind, changes, message):
    with pytest.raises(ValidationError, match=message):
        config_of(kind, **changes)


@pytest.mark.parametrize("kind", BUILDS)
def test_descriptions(kind):
    description = BUILDS[kind][3](config_of(kind))
    assert ("images of 32 x 80" in description) == (kind != "lidar")
    assert ("pillars of 0.8 m" in description) == (kind != "camera")
