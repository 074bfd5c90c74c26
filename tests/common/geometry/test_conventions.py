import math

import pytest
import torch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.conventions import (
    CONVENTIONS,
    DevkitBoxes,
    KittiBoxes,
    from_devkit,
    from_mmdet3d,
    from_mmdet3d_info,
    from_mmdet3d_old,
    from_mmdet3d_old_info,
    kitti_T_nuscenes,
    opposite_yaw,
    to_det3d,
    to_devkit,
    to_ego,
    to_kitti,
    to_mmdet3d,
    to_mmdet3d_camera,
    to_mmdet3d_info,
    to_mmdet3d_old,
    to_mmdet3d_old_info,
)
from bevkd_common.geometry.transforms import quaternion_to_rotation, rigid, rotation_z, transform_points, yaw_of
from hypothesis import given, settings
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1)
PROPERTY = settings(max_examples=15, deadline=None)
FLOAT64 = torch.float64
# The camera of KITTI without any offset: x right = -y, y down = -z, z forward = x.
CAM_T_VELO = rigid(torch.tensor([[0, -1, 0], [0, 0, -1], [1, 0, 0]], dtype=FLOAT64), torch.zeros(3, dtype=FLOAT64))


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=FLOAT64)


def assert_values(tensor: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(tensor, vector(*expected)[None])


@pytest.fixture
def box() -> Boxes:
    """Length 4, width 2, height 1.5; bottom at -1; heading 30 degrees."""
    return Boxes(vector(10, 5, -0.25, 4, 2, 1.5, math.radians(30), 3, 7)[None])


def test_every_convention_is_listed():
    assert set(CONVENTIONS) == {
        "mmdet3d", "mmdet3d_info", "mmdet3d_old", "mmdet3d_old_info", "det3d", "ego", "devkit", "kitti",
        "mmdet3d_camera",
    }  # fmt: skip
    assert len(CONVENTIONS) == 9
    assert {name: row.frame for name, row in CONVENTIONS.items() if row.frame} == {
        "ego": "ego_T_lidar", "devkit": "global_T_lidar", "kitti": "cam_T_velo"
    }  # fmt: skip
    assert {name for name, row in CONVENTIONS.items() if not row.has_velocity} == {"kitti", "mmdet3d_camera"}


@pytest.mark.parametrize("name", CONVENTIONS)
@PROPERTY
@given(seed=seeds)
def test_round_trip(random_boxes, random_rigid, name, seed):
    row, boxes = CONVENTIONS[name], random_boxes(seed, 6)
    frames = {
        "ego_T_lidar": random_rigid(seed, 0.0, 2.0),
        "global_T_lidar": random_rigid(seed, 0.3, 2000.0),
        "cam_T_velo": CAM_T_VELO @ random_rigid(seed, 0.1, 1.0),
    }
    matrix = {row.frame: frames[row.frame]} if row.frame else {}
    back = row.load(row.export(boxes, **matrix), **matrix)
    expected = boxes
    if not row.has_velocity:
        expected = Boxes.from_parts(boxes.centers, boxes.size, boxes.yaw)
    torch.testing.assert_close(back.tensor, expected.tensor, atol=1e-9, rtol=0, equal_nan=True)


@pytest.mark.parametrize("name", [name for name, row in CONVENTIONS.items() if row.frame is None])
def test_batches_are_converted_like_their_parts(random_boxes, name):
    row, boxes = CONVENTIONS[name], random_boxes(1, 6)
    batched = row.export(Boxes(boxes.tensor.reshape(2, 3, 9)))
    assert torch.equal(batched, row.export(boxes).reshape(2, 3, -1))
    loaded = row.load(batched).tensor.reshape(6, 9)
    torch.testing.assert_close(loaded, row.load(row.export(boxes)).tensor, equal_nan=True)


def test_the_tilt_of_a_mount_stays_of_second_order(random_boxes, random_rigid):
    boxes = random_boxes(1, 50)
    ego_T_lidar = random_rigid(1, math.radians(2), 2.0)
    row = CONVENTIONS["ego"]
    back = row.load(row.export(boxes, ego_T_lidar), ego_T_lidar)
    torch.testing.assert_close(back.centers, boxes.centers, atol=1e-10, rtol=0)
    assert (back.yaw - boxes.yaw).abs().max() < math.radians(2) ** 2
    assert (back.velocity - boxes.velocity).abs().max() < 15 * math.radians(2) ** 2


def test_mmdet3d(box):
    assert_values(to_mmdet3d(box), 10, 5, -1, 4, 2, 1.5, math.radians(30), 3, 7)
    assert_values(to_mmdet3d_info(box), 10, 5, -0.25, 4, 2, 1.5, math.radians(30), 3, 7)


def test_mmdet3d_before_1_0(box):
    assert_values(to_mmdet3d_old(box), 10, 5, -1, 2, 4, 1.5, math.radians(-120), 3, 7)
    assert_values(to_mmdet3d_old_info(box), 10, 5, -0.25, 2, 4, 1.5, math.radians(-120), 3, 7)


def test_det3d(box):
    assert_values(to_det3d(box), 10, 5, -0.25, 2, 4, 1.5, 3, 7, math.radians(-120))


@pytest.mark.parametrize(
    "load", [from_mmdet3d, from_mmdet3d_info, from_mmdet3d_old, from_mmdet3d_old_info], ids=lambda f: f.__name__
)
def test_seven_columns_have_no_velocity(random_boxes, load):
    tensor = random_boxes(1, 4).tensor
    with_velocity, without = load(tensor), load(tensor[:, :7])
    assert torch.equal(without.tensor[:, :7], with_velocity.tensor[:, :7])
    assert without.velocity.isnan().all()
    assert torch.equal(with_velocity.velocity, tensor[:, 7:])


@pytest.mark.parametrize("degrees", [(0, -90), (30, -120), (90, -180), (180, 90), (-120, 30)], ids=str)
def test_opposite_yaw_by_hand(degrees):
    ours, theirs = vector(*degrees).deg2rad()
    torch.testing.assert_close(opposite_yaw(ours), theirs)
    torch.testing.assert_close(opposite_yaw(theirs).cos(), ours.cos())
    torch.testing.assert_close(opposite_yaw(theirs).sin(), ours.sin(), atol=1e-15, rtol=0)
    # What a head trained on the old convention regresses as (sin, cos) is -cos, -sin of ours.
    torch.testing.assert_close(theirs.sin(), -ours.cos(), atol=1e-15, rtol=0)
    torch.testing.assert_close(theirs.cos(), -ours.sin(), atol=1e-15, rtol=0)


def test_ego(box):
    # The LiDAR's y axis is the ego's x axis, 0.94 m in front of its origin and 1.84 m above.
    ego_T_lidar = rigid(rotation_z(vector(-math.pi / 2))[0], vector(0.94, 0, 1.84))
    assert_values(to_ego(box, ego_T_lidar), 5.94, -10, 1.59, 4, 2, 1.5, math.radians(-60), 7, -3)


def test_devkit_in_a_flat_world(box):
    global_T_lidar = rigid(rotation_z(vector(math.pi / 2))[0], vector(1000, 2000, 3))
    devkit = to_devkit(box.to(torch.float32), global_T_lidar)
    assert_values(devkit.translation, 995, 2010, 2.75)
    assert_values(devkit.size, 2, 4, 1.5)
    half = math.radians(60)
    torch.testing.assert_close(
        devkit.rotation, vector(math.cos(half), 0, 0, math.sin(half))[None], atol=1e-7, rtol=0
    )
    assert_values(devkit.velocity, -7, 3, 0)
    assert {tensor.dtype for tensor in vars(devkit).values()} == {FLOAT64}


@PROPERTY
@given(seeds)
def test_devkit_boxes_have_the_corners_of_ours(random_boxes, random_rigid, seed):
    boxes, global_T_lidar = random_boxes(seed, 4), random_rigid(seed, 0.5, 100.0)
    devkit = to_devkit(boxes, global_T_lidar)
    signs = torch.tensor([[a, b, c] for c in (-1, 1) for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))])
    local = signs[None] * devkit.size[:, None, [1, 0, 2]] / 2
    corners = transform_points(rigid(quaternion_to_rotation(devkit.rotation), devkit.translation), local)
    torch.testing.assert_close(corners, transform_points(global_T_lidar, boxes.corners()), atol=1e-9, rtol=0)


