import math

import pytest
import torch
from bevkd_common.data.samples import Cameras
from bevkd_common.geometry.grid import DepthBins, Grid
from bevkd_common.geometry.transforms import reflection, rigid, rotation_z
from bevkd_common.models.depth_nets import JointDepthNet
from bevkd_common.models.lift_splat import LiftSplat
from bevkd_common.ops.bev_pool import IndexMode
from torch import Tensor

# Camera axes (x right, y down, z forward) to LiDAR axes (x right, y forward, z up).
FRONT = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
PLAIN = torch.eye(4)  # without augmentation
CENTERED = Grid(x0=-16.0, y0=-16.0, cell=0.5, nx=64, ny=64)


def released(**options: IndexMode) -> LiftSplat:
    """BEVDet-R50's view transformer, with one input channel and one context channel."""
    return LiftSplat(
        depth_net=JointDepthNet(1, 59, 1),
        image_size=(256, 704),
        stride=16,
        depth_bins=DepthBins(1.0, 60.0, 1.0),
        grid=Grid(x0=-51.2, y0=-51.2, cell=0.8, nx=128, ny=128),
        z_range=(-10.0, 10.0),
        **options,
    )


def released_camera() -> Cameras:
    """An ideal front camera of nuScenes, under BEVDet's image transform of evaluation."""
    scale, left, top = 0.48, 32, 176
    return Cameras(
        images=torch.zeros(1, 1, 3, 256, 704, dtype=torch.uint8),
        intrinsics=torch.tensor([[1250.0, 0.0, 800.0], [0.0, 1250.0, 450.0], [0.0, 0.0, 1.0]]).view(1, 1, 3, 3),
        lidar_T_cam=rigid(FRONT, torch.tensor([0.0, 0.7, -0.3])).view(1, 1, 4, 4),
        image_aug=torch.tensor([[scale, 0.0, -left], [0.0, scale, -top], [0.0, 0.0, 1.0]]).view(1, 1, 3, 3),
    )


def small(image_size: tuple[int, int] = (16, 48), grid: Grid = CENTERED, channels: int = 3) -> LiftSplat:
    torch.manual_seed(0)
    return LiftSplat(
        depth_net=JointDepthNet(4, 8, channels),
        image_size=image_size,
        stride=8,
        depth_bins=DepthBins(1.0, 7.0, 0.75),
        grid=grid,
        z_range=(-4.0, 4.0),
        index_mode="floor",
    )


def small_cameras(batch: int = 2) -> Cameras:
    """Three tilted cameras that look ahead, left and behind, every sample's a little different."""
    generator = torch.Generator().manual_seed(1)
    yaw = torch.tensor([0.13, 1.47, 3.31]) + 0.2 * torch.rand(batch, 3, generator=generator)
    pitch = torch.tensor(0.1)
    tilt = torch.tensor([[1, 0, 0], [0, pitch.cos(), -pitch.sin()], [0, pitch.sin(), pitch.cos()]])
    offset = torch.rand(batch, 3, 3, generator=generator) - 0.5
    return Cameras(
        images=torch.zeros(batch, 3, 3, 16, 48, dtype=torch.uint8),
        intrinsics=torch.tensor([[41.3, 0.0, 23.1], [0.0, 39.7, 8.9], [0.0, 0.0, 1.0]]).expand(batch, 3, 3, 3),
        lidar_T_cam=rigid(rotation_z(yaw) @ FRONT @ tilt, offset),
        image_aug=torch.eye(3).expand(batch, 3, 3, 3),
    )


def moved(cameras: Cameras, aug_T_lidar: Tensor) -> Cameras:
    return Cameras(cameras.images, cameras.intrinsics, aug_T_lidar @ cameras.lidar_T_cam, cameras.image_aug)


def features(batch: int = 2, height: int = 2, width: int = 6) -> Tensor:
    return torch.randn(batch, 3, 4, height, width, generator=torch.Generator().manual_seed(2))


