import torch
from bevkd_common.models.deform_conv import DeformConv, ModulatedDeformConv


def test_it_begins_as_a_plain_convolution_of_each_group():
    conv, x = DeformConv(8, 12, groups=4), torch.randn(2, 8, 6, 7)
    assert {name: tuple(value.shape) for name, value in conv.state_dict().items()} == {
        "weight": (12, 2, 3, 3),
        "conv_offset.weight": (18, 8, 3, 3),
        "conv_offset.bias": (18,),
    }
    plain = torch.nn.functional.conv2d(x, conv.weight, padding=1, groups=4)
    torch.testing.assert_close(conv(x), plain, atol=1e-5, rtol=1e-5)


def test_offsets_are_vertical_then_horizontal_sample_by_sample():
    """One channel, the middle sample alone, moved by one row down and two columns right."""
    conv = DeformConv(1, 1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1] = 1.0
        conv.conv_offset.bias[2 * 4], conv.conv_offset.bias[2 * 4 + 1] = 1.0, 2.0
    x = torch.arange(30.0).view(1, 1, 5, 6)
    torch.testing.assert_close(conv(x)[0, 0, :-1, :-2], x[0, 0, 1:, 2:])


def test_it_stays_in_float32_under_autocast():
    conv, x = DeformConv(4, 4, groups=2), torch.randn(1, 4, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        moved = conv(x.bfloat16())
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, conv(x), atol=0.05, rtol=0.05)
    moved.sum().backward()
    assert conv.conv_offset.bias.grad.any()


def test_a_deformable_convolution_begins_as_half_a_plain_one():
    conv, x = ModulatedDeformConv(3, 4), torch.randn(2, 3, 6, 7)
    plain = torch.nn.functional.conv2d(x, conv.weight, padding=1)
    torch.testing.assert_close(conv(x), 0.5 * plain, atol=1e-5, rtol=1e-5)


def test_modulated_offsets_are_vertical_then_horizontal_sample_by_sample():
    """One channel, the middle sample alone, moved by one row down and two columns right."""
    conv = ModulatedDeformConv(1, 1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1] = 1.0
        bias = conv.conv_offset.bias
        bias[2 * 4], bias[2 * 4 + 1] = 1.0, 2.0
        bias[18 + 4] = 50.0  # weight one
    x = torch.arange(30.0).view(1, 1, 5, 6)
    torch.testing.assert_close(conv(x)[0, 0, :-1, :-2], x[0, 0, 1:, 2:])


def test_samples_are_weighed():
    conv = ModulatedDeformConv(1, 1)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.conv_offset.bias[18:] = -50.0
        conv.conv_offset.bias[18] = 0.0  # the upper left sample alone, at half its size
    x = torch.arange(30.0).view(1, 1, 5, 6)
    torch.testing.assert_close(conv(x)[0, 0, 1:, 1:], 0.5 * x[0, 0, :-1, :-1])


def test_a_modulated_one_stays_in_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert ModulatedDeformConv(2, 2)(torch.randn(1, 2, 4, 4).bfloat16()).dtype == torch.float32