def test_devkit_agrees_with_the_devkit(random_boxes, random_rigid):
    data_classes = pytest.importorskip("nuscenes.utils.data_classes")
    quaternion = pytest.importorskip("pyquaternion").Quaternion
    boxes = random_boxes(3, 5)
    lidar_T_ego, ego_T_global = random_rigid(4, 0.03, 2.0), random_rigid(5, 0.03, 500.0)
    global_T_lidar = torch.linalg.inv(lidar_T_ego @ ego_T_global)
    devkit = to_devkit(boxes, global_T_lidar)
    for i in range(5):
        theirs = data_classes.Box(
            devkit.translation[i].tolist(), devkit.size[i].tolist(), quaternion(devkit.rotation[i].tolist()),
            velocity=tuple(devkit.velocity[i].tolist()),
        )  # fmt: skip
        for matrix in (ego_T_global.numpy(), lidar_T_ego.numpy()):
            theirs.rotate(quaternion(matrix=matrix[:3, :3], rtol=1e-9, atol=1e-9))
            theirs.translate(matrix[:3, 3])
        assert theirs.center == pytest.approx(boxes.centers[i].numpy(), abs=1e-9)
        assert theirs.wlh == pytest.approx(boxes.size[i, [1, 0, 2]].numpy())
        assert theirs.velocity == pytest.approx([*boxes.velocity[i].tolist(), 0.0], abs=1e-9)
        assert theirs.orientation.yaw_pitch_roll[0] == pytest.approx(boxes.yaw[i].item(), abs=1e-9)


