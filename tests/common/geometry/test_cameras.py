import dataclasses
import math

import numpy as np
import pytest
import torch
from bevkd_common.errors import UserError
from bevkd_common.geometry.cameras import ImageAug, apply_image_aug, check_intrinsics, frustum, lift, project
from bevkd_common.geometry.grid import DepthBins
from bevkd_common.geometry.transforms import inverse, reflection, rigid, scaling
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

PROPERTY = settings(max_examples=20, deadline=None)
FLOAT64 = torch.float64
INTRINSICS = torch.tensor([[1250, 0, 800], [0, 1250, 450], [0, 0, 1]], dtype=FLOAT64)
# A camera that looks along the LiDAR's y axis, 0.7 m in front of it and 0.3 m below.
LIDAR_T_CAM = rigid(
    torch.tensor([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=FLOAT64),
    torch.tensor([0, 0.7, -0.3], dtype=FLOAT64),
)
TEST_AUG = ImageAug(scale=0.48, crop_left=32, crop_top=176, flip=False, rotation=0.0, output_size=(256, 704))
BINS = DepthBins(1.0, 60.0, 1.0)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=FLOAT64)


def lift_one(points_uvd: torch.Tensor, aug: torch.Tensor, lidar_T_cam: torch.Tensor = LIDAR_T_CAM) -> torch.Tensor:
    """Lift [D, H', W', 3] with a single camera."""
    return lift(points_uvd, INTRINSICS[None, None], lidar_T_cam[None, None], aug[None, None])[0, 0]


def test_frustum_spans_the_image_from_the_first_pixel_to_the_last():
    points = frustum((256, 704), 16, BINS)
    assert points.shape == (59, 16, 44, 3)
    assert points.dtype == torch.float32
    torch.testing.assert_close(points[9, 8, 22].double(), vector(22 * 703 / 43, 136, 10), atol=1e-4, rtol=0)
    assert points[0, 0, 0].tolist() == [0, 0, 1]
    assert points[-1, -1, -1].tolist() == [703, 255, 59]
    assert points[0, 0, :, 0].unique().numel() == 44
    assert points[0, :, 0, 1].unique().numel() == 16


def test_depths_of_the_frustum_are_the_lower_borders_of_the_bins():
    depth = frustum((32, 32), 16, DepthBins(2.0, 58.0, 0.5))[:, 0, 0, 2]
    assert depth.tolist() == [2 + 0.5 * k for k in range(112)]


@pytest.mark.parametrize("size", [(250, 704), (256, 700)], ids=str)
def test_an_image_of_broken_cells_is_refused(size):
    with pytest.raises(ValueError, match="whole number of cells"):
        frustum(size, 16, BINS)


@pytest.mark.parametrize(
    ("aug", "expected"),
    [
        (TEST_AUG, (0.12791, 10.7, -1.9)),
        (dataclasses.replace(TEST_AUG, scale=0.44, crop_left=0, crop_top=140), (0.13953, 10.7, -1.71818)),
    ],
    ids=["BEVDet", "BEVDepth"],
)
def test_lifting_one_cell_by_hand(aug, expected):
    points = lift_one(frustum((256, 704), 16, BINS), aug.matrix(FLOAT64))
    assert points.shape == (59, 16, 44, 3)
    assert points.dtype == torch.float32
    torch.testing.assert_close(points[9, 8, 22].double(), vector(*expected), atol=2e-5, rtol=0)


def test_every_camera_has_its_own_matrices():
    generator = torch.Generator().manual_seed(0)
    shift = torch.eye(4, dtype=FLOAT64).repeat(2, 3, 1, 1)
    shift[..., :3, 3] = torch.rand(2, 3, 3, dtype=FLOAT64, generator=generator)
    lidar_T_cam = shift @ LIDAR_T_CAM
    intrinsics = INTRINSICS.repeat(2, 3, 1, 1) * torch.rand(2, 3, 1, 1, dtype=FLOAT64, generator=generator)
    intrinsics[..., 2, 2] = 1
    aug = torch.stack([dataclasses.replace(TEST_AUG, crop_left=c).matrix(FLOAT64) for c in range(6)])
    aug = aug.reshape(2, 3, 3, 3)
    points = frustum((32, 48), 16, BINS).double()
    lifted = lift(points, intrinsics, lidar_T_cam, aug)
    assert lifted.shape == (2, 3, 59, 2, 3, 3)
    for b in range(2):
        for n in range(3):
            alone = lift(points, intrinsics[b, n][None, None], lidar_T_cam[b, n][None, None], aug[b, n][None, None])
            torch.testing.assert_close(lifted[b, n], alone[0, 0])


