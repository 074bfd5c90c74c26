"""What holds for every detector that comes with the project, in a size that a CPU takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import yaml
from bevkd_common.config.plugins import DetectorSpec, load
from bevkd_common.data.samples import Batch, Cameras, Cloud, DepthHits, EgoMotion, History
from bevkd_common.data.virtual_points.lifting import PAINTED_COLUMNS
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.transforms import inverse, rigid, rotation_z
from bevkd_common.models import specs
from bevkd_common.models.detector import HeatmapTargets, Losses
from bevkd_common.models.taps import BevMap, HeadMaps, Meaning, TapSpec
from torch import Tensor, nn

CLASSES = (
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian",
    "traffic_cone",
)  # fmt: skip
# Longer along x than along y, so that no transposed map passes.
CENTER_HEAD = """
channels: 16
tasks:
- [car, truck]
- [construction_vehicle, bus, trailer, barrier, motorcycle, bicycle, pedestrian, traffic_cone]
nms: [{threshold: 1.0}, {kind: rotate, threshold: 0.2}]
"""
LIDAR = """
sweeps: 1
point_range: [-12.8, -6.4, -5, 12.8, 6.4, 3]
pillar: 0.4
pillar_channels: 16
backbone_channels: [16, 24, 32]
backbone_layers: [1, 1, 1]
neck_channels: [16, 16, 16]
neck_upsampling: [1, 2, 4]
"""
VOXELS = """
sweeps: 1
point_range: [-12.8, -6.4, -2, 12.8, 6.4, 2]
voxel: 0.2
voxel_height: 0.4
encoder_channels: [8, 16]
encoder_blocks: 1
backbone_channels: [16, 24]
backbone_layers: [1, 1]
neck_channels: [16, 16]
"""
LIDARFORMER = """
sweeps: 1
point_range: [-12.8, -6.4, -5, 12.8, 6.4, 3]
reader: {kind: pillars, pillar: 0.8, channels: 16, norm_momentum: 0.1}
backbone_channels: [16, 24]
backbone_layers: [1, 1]
levels: 3
channels: 32
grid: {x0: -12.8, y0: -6.4, cell: 1.6, nx: 16, ny: 8}
encoder_layers: 2
hidden_channels: 32
head: {queries: 16, layers: 2, hidden_channels: 32}
"""
CAMERA = """
image_size: [32, 80]
image_backbone: {kind: small_resnet, stem_channels: 8, channels: [8, 16, 24], blocks: [1, 1, 1], strides: [8, 16]}
image_neck_channels: 16
depth_bins: {start: 1, stop: 13, step: 1.0}
lift_channels: 8
grid: {x0: -12.8, y0: -6.4, cell: 0.8, nx: 32, ny: 16}
bev_stages: [{channels: 16, blocks: 1}, {channels: 24, blocks: 2}, {channels: 32, blocks: 1}]
"""
BEV_NECK = {"hidden_channels": 24, "channels": 16}
MEGVII = """
image_backbone:
  {kind: small_resnet, stem_channels: 8, channels: [8, 16, 24], blocks: [1, 1, 1], strides: [4, 8, 16]}
image_neck_channels: 18
lift_stride: 8
depth_channels: 16
bev_stages: [{channels: 16, stride: 1, blocks: 1}, {channels: 16, blocks: 2}]
bev_neck_channels: 8
"""
BEVFORMER = """
image_size: [32, 80]
image_backbone: {kind: small_resnet, stem_channels: 8, channels: [8, 16, 24], blocks: [1, 1, 1], strides: [8, 16]}
image_levels: 3
channels: 16
grid: {x0: -9.6, y0: -6.4, cell: 1.6, nx: 12, ny: 8}
cameras: 4
encoder_layers: 2
attention_heads: 2
hidden_channels: 24
frames: 2
head: {queries: 10, layers: 2, attention_heads: 2, hidden_channels: 24}
"""
MODALITY = """
backbone_channels: [16, 24]
backbone_layers: [1, 1]
neck_channels: [16, 16]
head: {channels: 16}
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
point_range: [-12.8, -6.4, -2, 12.8, 6.4, 2]
reader:
  {kind: voxels, voxel: 0.4, voxel_height: 0.4, encoder_channels: [8, 16], encoder_blocks: 1, encoder_biases: true}
