import torch
from bevkd_common.models.image_necks import ImagePyramid
from torch.nn import functional as F


def test_a_pyramid_adds_coarser_levels_and_halves_the_last():
    torch.manual_seed(0)
    pyramid = ImagePyramid((2, 3), 4, levels=3)
    fine, coarse = torch.randn(1, 2, 5, 6), torch.randn(1, 3, 3, 3)
    found = pyramid([fine, coarse])
    laterals = [layer(level) for layer, level in zip(pyramid.laterals, (fine, coarse), strict=True)]
    rows, columns = torch.arange(5) * 3 // 5, torch.arange(6) * 3 // 6
    expected = pyramid.outputs[0](laterals[0] + laterals[1][:, :, rows][..., columns])
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], pyramid.outputs[1](laterals[1]))
    last = F.conv2d(found[1], pyramid.outputs[2].weight, pyramid.outputs[2].bias, stride=2, padding=1)
    torch.testing.assert_close(found[2], last)
    assert [tuple(level.shape) for level in found] == [(1, 4, 5, 6), (1, 4, 3, 3), (1, 4, 2, 2)]
