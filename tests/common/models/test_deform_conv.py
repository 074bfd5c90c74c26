import torch
from bevkd_common.models.deform_conv import DeformConv


def test_it_begins_as_a_plain_convolution_of_each_group():
    conv, x = DeformConv(8, 4), torch.randn(2, 8, 6, 7)
    assert {name: tuple(value.shape) for name, value in conv.state_dict().items()} == {
        "weight": (8, 2, 3, 3),
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
    conv, x = DeformConv(4, 2), torch.randn(1, 4, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        moved = conv(x.bfloat16())
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, conv(x), atol=0.05, rtol=0.05)
    moved.sum().backward()
    assert conv.conv_offset.bias.grad.any()
