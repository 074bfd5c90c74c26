"""MVP: the readers of painted clouds and the detector on them."""

import pytest
import torch
from bevkd_common.config.detectors.mvp import MvpConfig
from bevkd_common.config.detectors.point_readers import PillarReaderConfig, VoxelReaderConfig
from bevkd_common.config.plugins import DetectorSpec, installed, load
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Batch, Cloud
from bevkd_common.data.virtual_points.lifting import PAINTED_COLUMNS, PAINTED_FEATURES
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.detectors.centerpoint import CenterPoint
from bevkd_common.models.detectors.mvp import build
from bevkd_common.models.painted_points import VOXEL_FEATURES, mixed_means
from bevkd_common.models.point_readers import build_point_reader
from bevkd_common.ops.voxelize import VoxelSpec, voxelize
from pydantic import ValidationError

CLASSES = (
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian",
    "traffic_cone",
)  # fmt: skip
SMALL = {
    "sweeps": 2,
    "point_range": (-12.8, -6.4, -5, 12.8, 6.4, 3),
    "pillar": 0.4,
    "pillar_channels": 8,
    "backbone_channels": (8, 8),
    "backbone_layers": (1, 1),
    "backbone_strides": (2, 2),
    "neck_channels": (8, 8),
    "neck_upsampling": (1, 2),
    "head": {"channels": 8, "tasks": (CLASSES,), "nms": ({"threshold": 1.0},)},
}
SPEC = VoxelSpec((0.0, 0.0, -5.0), (4.0, 4.0, 3.0), (1.0, 1.0, 8.0))


def point(x: float, y: float, tag: float, score: float = 1.0, label: int | None = None, lag: float = 0.0) -> list:
    """A row of a painted cloud; points as measured have ones in all classes."""
    classes = [1.0] * 10 if label is None else [float(label == place) for place in range(10)]
    return [x, y, 0.5, -1.0 if tag == -1 else 40.0, *classes, score, tag, lag]


def batch_of(*clouds: list[list]) -> Batch:
    painted = torch.tensor([row for cloud in clouds for row in cloud])
    return Batch(
        tokens=tuple(f"token{i}" for i in range(len(clouds))),
        scenes=("scene",) * len(clouds),
        boxes=Boxes(torch.tensor([[[2.0, 1.0, 0.0, 4.0, 2.0, 1.5, 0.3, 1.0, 0.0]]] * len(clouds))),
        labels=torch.zeros(len(clouds), 1, dtype=torch.int64),
        cameras=None,
        clouds={"painted": Cloud(painted, tuple(map(len, clouds)), PAINTED_COLUMNS)},
        aug_T_lidar=torch.eye(4).expand(len(clouds), 4, 4),
        global_T_lidar=torch.eye(4, dtype=torch.float64).expand(len(clouds), 4, 4),
    )


def test_means_of_a_voxel_with_one_point_of_each_sort():
    # Hand-computed: scores 0.8 and 0.6 give 0.7, one of two is painted, one of three as measured.
    cloud = [
        point(1.2, 2.4, 1, lag=0.1),
        point(1.2, 2.4, 0, 0.8, label=3, lag=0.1),
        point(1.6, 2.8, -1, 0.6, label=3, lag=0.3),
    ]
    means = mixed_means(voxelize(torch.tensor(cloud), (3,), SPEC))
    assert means.shape == (1, VOXEL_FEATURES) == (1, 23)
    one_hot = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    expected = [1.2, 2.4, 0.5, 40, 0.1, 1.4, 2.6, 0.5, 19.5, *one_hot, 0.7, 0.2, 0.5, 1 / 3]
    torch.testing.assert_close(means[0], torch.tensor(expected))


def test_means_of_voxels_that_hold_one_sort_alone():
    cloud = [point(0.5, 0.5, 1), point(0.7, 0.5, 1), point(2.5, 0.5, -1, 0.5, label=0), point(9.0, 9.0, 1)]
    means = mixed_means(voxelize(torch.tensor(cloud), (4,), SPEC))
    assert len(means) == 2
    torch.testing.assert_close(means[0], torch.tensor([0.6, 0.5, 0.5, 40, 0, *[0.0] * 17, 1]))
    torch.testing.assert_close(means[1], torch.tensor([*[0.0] * 5, 2.5, 0.5, 0.5, -1, 1, *[0.0] * 9, 0.5, 0, 0, 0]))


def test_means_equal_a_loop_over_voxels_and_points():
    generator = torch.Generator().manual_seed(0)
    cloud = torch.rand(300, 17, generator=generator, dtype=torch.float64) * 4
    cloud[:, 15] = torch.randint(-1, 2, (300,), generator=generator).double()
    voxels = voxelize(cloud, (120, 180), SPEC)
    means = mixed_means(voxels)
    for voxel, found in enumerate(means):
        rows = voxels.points[voxels.voxel == voxel]
        raw, added = rows[rows[:, 15] == 1], rows[rows[:, 15] != 1]
        expected = torch.zeros(23, dtype=torch.float64)
        if len(raw):
            expected[:5] = torch.stack([row[[0, 1, 2, 3, 16]] for row in raw]).mean(0)
        if len(added):
            flags = [torch.cat([row[:15], row[16:], (row[15:16] == 0).double()]) for row in added]
            expected[5:22] = torch.stack(flags).mean(0)
        expected[22] = len(raw) / len(rows)
        torch.testing.assert_close(found, expected)
    assert len(means) > 20


