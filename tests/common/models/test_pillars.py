import pytest
import torch
from bevkd_common.models.pillars import PillarFeatureNet, padded_batch_norm, scatter_to_bev
from bevkd_common.ops.voxelize import Voxels, VoxelSpec, voxelize
from torch import nn

# 5 x 3 pillars; the centre of the first is (-0.625, 2.25, -1).
SPEC = VoxelSpec((-1.0, 2.0, -5.0), (2.75, 3.5, 3.0), (0.75, 0.5, 8.0), max_points=4)
FLOAT64 = torch.float64


def cloud(points: int = 60, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([3.75, 1.5, 8.0, 255.0, 0.5], dtype=FLOAT64)
    low = torch.tensor([-1.0, 2.0, -5.0, 0.0, 0.0], dtype=FLOAT64)
    return torch.rand(points, 5, generator=generator, dtype=FLOAT64) * spread + low


def network(spec: VoxelSpec = SPEC, channels: int = 6) -> PillarFeatureNet:
    torch.manual_seed(1)
    net = PillarFeatureNet(spec, 5, channels).double()
    nn.init.uniform_(net.norm.weight, -1, 1)
    nn.init.uniform_(net.norm.bias, -1, 1)
    nn.init.uniform_(net.norm.running_mean, -1, 1)
    nn.init.uniform_(net.norm.running_var, 0.5, 2)
    return net


def with_stored_padding(net: PillarFeatureNet, voxels: Voxels, norm: nn.BatchNorm1d, slots: int) -> torch.Tensor:
    """The layer as mmdet3d computes it: pillars padded with zeros to [V, slots, 11], nothing masked afterwards."""
    rows = []
    low, size = torch.tensor(SPEC.range_min, dtype=FLOAT64), torch.tensor(SPEC.size, dtype=FLOAT64)
    for pillar, (_, z, y, x) in enumerate(voxels.coordinates.tolist()):
        points = voxels.points[voxels.voxel == pillar]
        center = low + (torch.tensor([x, y, z]) + 0.5) * size
        described = torch.cat([points, points[:, :3] - points[:, :3].mean(0), points[:, :3] - center], dim=1)
        rows.append(nn.functional.pad(described, (0, 0, 0, slots - len(points))))
    padded = torch.stack(rows)
    linear = padded @ net.linear.weight.T
    return norm(linear.flatten(0, 1)).relu().view(len(rows), slots, -1).amax(dim=1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("max_points", [4, None])
def test_equals_the_layer_with_stored_padding(training, max_points):
    spec = VoxelSpec(SPEC.range_min, SPEC.range_max, SPEC.size, max_points)
    net = network(spec).train(training)
    oracle = nn.BatchNorm1d(6, eps=1e-3, momentum=0.01).double().train(training)
    oracle.load_state_dict(net.norm.state_dict())
    voxels = voxelize(cloud(100), (60, 40), spec)
    assert (voxels.counts < 4).sum() > 5
    assert (voxels.counts >= 4).sum() > 3
    features = net(voxels)
    if max_points is None:
        normed = oracle(net.linear(net._describe(voxels))).relu()
        expected = torch.stack([normed[voxels.voxel == row].amax(0) for row in range(len(voxels.counts))])
    else:
        expected = with_stored_padding(net, voxels, oracle, 4)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-10)
    for name, buffer in net.norm.named_buffers():
        torch.testing.assert_close(buffer, oracle.get_buffer(name), rtol=1e-10, atol=1e-10)

    inputs = [net.linear.weight, net.norm.weight, net.norm.bias]
    probe = torch.linspace(-1, 1, features.numel(), dtype=FLOAT64).view_as(features)
    ours = torch.autograd.grad((features * probe).sum(), inputs)
    theirs = torch.autograd.grad((expected * probe).sum(), [net.linear.weight, oracle.weight, oracle.bias])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_the_maximum_includes_the_padding():
    # One point whose linear output is -1, norm with scale 1 and shift 0.3: relu(-0.7) and relu(0.3).
    net = PillarFeatureNet(SPEC, 5, 1).eval()
    with torch.no_grad():
        net.norm.bias.fill_(0.3)
        net.norm.running_var.fill_(1 - 1e-3)
        net.linear.weight.zero_()
        net.linear.weight[0, 3] = 1.0
    point = torch.tensor([[-0.625, 2.25, 0.0, -1.0, 0.0]])
    assert net(voxelize(point, (1,), SPEC)).item() == pytest.approx(0.3, abs=1e-6)
    full = VoxelSpec(SPEC.range_min, SPEC.range_max, SPEC.size, max_points=1)
    unpadded = PillarFeatureNet(full, 5, 1).eval()
    unpadded.load_state_dict(net.state_dict())
    assert unpadded(voxelize(point, (1,), full)).item() == 0


def test_inputs_are_features_then_offset_from_the_mean_then_from_the_centre():
    net = PillarFeatureNet(SPEC, 5, 11)
    points = torch.tensor([[0.1, 2.6, -2.0, 7.0, 0.25], [0.3, 2.8, 0.0, 9.0, 0.0]])
    described = net._describe(voxelize(points, (2,), SPEC))
    # Both points lie in pillar x 1, y 1, whose centre is (0.125, 2.75, -1).
    expected = torch.tensor(
        [
            [0.1, 2.6, -2.0, 7.0, 0.25, -0.1, -0.1, -1.0, -0.025, -0.15, -1.0],
            [0.3, 2.8, 0.0, 9.0, 0.00, 0.1, 0.1, 1.0, 0.175, 0.05, 1.0],
        ]
    )
    torch.testing.assert_close(described, expected, atol=1e-6, rtol=0)
    assert net.linear.weight.shape == (11, 11)


def test_a_zero_last_column_is_the_ten_input_layer():
    net = network().eval()
    voxels = voxelize(cloud(), (60,), SPEC)
    with torch.no_grad():
        net.linear.weight[:, 10] = 0
    inputs = net._describe(voxels)[:, :10]
    ten = inputs @ net.linear.weight[:, :10].T
    torch.testing.assert_close(net.linear(net._describe(voxels)), ten, rtol=1e-12, atol=1e-12)


def test_runs_in_float32_under_autocast():
    net = PillarFeatureNet(SPEC, 5, 4)
    voxels = voxelize(cloud().float(), (60,), SPEC)
    plain = net(voxels)
    net.norm.reset_running_stats()
    with torch.autocast("cpu", torch.bfloat16):
        cast = net(voxels)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


@pytest.mark.parametrize("points", [0, 1])
def test_statistics_stay_where_there_are_none_to_take(points):
    spec = VoxelSpec(SPEC.range_min, SPEC.range_max, SPEC.size)
    net = network(spec).train()
    before = {name: buffer.clone() for name, buffer in net.norm.named_buffers()}
    features = net(voxelize(cloud(points), (points,), spec))
    assert features.shape == (points, 6)
    assert features.isfinite().all()
    assert len(before) == 3
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.norm.named_buffers())