"""
HEAD = frozenset({"head"})


def _read(*texts: str, **changes: Any) -> dict[str, Any]:
    return {name: value for text in texts for name, value in yaml.safe_load(text).items()} | changes


PEAKS = {"queries": 16, "layers": 2, "hidden_channels": 32, "queries_from": "heatmap"}
CENTER = {"head": yaml.safe_load(CENTER_HEAD)}
SHIPPED: dict[str, tuple[DetectorSpec, dict[str, Any]]] = {
    "centerpoint": (specs.CENTERPOINT, _read(LIDAR, **CENTER)),
    "centerpoint deformable": (specs.CENTERPOINT, _read(LIDAR, head=CENTER["head"] | {"deformable": True})),
    "centerpoint_voxel": (specs.CENTERPOINT_VOXEL, _read(VOXELS, **CENTER)),
    "mvp": (specs.MVP, _read(LIDAR, **CENTER)),
    "lidarformer": (specs.LIDARFORMER, _read(LIDARFORMER)),
    "lidarformer from peaks": (specs.LIDARFORMER, _read(LIDARFORMER, head=PEAKS)),
    "lidarformer from headings": (specs.LIDARFORMER, _read(LIDARFORMER, head=PEAKS | {"heading_weight": 1.0})),
    "bevdet": (specs.BEVDET, _read(CAMERA, bev_neck=BEV_NECK, **CENTER)),
    "bevdet with a ReLU": (specs.BEVDET, _read(CAMERA, bev_neck=BEV_NECK | {"extra_norm_act": True}, **CENTER)),
    "bevdet4d": (specs.BEVDET4D, _read(CAMERA, bev_neck=BEV_NECK, **CENTER)),
    "bevdet4d velocity": (specs.BEVDET4D, _read(CAMERA, bev_neck=BEV_NECK, motion="velocity", **CENTER)),
    "bevdepth": (specs.BEVDEPTH, _read(CAMERA, bev_neck=BEV_NECK, depth_channels=16, **CENTER)),
    "bevformer": (specs.BEVFORMER, _read(BEVFORMER)),
    "camera": (specs.CAMERA, _read(MODALITY, IMAGES)),
    "lidar": (specs.LIDAR, _read(MODALITY, POINTS)),
    "fusion": (specs.FUSION, _read(MODALITY, IMAGES, POINTS)),
    "megvii_bevdepth": (specs.MEGVII_BEVDEPTH, _read(CAMERA, MEGVII, **CENTER)),
    "megvii_bevdepth in ego axes": (
        specs.MEGVII_BEVDEPTH,
        _read(CAMERA, MEGVII, frames=1, depth_aggregation=True, mount={}, **CENTER),
    ),
}


def build(name: str) -> Any:
    spec, config = SHIPPED[name]
    torch.manual_seed(0)
    return load(spec.build)(spec.config.model_validate(config | {"kind": spec.kind}), CLASSES)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Two samples with everything that a detector can ask for."""
    generator = torch.Generator().manual_seed(0)
    low = torch.tensor([-9.0, -5, -1, 1, 1, 1, -3, -2, -2])
    boxes = torch.rand(2, 3, 9, generator=generator) * torch.tensor([18.0, 10, 1, 3, 1, 1, 6, 4, 4]) + low
    size, corner = torch.tensor([25.6, 12.8, 8.0, 255.0, 0.5]), torch.tensor([-12.8, -6.4, -5.0, 0.0, 0.0])
    points = torch.rand(2, 600, 5, generator=generator) * size + corner
    painted = torch.rand(2, 600, 17, generator=generator)
    painted[..., :4] = points[..., :4]
    painted[..., 15] = torch.tensor([1.0, 0.0, -1.0]).repeat(200)
    present, (past,) = cameras(generator, 2), [cameras(generator, 2, 1)]
    poses = torch.stack([rigid(rotation_z(torch.tensor([0.0, 0.1 + s]).double()), torch.zeros(3)) for s in (0, 1)])
    moved = inverse(poses[:, 1]) @ poses[:, 0]
    past = replace(past, lidar_T_cam=(moved[:, None, None] @ past.lidar_T_cam.double()).float())
    half = torch.full((2, 1), 0.5)
    spread = torch.tensor([80.0, 32.0])
    return Batch(
        tokens=("a", "b"),
        scenes=("scene", "scene"),
        boxes=Boxes(boxes),
        labels=torch.randint(0, 10, (2, 3), generator=generator),
        cameras=present,
        clouds={
            "lidar": Cloud(points.flatten(0, 1), (600, 600), tuple("xyzit")),
            "painted": Cloud(painted.flatten(0, 1), (600, 600), PAINTED_COLUMNS),
        },
        aug_T_lidar=torch.eye(4).expand(2, 4, 4),
        global_T_lidar=poses[:, 1],
        history=History(past, moved[:, None].float(), half, torch.ones(2, 1, dtype=torch.bool)),
        ego=EgoMotion(poses, *torch.randn(3, 2, 2, 3, generator=generator)),
        depth=DepthHits(
            torch.randint(0, 8, (200,), generator=generator),
            torch.rand(200, 2, generator=generator) * spread,
            torch.rand(200, generator=generator) * 13 + 0.5,
            torch.ones(200, dtype=torch.bool),
        ),
    )