def test_from_devkit_sees_an_upright_box_from_a_tilted_sensor(random_rigid):
    global_T_lidar = random_rigid(8, 0.1, 100.0)
    heading = rotation_z(vector(0.7))
    devkit = DevkitBoxes(
        translation=vector(1, 2, 3)[None], size=vector(2, 4, 1.5)[None],
        rotation=vector(math.cos(0.35), 0, 0, math.sin(0.35))[None],
        velocity=torch.full((1, 3), math.nan, dtype=FLOAT64),
    )  # fmt: skip
    boxes = from_devkit(devkit, global_T_lidar)
    torch.testing.assert_close(boxes.yaw, yaw_of(global_T_lidar[:3, :3].T @ heading))
    assert boxes.velocity.isnan().all()
    assert boxes.size.tolist() == [[4, 2, 1.5]]


def test_kitti(box):
    kitti = to_kitti(box, CAM_T_VELO)
    assert_values(kitti.dimensions, 1.5, 2, 4)
    assert_values(kitti.location, -5, 1, 10)
    torch.testing.assert_close(kitti.rotation_y, vector(-120).deg2rad())
    shifted = CAM_T_VELO.clone()
    shifted[:3, 3] = vector(0.06, -0.08, -0.27)
    assert_values(to_kitti(box, shifted).location, -4.94, 0.92, 9.73)


def test_a_kitti_label_by_hand():
    # A car 10 m ahead that drives to the right (+x of the camera), its bottom 1.65 m under the camera.
    kitti = KittiBoxes(
        dimensions=vector(1.5, 1.6, 4)[None], location=vector(0, 1.65, 10)[None], rotation_y=vector(0.0)
    )
    boxes = CONVENTIONS["kitti"].load(kitti, CAM_T_VELO)
    torch.testing.assert_close(
        boxes.tensor, vector(10, 0, -0.9, 4, 1.6, 1.5, -math.pi / 2, math.nan, math.nan)[None], equal_nan=True
    )


def test_nuscenes_axes_become_velodyne_axes(box):
    # x' = y, y' = -x, and yaw loses 90 degrees; rotation_y is then minus the yaw in nuScenes axes.
    turned = box.transform(kitti_T_nuscenes())
    assert_values(turned.tensor, 5, -10, -0.25, 4, 2, 1.5, math.radians(-60), 7, -3)
    torch.testing.assert_close(to_kitti(turned, CAM_T_VELO).rotation_y, -box.yaw)


def test_mmdet3d_camera(box):
    assert_values(to_mmdet3d_camera(box), -5, 1, 10, 4, 1.5, 2, math.radians(-120))
