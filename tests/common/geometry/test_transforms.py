import math

import pytest
import torch
from bevkd_common.errors import UserError
from bevkd_common.geometry.bev import cell_centers
from bevkd_common.geometry.grid import Grid
from bevkd_common.geometry.transforms import (
    check_rigid,
    inverse,
    inverse_rigid,
    lidar_T_sweep,
    quaternion_to_rotation,
    reflection,
    rigid,
    rotation_to_quaternion,
    rotation_z,
    scaling,
    transform_points,
    transform_vectors,
    wrap_angle,
    yaw_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1)
PROPERTY = settings(max_examples=25, deadline=None)
FLOAT64 = torch.float64


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=FLOAT64)


@pytest.mark.parametrize(
    ("angle", "wrapped"),
    [(0.0, 0.0), (math.pi, -math.pi), (-math.pi, -math.pi), (3.5, 3.5 - 2 * math.pi), (-4.0, 2 * math.pi - 4.0),
     (7.0, 7.0 - 2 * math.pi), (20.0, 20.0 - 6 * math.pi), (-20.0, 6 * math.pi - 20.0)],
)  # fmt: skip
def test_wrap_angle(angle, wrapped):
    torch.testing.assert_close(wrap_angle(vector(angle)), vector(wrapped))


@PROPERTY
@given(st.floats(-40, 40), st.sampled_from([torch.float32, torch.float64]))
def test_wrapped_angles_stay_in_range_and_point_the_same_way(value, dtype):
    angle = torch.tensor(value, dtype=dtype)
    wrapped = wrap_angle(angle)
    assert -math.pi <= wrapped < torch.tensor(math.pi, dtype=dtype) or wrapped == torch.tensor(
        -math.pi, dtype=dtype
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(wrapped.cos(), angle.cos(), atol=tolerance, rtol=0)
    torch.testing.assert_close(wrapped.sin(), angle.sin(), atol=tolerance, rtol=0)
    assert torch.equal(wrap_angle(wrapped), wrapped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wrapping_never_leaves_the_half_open_interval_next_to_its_ends(dtype):
    end = torch.tensor(math.pi, dtype=dtype)
    near = [end]
    for _ in range(4):
        near = [torch.nextafter(near[0], -2 * end), *near, torch.nextafter(near[-1], 2 * end)]
    angles = torch.stack(near)
    angles = torch.cat([k * 2 * math.pi + sign * angles for k in (-1, 0, 1) for sign in (-1, 1)])
    wrapped = wrap_angle(angles)
    assert (wrapped >= -end).all()
    assert (wrapped < end).all()


def test_rounding_of_large_angles_stays_in_the_interval():
    # In float32 the multiple of 2π that is taken off leaves π or more of these.
    angles = torch.tensor([-25380.927734375, -25374.64453125, -25368.361328125])
    end = torch.tensor(math.pi)
    assert (angles - 2 * math.pi * torch.floor((angles + math.pi) / (2 * math.pi)) >= end).all()
    assert ((wrap_angle(angles) >= -end) & (wrap_angle(angles) < end)).all()


def test_rotation_z_is_counter_clockwise():
    quarter = rotation_z(torch.tensor(math.pi / 2, dtype=FLOAT64))
    torch.testing.assert_close(quarter @ vector(1, 2, 3), vector(-2, 1, 3))
    assert rotation_z(torch.zeros(2, 5)).shape == (2, 5, 3, 3)
    torch.testing.assert_close(rotation_z(0.3), rotation_z(torch.tensor([0.3]))[0])


def test_rigid_puts_rotation_and_translation_in_their_places():
    rotation, translation = torch.arange(9.0).reshape(3, 3), torch.tensor([10.0, 11.0, 12.0])
    expected = [[0, 1, 2, 10], [3, 4, 5, 11], [6, 7, 8, 12], [0, 0, 0, 1]]
    assert rigid(rotation, translation).tolist() == expected
    batch = rigid(rotation, translation.double().expand(2, 5, 3))
    assert batch.shape == (2, 5, 4, 4)
    assert batch.dtype == FLOAT64
    assert batch[1, 4].tolist() == expected
    assert rigid(rotation.expand(6, 3, 3), translation)[5].tolist() == expected


def test_scaling_and_reflection():
    assert scaling(2.5).diagonal().tolist() == [2.5, 2.5, 2.5, 1.0]
    assert scaling(torch.tensor([2.0, 3.0])).shape == (2, 4, 4)
    assert reflection("x").tolist() == torch.diag(torch.tensor([-1.0, 1, 1, 1])).tolist()
    assert reflection("y").tolist() == torch.diag(torch.tensor([1.0, -1, 1, 1])).tolist()


def test_points_move_with_rotation_and_translation_and_vectors_with_rotation_alone():
    dst_T_src = rigid(rotation_z(torch.tensor(math.pi / 2, dtype=FLOAT64)), vector(10, 20, 30))
    torch.testing.assert_close(transform_points(dst_T_src, vector(1, 2, 3)), vector(8, 21, 33))
    torch.testing.assert_close(transform_vectors(dst_T_src, vector(1, 2, 3)), vector(-2, 1, 3))
    torch.testing.assert_close(transform_vectors(dst_T_src[:3, :3], vector(1, 2, 3)), vector(-2, 1, 3))


def test_transform_points_equals_the_homogeneous_product():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.rand(2, 3, 4, 4, dtype=FLOAT64, generator=generator)
    matrices[..., 3, :] = vector(0, 0, 0, 1)
    points = torch.rand(2, 1, 7, 3, dtype=FLOAT64, generator=generator)
    homogeneous = torch.nn.functional.pad(points, (0, 1), value=1.0)
    expected = torch.einsum("bnij,bmpj->bnpi", matrices, homogeneous)[..., :3]
    moved = transform_points(matrices, points)
    assert moved.shape == (2, 3, 7, 3)
    torch.testing.assert_close(moved, expected)
    one = matrices[0, 0]
    torch.testing.assert_close(transform_points(one, points)[1, 0], points[1, 0] @ one[:3, :3].T + one[:3, 3])


def test_points_keep_their_dtype_and_are_moved_in_the_wider_one():
    # In float32 the pose's 2e6 m could not carry the millimetre.
    dst_T_src = rigid(torch.eye(3, dtype=FLOAT64), vector(2e6 + 0.001, 0, 0))
    src_T_far = rigid(torch.eye(3, dtype=FLOAT64), vector(-2e6, 0, 0))
    points = torch.tensor([[1.0, 2.0, 3.0]])
    moved = transform_points(dst_T_src @ src_T_far, points)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, torch.tensor([[1.001, 2.0, 3.0]]), atol=1e-6, rtol=0)


def test_points_are_not_rounded_under_autocast():
    dst_T_src = rigid(rotation_z(0.5), torch.tensor([1.0, 2.0, 3.0]))
    points = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) * 50
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moved = transform_points(dst_T_src, points)
    assert torch.equal(moved, transform_points(dst_T_src, points))