def test_batch_norm_over_two_rows_and_two_zeros():
    norm = nn.BatchNorm1d(1, eps=1e-3, momentum=0.01)
    # Rows 2, 4, 0, 0: mean 1.5, variance 2.75, unbiased 11/3.
    scale, shift = padded_batch_norm(torch.tensor([[2.0, 1.0], [4.0, 2.0]]), torch.tensor([[2.0, -2.0]]), 4, norm)
    assert scale.item() == pytest.approx(2.751**-0.5)
    assert shift.item() == pytest.approx(-1.5 * 2.751**-0.5)
    assert norm.running_mean.item() == pytest.approx(0.015)
    assert norm.running_var.item() == pytest.approx(0.99 + 0.01 * 11 / 3)
    assert norm.num_batches_tracked.item() == 1


def test_pillars_are_one_layer():
    with pytest.raises(ValueError, match="2 layers"):
        PillarFeatureNet(VoxelSpec((0.0, 0.0, 0.0), (1.0, 1.0, 2.0), (1.0, 1.0, 1.0)), 5, 4)


def test_scatter_puts_features_at_row_y_and_column_x():
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    coordinates = torch.tensor([[0, 0, 2, 1], [1, 0, 0, 4]])
    canvas = scatter_to_bev(features, coordinates, batch=2, ny=3, nx=5)
    assert canvas.shape == (2, 2, 3, 5)
    assert canvas[0, :, 2, 1].tolist() == [1, 2]
    assert canvas[1, :, 0, 4].tolist() == [3, 4]
    assert canvas.sum().item() == 10
    (canvas * 2).sum().backward()
    assert features.grad.tolist() == [[2, 2], [2, 2]]


def test_scales_touch_the_numbers_of_a_point_and_not_its_offsets():
    scales = [0.1, 0.2, 0.3, 0.01, 2.0]
    plain, scaled = PillarFeatureNet(SPEC, 5, 4).eval(), PillarFeatureNet(SPEC, 5, 4, scales).eval()
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        plain.linear.weight[:, :5] *= torch.tensor(scales)
    voxels = voxelize(torch.rand(40, 5) + torch.tensor([0.0, 2.2, 0.0, 0.0, 0.0]), (40,), SPEC)
    assert torch.allclose(scaled(voxels), plain(voxels), atol=1e-6)
    assert scaled.state_dict().keys() == plain.state_dict().keys()


def test_the_momentum_reaches_the_running_statistics():
    voxels = voxelize(torch.rand(40, 5) + torch.tensor([0.0, 2.2, 0.0, 0.0, 0.0]), (40,), SPEC)
    slow, fast = PillarFeatureNet(SPEC, 5, 4), PillarFeatureNet(SPEC, 5, 4, norm_momentum=1.0)
    fast.load_state_dict(slow.state_dict())
    slow(voxels)
    fast(voxels)
    assert torch.allclose(slow.norm.running_mean, 0.01 * fast.norm.running_mean, atol=1e-6)
    assert fast.norm.running_mean.abs().max() > 0