def test_the_reader_puts_painted_points_at_their_cells():
    torch.manual_seed(0)
    config = PillarReaderConfig(painted=True, pillar=1.0, channels=6)
    reader = build_point_reader(config, (*SPEC.range_min, *SPEC.range_max), 1).eval()
    assert reader.needs == DataNeeds(clouds=frozenset({"painted"}), sweeps=1)
    batch = batch_of([point(3.5, 0.5, -1, 0.5, 2)], [point(0.5, 2.5, 1), point(1.5, 1.5, 0, 0.9, 4)])
    canvas = reader(batch)
    assert canvas.shape == (2, 6, 4, 4)
    assert canvas.any(dim=1).nonzero().tolist() == [[0, 0, 3], [1, 1, 1], [1, 2, 0]]
    # Class and score are seen, not the place alone.
    other = reader(batch_of([point(3.5, 0.5, -1, 0.5, 7)], [point(0.5, 2.5, 1), point(1.5, 1.5, 0, 0.2, 4)]))
    assert (canvas != other).any(dim=1).nonzero().tolist() == [[0, 0, 3], [1, 1, 1]]


def test_a_voxel_reader_scales_numbers_and_keeps_tags_apart():
    torch.manual_seed(0)
    scales = (2.0,) * PAINTED_FEATURES
    config = VoxelReaderConfig(
        painted=True, voxel=1.0, voxel_height=1.0, encoder_channels=(4, 4), point_scales=scales
    )
    reader = build_point_reader(config, (0.0, 0.0, -5.0, 8.0, 8.0, 3.0), 1).eval()
    batch = batch_of([point(3.5, 0.5, -1, 0.5, 2), point(3.5, 0.5, 1), point(3.5, 0.5, 0, 0.7, 2)])
    assert reader(batch).any()
    voxels = batch.cloud("painted").voxels(reader.spec)
    found = reader.network.features(voxels)[0]
    plain = mixed_means(voxels)[0]
    assert found[:21].tolist() == pytest.approx((2 * plain[:21]).tolist())
    # Shares of painted points and of points as measured have no unit.
    assert found[21:].tolist() == plain[21:].tolist() == pytest.approx([1 / 2, 1 / 3])


def test_readers_want_a_factor_for_each_number():
    with pytest.raises(ValidationError, match="`point_scales` must be 17 numbers for painted points, got 5"):
        PillarReaderConfig(painted=True, point_scales=(1.0,) * 5)
    with pytest.raises(ValidationError, match="`point_scales` must be 5 numbers for points, got 17"):
        VoxelReaderConfig(point_scales=(1.0,) * 17)


def test_paper_size_is_centerpoint_with_twelve_more_inputs():
    model = build(MvpConfig(), CLASSES)
    assert isinstance(model, CenterPoint)
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_982_854 + 12 * 64
    assert model.reader.pillars.linear.weight.shape == (64, 17 + 6)
    assert model.needs == DataNeeds(clouds=frozenset({"painted"}), sweeps=10)
    assert (model.cloud, model.spec.max_points, model.spec.max_voxels) == ("painted", None, None)
    names = [name for name in model.taps if not name.endswith("_preactivation")]
    assert names == ["bev_in", "pillars", "bev_block0", "bev_block1", "bev_block2", "bev_neck", "head"]
    assert model.reader.pillars.scales.tolist() == [1.0] * PAINTED_FEATURES == [1.0] * 17


def test_gradients_reach_every_parameter_from_painted_points_alone():
    torch.manual_seed(0)
    model = build(MvpConfig(**SMALL), CLASSES)
    generator = torch.Generator().manual_seed(1)
    tags = [1.0, 0.0, -1.0]
    batch = batch_of([point(0, 0, tags[i % 3], 0.1 + 0.1 * (i % 7), i % 10, 0.1 * (i % 2)) for i in range(80)])
    spread, low = torch.tensor([25.0, 12.0, 7.0]), torch.tensor([-12.5, -6.0, -4.0])
    batch.cloud("painted").points[:, :3] = torch.rand(80, 3, generator=generator) * spread + low
    outputs = model(batch, frozenset({"head"}))
    terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
    sum(term.value * term.weight for term in terms.values()).backward()
    named = list(model.named_parameters())
    assert len(named) > 30
    assert [name for name, parameter in named if parameter.grad is None or not parameter.grad.any()] == []
    # Each number of a point has a weight that learns.
    assert (model.reader.pillars.linear.weight.grad.abs().sum(dim=0) > 1e-6).all()


def test_the_wrong_number_of_scales_is_refused():
    with pytest.raises(ValidationError, match="must be 17 numbers, got 5"):
        MvpConfig(point_scales=(1.0,) * 5)


def test_specs_name_the_clouds_that_detectors_read():
    found = {}
    # One that comes finished is built from files of its own.
    built_here = {kind: spec for kind, spec in installed(DetectorSpec).found.items() if spec.finished is None}
    for kind, spec in built_here.items():
        config = spec.config()
        with torch.device("meta"):
            detector = load(spec.build)(config, CLASSES)
        found[kind] = set(spec.clouds(config))
        assert detector.needs.clouds == found[kind], kind
    assert {kind for kind in found if found[kind]} == {
        "centerpoint", "centerpoint_voxel", "lidarformer", "mvp", "lidar", "fusion",
    }  # fmt: skip
    assert found["mvp"] == {"painted"}
    assert len(found) >= 9