@PROPERTY
@given(seeds)
def test_inverses_undo(random_rigid, seed):
    dst_T_src = torch.stack([random_rigid(seed, 1.0, 30.0), random_rigid(seed + 1, 1.0, 30.0)])
    identity = torch.eye(4, dtype=FLOAT64).expand(2, 4, 4)
    torch.testing.assert_close(inverse_rigid(dst_T_src) @ dst_T_src, identity, atol=1e-12, rtol=0)
    torch.testing.assert_close(inverse_rigid(dst_T_src), inverse(dst_T_src), atol=1e-11, rtol=0)
    augmented = dst_T_src @ scaling(torch.tensor(1.7, dtype=FLOAT64)) @ reflection("y").double()
    torch.testing.assert_close(inverse(augmented) @ augmented, identity, atol=1e-11, rtol=0)


@PROPERTY
@given(st.floats(-math.pi, math.pi, exclude_max=True))
def test_yaw_of_a_rotation_about_z_is_its_angle(angle):
    torch.testing.assert_close(yaw_of(rotation_z(vector(angle))), wrap_angle(vector(angle)), atol=1e-12, rtol=0)


def test_yaw_of_a_tilted_rotation_is_where_the_x_axis_points():
    # Pitch by 60 degrees about y, then turn by 30 about z: the x axis stays over the 30 degree line.
    pitch = torch.tensor([[0.5, 0, 0.75**0.5], [0, 1, 0], [-(0.75**0.5), 0, 0.5]], dtype=FLOAT64)
    torch.testing.assert_close(yaw_of(rotation_z(vector(math.pi / 6)) @ pitch), vector(math.pi / 6))


