import pytest
import torch
from bevkd_common.models.attention import DeformableAttention, as_shares, first_offsets


def test_eight_heads_start_in_the_eight_directions_of_the_compass():
    offsets = first_offsets(heads=8, levels=2, points=4)
    compass = [[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]
    assert offsets.shape == (8, 2, 4, 2)
    for point in range(4):
        for level in range(2):
            expected = torch.tensor(compass) * (point + 1.0)
            torch.testing.assert_close(offsets[:, level, point], expected, atol=1e-5, rtol=0)


def test_attention_starts_independent_of_the_query():
    attention = DeformableAttention(16, heads=8, levels=1, points=4)
    value, reference = torch.randn(1, 12, 16), torch.full((1, 2, 2), 0.5)
    first, second = attention(torch.randn(1, 2, 16), value, [(3, 4)], reference)[0]
    torch.testing.assert_close(first, second)


def identity(attention: DeformableAttention) -> DeformableAttention:
    with torch.no_grad():
        for layer in (attention.value_proj, attention.output_proj):
            layer.weight.copy_(torch.eye(len(layer.weight)))
        attention.sampling_offsets.bias.zero_()
    return attention


def test_offsets_are_pixels_and_places_are_x_then_y():
    # 2 rows, 4 columns; from the middle (.5, .5) one pixel right and down: (.75, 1.0), the corner of two cells.
    attention = identity(DeformableAttention(1, heads=1, levels=1, points=1))
    with torch.no_grad():
        attention.sampling_offsets.bias.copy_(torch.tensor([1.0, 1.0]))
    value = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]).view(1, 8, 1)
    seen = attention(torch.zeros(1, 1, 1), value, [(2, 4)], torch.tensor([[[0.5, 0.5]]]))
    # Half of the sample lies below the map, where there is nothing.
    assert seen.item() == pytest.approx((7 + 8) / 2 / 2)


def test_levels_share_the_weight_of_a_head():
    attention = identity(DeformableAttention(1, heads=1, levels=2, points=1))
    with torch.no_grad():
        attention.attention_weights.bias.copy_(torch.tensor([0.6, 0.4]).log())
    value = torch.tensor([1.0, 2, 3, 4, 10]).view(1, 5, 1)
    seen = attention(torch.zeros(1, 1, 1), value, [(2, 2), (1, 1)], torch.tensor([[[0.5, 0.5]]]))
    assert seen.item() == pytest.approx(5.5)


def test_outputs_are_ordered_head_level_point_coordinate():
    heads, levels, points = 2, 3, 2
    attention = identity(DeformableAttention(2, heads=heads, levels=levels, points=points))
    # All weight of head 1 on its level 2, point 1, which looks one pixel to the right of the middle of a 1 x 3 map.
    place = ((1 * levels + 2) * points) + 1
    with torch.no_grad():
        attention.attention_weights.bias[place] = 100.0
        attention.sampling_offsets.bias[2 * place] = 1.0
    value = torch.zeros(1, 9, 2)
    value[0, 8, 1] = 7.0
    seen = attention(torch.zeros(1, 1, 2), value, [(1, 3)] * 3, torch.tensor([[[0.5, 0.5]]]))
    assert seen[0, 0].tolist() == pytest.approx([0.0, 7.0])


def test_offsets_of_half_precision_become_shares_in_float32():
    pixels = torch.arange(2 * 2 * 3 * 2, dtype=torch.bfloat16)
    shares = as_shares(pixels, (2, 2, 3), [(3, 7), (333, 1001)])
    assert shares.shape == (2, 2, 3, 2)
    assert shares.dtype == torch.float32
    # Head 1, level 1, point 2: the last two numbers, x before y.
    assert shares[1, 1, 2].tolist() == pytest.approx([22 / 1001, 23 / 333], rel=1e-6)
    assert shares[1, 0, 0].tolist() == pytest.approx([12 / 7, 13 / 3], rel=1e-6)