def cameras(generator: torch.Generator, *lead: int) -> Cameras:
    """Four level cameras."""
    yaw = torch.tensor([0.0, 0.5, 1.0, 1.5]) * math.pi + 0.1
    ahead = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    return Cameras(
        images=torch.randint(0, 256, (*lead, 4, 3, 32, 80), generator=generator, dtype=torch.uint8),
        intrinsics=torch.tensor([[40.0, 0, 40], [0, 40, 14], [0, 0, 1]]).expand(*lead, 4, 3, 3),
        lidar_T_cam=rigid(rotation_z(yaw) @ ahead, torch.tensor([0.0, 0.0, -0.3])).expand(*lead, 4, 4, 4),
        image_aug=torch.eye(3).expand(*lead, 4, 3, 3),
    )


def taps_of_all() -> Iterator[tuple[str, Any, str, TapSpec]]:
    for name in SHIPPED:
        detector = build(name)
        for tap, spec in detector.taps.items():
            yield name, detector, tap, spec


def test_every_shipped_detector_is_here():
    shipped = {value for value in vars(specs).values() if isinstance(value, DetectorSpec)}
    assert shipped - {spec for spec, _ in SHIPPED.values()} == {specs.MMDET3D}  # needs mmdetection3d
    assert (len(shipped), len(SHIPPED)) == (13, 18)


@pytest.mark.parametrize("training", [False, True])
def test_every_tap_is_what_it_says(batch, training):
    """Each tap is computed alone and beside all others."""
    checked = 0
    for name, detector, tap, spec in taps_of_all():
        detector.train(training)
        with torch.no_grad():
            alone = detector(batch, frozenset({tap}))
            together = detector(batch, frozenset(detector.taps))
        for outputs in (alone, together):
            assert spec.problem(outputs.value(tap), len(batch)) is None, (name, tap)
        assert {*alone.taps, *alone.tokens} == {tap} - HEAD, (name, tap)
        checked += 1
    assert checked == TAPS


TAPS = 166


def test_a_wrong_value_is_found():
    """A value with one channel, sample or name more than described."""
    found = 0
    for name, detector, tap, spec in taps_of_all():
        wrong: list[Any] = [None, torch.zeros(1), []]
        if isinstance(spec, BevMap):
            shape = (2, spec.channels, spec.grid.ny, spec.grid.nx)
            wrong += [torch.zeros(2, *shape[1:3], shape[3] + 1), torch.zeros(3, *shape[1:])]
            assert spec.problem(torch.zeros(shape), 2) is None
            assert (spec.problem(torch.full(shape, -1.0), 2) is not None) == (spec.activation == "relu")
        for value in wrong:
            assert spec.problem(value, 2) is not None, (name, tap, detector)
            found += 1
    assert found > 3 * TAPS


def test_words_and_nouns_are_short():
    classes = set()
    for *_, spec in taps_of_all():
        classes.add(type(spec))
        assert spec.noun.startswith(("a ", "an "))
        assert 5 < len(spec.words) < 60
    assert len(classes) == KINDS


KINDS = 7


@pytest.mark.parametrize("name", SHIPPED)
def test_the_head_announces_heat_maps(name, batch):
    detector = build(name).train()
    outputs = detector(batch, HEAD)
    targets = detector.targets(outputs, batch)
    grid = detector.taps["head"].heatmap_grid
    assert (grid is None) == (name in ("lidarformer", "bevformer"))
    heatmaps = list(targets.heatmaps) if isinstance(targets, HeatmapTargets) else []
    assert [tuple(heatmap.shape) for heatmap in heatmaps] == [tuple(logits.shape) for logits in outputs.heatmaps]
    if grid is not None:
        assert heatmaps
        assert all(heatmap.shape[2:] == (grid.ny, grid.nx) for heatmap in heatmaps)
        assert sum(heatmap.shape[1] for heatmap in heatmaps) == len(CLASSES)
    losses = detector.losses(outputs, targets, batch)
    assert isinstance(losses, Losses)
    assert all(term.value.ndim == 0 and term.value.isfinite() for term in losses.terms.values())


