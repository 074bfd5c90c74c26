import pytest
import torch
from bevkd_common.models.bev_encoders import BevNeck, ResidualBlock, bev_stage
from bevkd_common.models.image_necks import ImageFpn
from torch import Tensor, nn
from torch.nn import functional as F


def randomise(module: nn.Module) -> nn.Module:
    """Evaluation mode with norms that do something."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return module.eval()


def batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("stride", [1, 2])
def test_projecting_block_has_a_biased_3x3_shortcut_without_norm(stride: int) -> None:
    block = randomise(ResidualBlock(3, 5, stride, project=True))
    x = torch.randn(2, 3, 8, 6)
    inner = F.relu(batch_norm(F.conv2d(x, block.conv1.weight, stride=stride, padding=1), block.bn1))
    inner = batch_norm(F.conv2d(inner, block.conv2.weight, padding=1), block.bn2)
    assert block.shortcut.weight.shape == (5, 3, 3, 3)
    shortcut = F.conv2d(x, block.shortcut.weight, block.shortcut.bias, stride=stride, padding=1)
    torch.testing.assert_close(block(x), F.relu(inner + shortcut))
    assert block(x).shape == (2, 5, 8 // stride, 6 // stride)


def test_plain_block_adds_its_input() -> None:
    block = randomise(ResidualBlock(5, 5))
    nn.init.zeros_(block.bn2.weight)
    nn.init.zeros_(block.bn2.bias)
    x = torch.randn(2, 5, 8, 6)
    torch.testing.assert_close(block(x), F.relu(x))
    assert count(block.shortcut) == 0


def test_stage_changes_shape_in_its_first_block_only() -> None:
    stage = bev_stage(4, 6, blocks=3, stride=2)
    assert len(stage) == 3
    assert stage(torch.randn(1, 4, 8, 12)).shape == (1, 6, 4, 6)
    assert [isinstance(block.shortcut, nn.Conv2d) for block in stage] == [True, False, False]
    assert [block.conv1.stride for block in stage] == [(2, 2), (1, 1), (1, 1)]


def test_released_encoder_has_its_parameters() -> None:
    stages = [bev_stage(*channels, blocks=2, stride=2) for channels in [(64, 128), (128, 256), (256, 512)]]
    assert sum(map(count, stages)) == 12_394_368
    # BEVDet4D's net before the fusion of frames is one stage at full resolution.
    assert count(bev_stage(64, 64, blocks=2, stride=1)) == 184_896
    assert count(released_neck()) == 6_556_416
    assert count(released_neck(extra_norm_act=True)) == 6_556_416 + 2 * 256
    norms = [m for stage in stages for m in stage.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 12
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.1)}


def released_neck(*, extra_norm_act: bool = False) -> BevNeck:
    return BevNeck(
        fine_channels=128,
        coarse_channels=512,
        hidden_channels=512,
        out_channels=256,
        coarse_scale=4,
        fine_scale=2,
        extra_norm_act=extra_norm_act,
    )


def small_neck(*, extra_norm_act: bool = False) -> BevNeck:
    torch.manual_seed(0)
    neck = BevNeck(
        fine_channels=3,
        coarse_channels=5,
        hidden_channels=6,
        out_channels=4,
        coarse_scale=4,
        fine_scale=2,
        extra_norm_act=extra_norm_act,
    )
    return randomise(neck)


def test_neck_fuses_fine_before_coarse_and_enlarges_corner_to_corner() -> None:
    neck = small_neck()
    fine, coarse = torch.randn(2, 3, 8, 12), torch.randn(2, 5, 2, 3)

    def enlarge(x: Tensor, scale: int) -> Tensor:
        return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=True)

    x = torch.cat([fine, enlarge(coarse, 4)], dim=1)
    x = F.relu(batch_norm(F.conv2d(x, neck.fuse[0].weight, padding=1), neck.fuse[1]))
    x = F.relu(batch_norm(F.conv2d(x, neck.fuse[3].weight, padding=1), neck.fuse[4]))
    x = F.relu(batch_norm(F.conv2d(enlarge(x, 2), neck.refine[1].weight, padding=1), neck.refine[2]))
    x = F.conv2d(x, neck.refine[4].weight, neck.refine[4].bias)

    assert x.shape == (2, 4, 16, 24)
    assert (x < 0).any()
    torch.testing.assert_close(neck([x, fine, fine, coarse]), x)


def test_corners_of_an_enlarged_map_coincide() -> None:
    # Two cells become eight: with coinciding corners the steps between are sevenths.
    enlarged = small_neck().enlarge_coarse(torch.tensor([[[[0.0, 7.0], [0.0, 7.0]]]]))
    torch.testing.assert_close(enlarged[0, 0, 3], torch.arange(8.0))


def test_extra_norm_and_activation_come_last() -> None:
    plain, rectified = small_neck(), small_neck(extra_norm_act=True)
    rectified.load_state_dict(plain.state_dict() | rectified.norm_act.state_dict(prefix="norm_act."))
    maps = [torch.randn(2, channels, *size) for channels, size in ((1, (9, 9)), (3, (8, 12)), (5, (2, 3)))]
    torch.testing.assert_close(rectified(maps), F.relu(batch_norm(plain(maps), rectified.norm_act[0])))


def test_pyramid_adds_the_nearest_coarse_cell_to_the_fine_level() -> None:
    fpn = ImageFpn([1, 1], 1)
    with torch.no_grad():
        for lateral, weight, bias in zip(fpn.laterals, (1.0, 10.0), (0.5, 0.25), strict=True):
            lateral.weight.fill_(weight)
            lateral.bias.fill_(bias)
        fpn.output.weight.zero_()
        fpn.output.weight[0, 0, 1, 1] = 2.0
        fpn.output.bias.fill_(-1.0)
    # An odd size: three columns over two.
    fine, coarse = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]]), torch.tensor([[[[1.0, 2.0]]]])
    fused = 2 * (fine + 0.5 + torch.tensor([10.25, 10.25, 20.25])) - 1
    torch.testing.assert_close(fpn([fine, coarse]), fused)


def test_released_pyramid_has_its_parameters() -> None:
    fpn = ImageFpn([1024, 2048], 512)
    assert count(fpn) == 3_933_696
    assert fpn.output.kernel_size == (3, 3)


def test_pyramid_of_three_levels_passes_everything_down() -> None:
    torch.manual_seed(0)
    fpn = ImageFpn([2, 3, 4], 5)
    levels = [torch.randn(1, 2, 8, 12), torch.randn(1, 3, 4, 6), torch.randn(1, 4, 2, 3, requires_grad=True)]
    lateral = [layer(level) for layer, level in zip(fpn.laterals, levels, strict=True)]
    middle = lateral[1] + lateral[2].repeat_interleave(2, -1).repeat_interleave(2, -2)
    fused = lateral[0] + middle.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(fpn(levels), fpn.output(fused))