def test_a_known_cell_at_ten_metres_lands_where_computed_by_hand() -> None:
    # Pixel (815.988, 650) of the original image; ray · 10 = (0.12791, 1.6, 10); LiDAR (0.12791, 10.7, -1.9).
    cells = released().cells(released_camera())
    assert cells.shape == (1, 1, 59, 16, 44)
    assert cells[0, 0, 9, 8, 22] == 77 * 128 + 64


def test_a_feature_at_one_depth_lights_one_cell() -> None:
    lift_splat = released()
    with torch.no_grad():
        lift_splat.depth_net.joint.weight.zero_()
        lift_splat.depth_net.joint.bias.zero_()
        lift_splat.depth_net.joint.bias[9] = 100.0  # all of the distribution at 10 m
        lift_splat.depth_net.joint.weight[59] = 1.0  # the context is the feature itself
    image = torch.zeros(1, 1, 1, 16, 44)
    image[0, 0, 0, 8, 22] = 2.5

    bev = lift_splat(image, released_camera(), PLAIN)[0]

    expected = torch.zeros(1, 1, 128, 128)
    expected[0, 0, 77, 64] = 2.5
    torch.testing.assert_close(bev, expected)


def test_a_feature_is_shared_out_by_the_softmax_over_depth() -> None:
    lift_splat = released()
    with torch.no_grad():
        lift_splat.depth_net.joint.weight.zero_()
        lift_splat.depth_net.joint.bias.fill_(-100.0)
        lift_splat.depth_net.joint.bias[9], lift_splat.depth_net.joint.bias[19] = math.log(6.0), math.log(2.0)
        lift_splat.depth_net.joint.weight[59], lift_splat.depth_net.joint.bias[59] = 1.0, 0.0
    image = torch.zeros(1, 1, 1, 16, 44)
    image[0, 0, 0, 8, 22] = 4.0

    bev = lift_splat(image, released_camera(), PLAIN)[0]

    # Three quarters at 10 m, a quarter at 20 m: (0.256, 20.7).
    expected = torch.zeros(1, 1, 128, 128)
    expected[0, 0, 77, 64], expected[0, 0, 89, 64] = 3.0, 1.0
    torch.testing.assert_close(bev, expected)


def test_truncation_keeps_the_lowest_rows_at_a_large_depth() -> None:
    camera = released_camera()
    outside = 128 * 128
    truncated, floored = released().cells(camera), released(index_mode="floor").cells(camera)
    # The lowest row at 50 m is (431 / 0.48 - 450) / 1250 · 50 = 17.9 m below the camera.
    assert truncated[0, 0, 49, 15, 22] != outside
    assert floored[0, 0, 49, 15, 22] == outside
    # Below -10 m in z, nothing else differs here.
    assert torch.equal(truncated[floored != outside], floored[floored != outside])


def test_depth_is_a_distribution_so_that_mass_is_kept() -> None:
    wide = Grid(x0=-32.0, y0=-32.0, cell=2.0, nx=32, ny=32)
    lift_splat = small(grid=wide)
    image = features()
    logits, context = lift_splat.depth_net(image, small_cameras(), PLAIN)
    bev, told = lift_splat(image, small_cameras(), PLAIN)
    assert torch.equal(told, logits)
    assert bev.shape == (2, 3, 32, 32)
    torch.testing.assert_close(bev.sum(dim=(2, 3)), context.sum(dim=(1, 3, 4)))


@pytest.mark.parametrize(
    ("name", "aug_T_lidar"),
    [
        ("quarter turn", rigid(rotation_z(math.pi / 2), torch.zeros(3))),
        ("mirror x", reflection("x")),
        ("mirror y", reflection("y")),
        ("shift", rigid(torch.eye(3), torch.tensor([1.0, -1.5, 0.0]))),
    ],
)
def test_augmentation_from_the_left_moves_the_map(name: str, aug_T_lidar: Tensor) -> None:
    lift_splat, cameras, image = small(), small_cameras(), features()
    plain = lift_splat(image, cameras, PLAIN)[0]
    augmented = lift_splat(image, moved(cameras, aug_T_lidar), PLAIN)[0]
    expected = {
        # (x, y) goes to (-y, x): what lies ahead on the right ends up ahead on the left.
        "quarter turn": plain.flip(2).transpose(2, 3),
        "mirror x": plain.flip(3),
        "mirror y": plain.flip(2),
        "shift": plain.roll(shifts=(-3, 2), dims=(2, 3)),
    }[name]
    assert not torch.equal(plain, expected)
    torch.testing.assert_close(augmented, expected)