@pytest.mark.parametrize(
    ("wxyz", "rotation"),
    [
        ((1.0, 0, 0, 0), [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ((1.0, 1, 0, 0), [[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
        ((1.0, 0, 1, 0), [[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]),
        ((1.0, 0, 0, 1), [[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]),
        ((0.0, 1, 0, 0), [[1.0, 0, 0], [0, -1, 0], [0, 0, -1]]),
        ((0.0, 0, 1, 0), [[-1.0, 0, 0], [0, 1, 0], [0, 0, -1]]),
        ((0.0, 0, 0, 1), [[-1.0, 0, 0], [0, -1, 0], [0, 0, 1]]),
        ((1.0, 1, 1, 1), [[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    ],
)
def test_quaternions_by_hand(wxyz, rotation):
    expected = torch.tensor(rotation, dtype=FLOAT64)
    torch.testing.assert_close(quaternion_to_rotation(vector(*wxyz)), expected)
    unit = vector(*wxyz) / vector(*wxyz).norm()
    torch.testing.assert_close(rotation_to_quaternion(expected), unit)


def test_quaternion_about_z_is_cos_and_sin_of_half_the_angle():
    quaternion = rotation_to_quaternion(rotation_z(vector(0.8)))
    torch.testing.assert_close(quaternion, vector(math.cos(0.4), 0, 0, math.sin(0.4))[None])


def test_the_lidar_mount_of_nuscenes_is_turned_by_nearly_ninety_degrees():
    rotation = quaternion_to_rotation(vector(0.7078, -0.0065, 0.0106, -0.7063))
    assert math.degrees(yaw_of(rotation)) == pytest.approx(-89.88, abs=0.01)


@PROPERTY
@given(seeds)
def test_quaternions_round_trip(seed):
    quaternions = torch.randn(64, 4, dtype=FLOAT64, generator=torch.Generator().manual_seed(seed))
    rotations = quaternion_to_rotation(quaternions)
    check_rigid(rigid(rotations, quaternions[:, :3]), "a random rotation")
    back = rotation_to_quaternion(rotations)
    assert (back[:, 0] >= 0).all()
    unit = quaternions / quaternions.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(back, unit * unit[:, :1].sign(), atol=1e-12, rtol=0)
    assert torch.equal(rotation_to_quaternion(rotations.reshape(8, 8, 3, 3)), back.reshape(8, 8, 4))


@pytest.mark.parametrize("axis", range(3))
def test_quaternions_of_half_turns_are_accurate(axis):
    # The scalar part is nearly zero there: dividing by it would lose half of the digits.
    quaternion = torch.zeros(4, dtype=FLOAT64)
    quaternion[0], quaternion[1 + axis], quaternion[1 + (axis + 1) % 3] = 1e-9, 1.0, 1e-9
    back = rotation_to_quaternion(quaternion_to_rotation(quaternion))
    torch.testing.assert_close(back, quaternion, atol=1e-15, rtol=0)


def test_a_sweep_is_turned_and_then_moved():
    # Between sweep and key frame the axes turn by 90 degrees and move by 10 m; (0, -9, 0) would be the
    # translation turned with the point.
    identity = torch.eye(4, dtype=FLOAT64)
    global_T_ego_src = rigid(rotation_z(torch.tensor(math.pi / 2, dtype=FLOAT64)), vector(10, 0, 0))
    lidar_T_src = lidar_T_sweep(identity, identity, global_T_ego_src, identity)
    torch.testing.assert_close(transform_points(lidar_T_src, vector(1, 0, 0)), vector(10, 1, 0))


@PROPERTY
@given(seeds)
def test_a_sweep_lands_where_its_points_are_in_the_world(random_rigid, seed):
    ego_T_lidar_key, ego_T_src = random_rigid(seed, 0.3, 2.0), random_rigid(seed + 1, 1.0, 2.0)
    global_T_ego_key, global_T_ego_src = random_rigid(seed + 2, 0.1, 2000.0), random_rigid(seed + 3, 0.1, 2000.0)
    point = vector(3, -4, 5)
    in_world = transform_points(global_T_ego_src @ ego_T_src, point)
    lidar_T_src = lidar_T_sweep(ego_T_lidar_key, global_T_ego_key, global_T_ego_src, ego_T_src)
    seen_again = transform_points(global_T_ego_key @ ego_T_lidar_key @ lidar_T_src, point)
    torch.testing.assert_close(seen_again, in_world, atol=1e-8, rtol=0)


def test_the_chain_of_a_sweep_runs_in_float64_and_keeps_the_callers_dtype():
    mount = rigid(rotation_z(torch.tensor(-1.57, dtype=FLOAT64)), vector(0.94, 0, 1.84))
    key = rigid(rotation_z(torch.tensor(0.1, dtype=FLOAT64)), vector(1500.25, 900.5, 0))
    past = rigid(rotation_z(torch.tensor(0.1, dtype=FLOAT64)), vector(1500.75, 900.5, 0))
    exact = lidar_T_sweep(mount, key, past, mount)
    rounded = lidar_T_sweep(mount.float(), key, past, mount)
    assert exact.dtype == FLOAT64
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), exact, atol=1e-6, rtol=0)


def test_a_static_object_moves_two_cells_back_when_the_ego_moves_two_cells_forward():
    grid = Grid(x0=-51.2, y0=-51.2, cell=0.8, nx=128, ny=128)
    mount = rigid(rotation_z(torch.tensor(-math.pi / 2, dtype=FLOAT64)), vector(0.94, 0, 1.84))
    ego_past = torch.eye(4, dtype=FLOAT64)
    ego_now = rigid(torch.eye(3, dtype=FLOAT64), vector(1.6, 0, 0))
    centers = torch.nn.functional.pad(cell_centers(grid, dtype=FLOAT64), (0, 1))
    moved = transform_points(lidar_T_sweep(mount, ego_now, ego_past, mount), centers[77, 64])
    torch.testing.assert_close(moved, centers[75, 64], atol=1e-12, rtol=0)


def test_a_rigid_matrix_passes_the_check(random_rigid):
    check_rigid(random_rigid(1, 1.0, 1000.0), "the mount")
    check_rigid(torch.stack([random_rigid(seed, 1.0, 1.0) for seed in range(3)]).float(), "three mounts")


def faulty(row: int, column: int, value: float) -> torch.Tensor:
    matrix = torch.eye(4, dtype=FLOAT64)
    matrix[row, column] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.eye(3), "shape"),
        (torch.eye(4)[:3], "shape"),
        (faulty(0, 1, math.nan), "not finite"),
        (faulty(2, 3, math.inf), "not finite"),
        (faulty(3, 0, 0.5), "bottom row"),
        (faulty(3, 3, 2.0), "bottom row"),
        (faulty(0, 1, 3e-4), "orthonormal"),
        (faulty(1, 1, 1.0 - 1e-4), "orthonormal"),
        (faulty(1, 1, -1.0), "mirrors"),
        (-torch.diag(vector(1, 1, 1, -1)), "mirrors"),
    ],
)
def test_what_is_not_rigid_is_named(matrix, message):
    with pytest.raises(UserError, match=rf"(?s)^lidar mount of scene 7 .*{message}"):
        check_rigid(matrix, "lidar mount of scene 7")


def test_one_bad_matrix_in_a_batch_is_found():
    with pytest.raises(UserError, match="mirrors"):
        check_rigid(torch.stack([torch.eye(4), reflection("x"), torch.eye(4)]), "mounts")


def test_rounding_of_a_calibration_file_passes_the_check():
    check_rigid(faulty(0, 1, 3e-5), "a mount with six digits")
