import pytest
import torch
from bevkd_common.ops.deform_conv import deform_conv
from torchvision.ops import deform_conv2d

CASES = {
    "modulated, with a bias": (6, 5, 1, True, True),
    "plain": (6, 5, 1, False, False),
    "four groups": (8, 12, 4, False, True),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_torchvisions(case):
    """Outputs and gradients in float64; samples move up to three cells, many of them out of the map."""
    channels, out, groups, biased, weighed = CASES[case]
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, offset = normal(2, channels, 5, 7), normal(2, 18, 5, 7)
    weight = normal(out, channels // groups, 3, 3)
    bias = normal(out) if biased else None
    mask = normal(2, 9, 5, 7) if weighed else None
    given = [value for value in (x, offset, weight, bias, mask) if value is not None]
    ours = deform_conv(x, 1.5 * offset, weight, bias, mask)
    theirs = deform_conv2d(x, 1.5 * offset, weight, bias, padding=1, mask=mask)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    upstream = normal(*ours.shape).detach()
    gradients = torch.autograd.grad(ours, given, upstream), torch.autograd.grad(theirs, given, upstream)
    assert len(gradients[0]) == 3 + biased + weighed
    for mine, other in zip(*gradients, strict=True):
        assert mine.any()
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)


def test_without_offsets_it_is_a_plain_convolution():
    x, weight = torch.randn(1, 3, 4, 6), torch.randn(2, 3, 3, 3)
    plain = torch.nn.functional.conv2d(x, weight, padding=1)
    torch.testing.assert_close(deform_conv(x, torch.zeros(1, 18, 4, 6), weight), plain, atol=1e-5, rtol=1e-5)