def test_halving_the_scene_halves_where_it_lands() -> None:
    lift_splat, cameras, image = small(), small_cameras(), features()
    scale = torch.diag(torch.tensor([0.5, 0.5, 0.5, 1.0]))
    coarse = small(grid=Grid(x0=-32.0, y0=-32.0, cell=1.0, nx=64, ny=64))
    coarse.load_state_dict(lift_splat.state_dict())
    torch.testing.assert_close(lift_splat(image, moved(cameras, scale), PLAIN)[0], coarse(image, cameras, PLAIN)[0])


def test_image_augmentation_is_undone() -> None:
    lift_splat, cameras, image = small(), small_cameras(), features()
    # The columns of the frustum run from 0 to 47: this mirror maps them onto each other.
    mirror = torch.tensor([[-1.0, 0.0, 47.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).expand(2, 3, 3, 3)
    mirrored = Cameras(cameras.images, cameras.intrinsics, cameras.lidar_T_cam, mirror)
    torch.testing.assert_close(lift_splat(image.flip(-1), mirrored, PLAIN)[0], lift_splat(image, cameras, PLAIN)[0])
    assert not torch.allclose(lift_splat(image, mirrored, PLAIN)[0], lift_splat(image, cameras, PLAIN)[0])


def test_each_sample_and_camera_has_its_own_calibration() -> None:
    lift_splat, cameras, image = small(), small_cameras(), features()
    both = lift_splat(image, cameras, PLAIN)[0]
    for sample in range(2):
        alone = Cameras(*(getattr(cameras, name)[sample : sample + 1] for name in Cameras.__dataclass_fields__))
        one = lift_splat(image[sample : sample + 1], alone, PLAIN)[0]
        torch.testing.assert_close(one, both[sample : sample + 1])
    order = [2, 0, 1]
    permuted = Cameras(*(getattr(cameras, name)[:, order] for name in Cameras.__dataclass_fields__))
    torch.testing.assert_close(lift_splat(image[:, order], permuted, PLAIN)[0], both)
    assert not torch.allclose(lift_splat(image[:, order], cameras, PLAIN)[0], both)


def test_state_holds_the_learned_layer_alone() -> None:
    lift_splat = small()
    assert list(lift_splat.state_dict()) == ["depth_net.joint.weight", "depth_net.joint.bias"]
    assert lift_splat.depth_net.joint.out_channels == 8 + 3
    assert lift_splat.frustum.shape == (8, 2, 6, 3)


def test_autocast_keeps_geometry_and_sums_in_float32() -> None:
    lift_splat, cameras, image = small(), small_cameras(), features()
    exact = lift_splat(image, cameras, PLAIN)[0]
    with torch.autocast("cpu", torch.bfloat16):
        cells = lift_splat.cells(cameras)
        bev = lift_splat(image, cameras, PLAIN)[0]
    assert torch.equal(cells, lift_splat.cells(cameras))
    assert bev.dtype == torch.float32
    torch.testing.assert_close(bev, exact, rtol=0.05, atol=0.05)


def test_gradients_reach_depth_and_context() -> None:
    lift_splat, image = small(), features().requires_grad_()
    lift_splat(image, small_cameras(), PLAIN)[0].square().sum().backward()
    gradient = lift_splat.depth_net.joint.weight.grad
    assert gradient is not None
    assert image.grad is not None
    assert (gradient.flatten(1).abs().sum(dim=1) > 0).all()
    assert (image.grad.abs().sum(dim=(2, 3, 4)) > 0).all()