def test_lifting_is_not_rounded_under_autocast():
    points, aug = frustum((64, 96), 16, BINS), TEST_AUG.matrix()
    matrices = INTRINSICS.float()[None, None], LIDAR_T_CAM.float()[None, None], aug[None, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lifted = lift(points, *matrices)
    assert lifted.dtype == torch.float32
    assert torch.equal(lifted, lift(points, *matrices))


augmentations = st.builds(
    ImageAug,
    scale=st.sampled_from([k / 100 for k in range(39, 56)]),  # whole pixels of 1600 x 900
    crop_left=st.integers(0, 60),
    crop_top=st.integers(0, 200),
    flip=st.booleans(),
    rotation=st.floats(-0.1, 0.1),
    output_size=st.just((256, 704)),
)


@PROPERTY
@given(augmentations, st.integers(0, 2**32 - 1))
def test_projecting_the_lifted_frustum_gives_it_back(random_rigid, aug, seed):
    # With an augmentation of the bird's-eye view the camera matrix scales and mirrors.
    augmented_T_lidar = random_rigid(seed, 0.0, 1.0) @ scaling(torch.tensor(1.05, dtype=FLOAT64))
    augmented_T_lidar = augmented_T_lidar @ reflection("x").double()
    lidar_T_cam = augmented_T_lidar @ LIDAR_T_CAM
    points = frustum((64, 96), 16, BINS).double()
    lifted = lift_one(points, aug.matrix(FLOAT64), lidar_T_cam)
    pixels, depth = project(lifted.flatten(0, 2), INTRINSICS, inverse(lidar_T_cam), aug.matrix(FLOAT64))
    torch.testing.assert_close(pixels, points[..., :2].flatten(0, 2), atol=1e-8, rtol=0)
    torch.testing.assert_close(depth, points[..., 2].flatten(), atol=1e-10, rtol=0)


def test_projection_by_hand():
    # 10 m ahead of the camera, 2 m to the right, 1 m down.
    points = vector(2, 10.7, -1.3)[None]
    pixels, depth = project(points, INTRINSICS, inverse(LIDAR_T_CAM))
    assert depth.tolist() == pytest.approx([10])
    torch.testing.assert_close(pixels, vector(800 + 250, 450 + 125)[None])
    augmented, _ = project(points, INTRINSICS, inverse(LIDAR_T_CAM), TEST_AUG.matrix(FLOAT64))
    torch.testing.assert_close(augmented, vector(0.48 * 1050 - 32, 0.48 * 575 - 176)[None])


def test_points_behind_the_camera_have_negative_depth():
    _, depth = project(vector(0, -9.3, -0.3)[None], INTRINSICS, inverse(LIDAR_T_CAM))
    assert depth.tolist() == pytest.approx([-10])


def test_one_cloud_projects_into_many_cameras():
    cam_T_lidar = torch.stack([inverse(LIDAR_T_CAM), torch.eye(4, dtype=FLOAT64)]).repeat(3, 1, 1, 1)
    points = torch.rand(3, 1, 7, 3, dtype=FLOAT64, generator=torch.Generator().manual_seed(0)) + 1
    pixels, depth = project(points, INTRINSICS.expand(3, 2, 3, 3), cam_T_lidar)
    assert pixels.shape == (3, 2, 7, 2)
    assert depth.shape == (3, 2, 7)
    torch.testing.assert_close(depth[:, 1], points[:, 0, :, 2])


def test_matrix_of_resize_and_crop():
    assert TEST_AUG.matrix(FLOAT64).tolist() == [[0.48, 0, -32], [0, 0.48, -176], [0, 0, 1]]
    assert TEST_AUG.matrix().dtype == torch.float32


def test_a_mirror_exchanges_the_edges_of_the_image():
    # u = 0 in the crop, pixel 32 / 0.48 of the source, becomes the right edge.
    aug = dataclasses.replace(TEST_AUG, flip=True)
    expected = torch.tensor([[-0.48, 0, 704 + 32], [0, 0.48, -176], [0, 0, 1]], dtype=FLOAT64)
    torch.testing.assert_close(aug.matrix(FLOAT64), expected)


def test_a_rotation_is_counter_clockwise_about_the_center():
    aug = ImageAug(1.0, 0, 0, False, math.pi / 2, (100, 300))
    center, right_of_it = vector(150, 50, 1), vector(160, 50, 1)
    torch.testing.assert_close(aug.matrix(FLOAT64) @ center, center)
    torch.testing.assert_close(aug.matrix(FLOAT64) @ right_of_it, vector(150, 40, 1))


def test_the_mirror_comes_before_the_rotation():
    aug = ImageAug(0.5, 10, 20, True, 0.1, (100, 300))
    cos, sin = math.cos(0.1), math.sin(0.1)
    u, v = 300 - (0.5 * 400 - 10) - 150, 0.5 * 220 - 20 - 50
    expected = vector(cos * u + sin * v + 150, -sin * u + cos * v + 50, 1)
    torch.testing.assert_close(aug.matrix(FLOAT64) @ vector(400, 220, 1), expected)


@settings(max_examples=60, deadline=None)
@given(augmentations, st.integers(250, 1350), st.integers(550, 800))
def test_a_bright_spot_moves_as_the_matrix_says(aug, u, v):
    spot = vector(u, v, 1)
    expected = (aug.matrix(FLOAT64) @ spot)[:2]
    for place in (expected, (dataclasses.replace(aug, rotation=0.0).matrix(FLOAT64) @ spot)[:2]):
        assume(((place - vector(352, 128)).abs() < vector(342, 118)).all())  # not cut by crop or rotation
    image = np.zeros((900, 1600, 3), dtype=np.uint8)
    image[v - 6 : v + 6, u - 6 : u + 6] = 255  # its centre is the corner (u, v) of a pixel
    moved = np.asarray(apply_image_aug(image, aug), dtype=np.float64)[..., 0]
    assert moved.shape == (256, 704)
    rows, columns = np.mgrid[:256, :704] + 0.5
    center = np.array([(moved * columns).sum(), (moved * rows).sum()]) / moved.sum()
    assert np.abs(center - expected.numpy()).max() < 0.75


@pytest.mark.parametrize("make", [Image.fromarray, lambda array: array], ids=["PIL", "NumPy"])
def test_the_test_time_image_is_resized_and_cropped(make):
    ramp = np.broadcast_to(np.arange(1600)[None, :, None] // 8, (900, 1600, 3)).astype(np.uint8)
    image = apply_image_aug(make(ramp), TEST_AUG)
    assert isinstance(image, Image.Image)
    assert image.size == (704, 256)
    columns = np.asarray(image)[0, :, 0]
    # Column j of the crop shows source pixel (j + 32.5) / 0.48, which has the value of an eighth of that.
    expected = (np.arange(704) + 32.5) / 0.48 / 8
    assert np.abs(columns - expected).max() < 1.0


def test_resizing_blends_neighbours():
    checker = np.zeros((4, 4, 3), dtype=np.uint8)
    checker[::2, ::2] = checker[1::2, 1::2] = 200
    shrunk = apply_image_aug(checker, ImageAug(0.5, 0, 0, False, 0.0, (2, 2)))
    assert np.asarray(shrunk).min() > 60
    assert np.asarray(shrunk).max() < 140


def test_a_rotation_takes_the_nearest_pixel_and_fills_black():
    white = np.full((100, 300, 3), 255, dtype=np.uint8)
    turned = np.asarray(apply_image_aug(white, ImageAug(1.0, 0, 0, False, 0.09, (100, 300))))
    assert set(np.unique(turned)) == {0, 255}
    assert turned[0, 0].tolist() == [0, 0, 0]


def test_a_crop_past_the_border_is_black():
    white = np.full((10, 10, 3), 255, dtype=np.uint8)
    cropped = np.asarray(apply_image_aug(white, ImageAug(1.0, 5, 5, False, 0.0, (10, 10))))
    assert (cropped[:5, :5] == 255).all()
    assert (cropped[5:] == 0).all()
    assert (cropped[:, 5:] == 0).all()


def test_intrinsics_pass_the_check():
    check_intrinsics(INTRINSICS, "CAM_FRONT")
    skewed = INTRINSICS.clone()
    skewed[0, 1] = 0.5
    check_intrinsics(torch.stack([INTRINSICS, skewed]), "two cameras")


def changed(row: int, column: int, value: float) -> torch.Tensor:
    matrix = INTRINSICS.clone()
    matrix[row, column] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.eye(4), "shape"),
        (INTRINSICS[:2], "shape"),
        (changed(0, 2, math.nan), "not finite"),
        (INTRINSICS.T, "transposed"),
        (changed(1, 0, 1e-3), "transposed"),
        (changed(2, 1, 1e-3), "transposed"),
        (changed(2, 2, 2.0), "transposed"),
        (changed(2, 2, 0.0), "transposed"),
        (changed(0, 0, 0.0), "focal length"),
        (changed(1, 1, 0.0), "focal length"),
        (changed(1, 1, -1250.0), "focal length"),
        (torch.stack([INTRINSICS, changed(2, 2, 2.0)]), "transposed"),
        (torch.stack([INTRINSICS, changed(0, 0, -1.0)]), "focal length"),
    ],
)
def test_what_is_no_pinhole_camera_is_named(matrix, message):
    with pytest.raises(UserError, match=rf"^K of CAM_BACK .*{message}"):
        check_intrinsics(matrix, "K of CAM_BACK")