def test_only_a_frame_before_makes_velocities_displacements():
    motions = {
        name: next(branch.meaning for branch in build(name).taps["head"].branches if branch.name == "vel")
        for name in SHIPPED
        if isinstance(build(name).taps["head"], HeadMaps)
    }
    assert {name for name, meaning in motions.items() if meaning is Meaning.DISPLACEMENT} == {
        "bevdet4d",
        "bevdepth",
    }
    assert len(motions) == 14


def test_parts_have_shared_names():
    names = {name: set(build(name).parts) for name in SHIPPED}
    camera = {"image_backbone", "image_neck"}
    lidar = {"reader", "backbone"}
    for name, parts in names.items():
        spec = SHIPPED[name][0]
        points = spec in (specs.CENTERPOINT, specs.CENTERPOINT_VOXEL, specs.MVP, specs.LIDARFORMER, specs.LIDAR)
        sensors = {specs.CAMERA: camera | {"backbone"}, specs.FUSION: camera | lidar}
        queries = spec in (specs.LIDARFORMER, specs.BEVFORMER)
        head = {"encoder", "encoder.bev_queries", "head.decoder"} if queries else {"bev_neck", "head.task_heads"}
        lift = set() if points or queries else {"depth_net"}
        learned = {"head.queries"} if queries and "from" not in name else set()
        assert {part for part in parts if "norm" not in part} == {
            "head", *head, *sensors.get(spec, lidar if points else camera), *lift, *learned
        }, name  # fmt: skip


def keep(returned: dict[nn.Module, Tensor], module: nn.Module, inputs: Any, output: Tensor) -> None:
    returned[module] = output.clone()


def test_a_map_before_its_activation_becomes_the_map(batch):
    """The map is its ReLU; without a shortcut it is what its batch norms return; only it costs anything."""
    compared = plain = 0
    for name, detector, tap, spec in taps_of_all():
        if not tap.endswith("_preactivation"):
            continue
        detector.eval()
        after = tap.removesuffix("_preactivation")
        returned: dict[nn.Module, Tensor] = {}
        norms = [detector.parts[name] for name in spec.norms]
        for norm in norms:
            norm.register_forward_hook(partial(keep, returned))
        with torch.no_grad():
            maps = detector(batch, frozenset({tap, after})).taps
        assert bool((maps[tap] < 0).any()), (name, tap)
        assert torch.equal(maps[tap].relu(), maps[after]), (name, tap)
        normed = torch.cat([returned[norm] for norm in norms], dim=1)
        assert normed.shape == maps[tap].shape
        plain += torch.equal(normed, maps[tap])
        assert detector.taps[after].norms == ()
        compared += 1
    assert (compared, plain) == (PREACTIVATIONS, WITHOUT_SHORTCUT)


PREACTIVATIONS, WITHOUT_SHORTCUT = 49, 32


def test_gradients_pass_a_map_before_its_activation(batch):
    detector = build("bevdet").train()
    detector(batch, frozenset({"bev_block1_preactivation"})).taps["bev_block1_preactivation"].sum().backward()
    moved = {
        name.split(".")[1]
        for name, p in detector.named_parameters()
        if name.startswith("bev_stages") and p.grad is not None
    }
    assert moved == {"0", "1"}


def test_pillars_of_teacher_and_student_are_the_same_rows(batch):
    teacher, student = build("centerpoint").eval(), build("centerpoint deformable").eval()
    assert teacher.taps["pillars"] == student.taps["pillars"]
    ours, theirs = (model(batch, frozenset({"pillars"})).tokens["pillars"] for model in (student, teacher))
    assert torch.equal(ours.coordinates, theirs.coordinates)
    assert ours.counts == theirs.counts
    voxels = batch.cloud("lidar").voxels(teacher.spec)
    assert int(ours.points.sum()) == len(voxels.points)
    samples = torch.arange(2).repeat_interleave(torch.tensor(ours.counts))
    assert torch.equal(samples, voxels.coordinates[:, 0])
    canvas = teacher(batch, frozenset({"bev_in"})).taps["bev_in"]
    y, x = theirs.coordinates[:, 1], theirs.coordinates[:, 2]
    assert torch.equal(canvas[samples, :, y, x], theirs.features)
