import torch
from bevkd_common.models.grid_mask import GridMask


def test_a_grid_mask_keeps_bars_of_half_the_period():
    torch.manual_seed(0)
    images = torch.ones(2, 3, 64, 96)
    mask = GridMask(0.7)
    assert mask.eval()(images) is images
    mask.train()
    kept = [mask(images) for _ in range(200)]
    untouched = sum(one is images for one in kept)
    assert 35 <= untouched <= 85  # 60 in the mean
    shares = set()
    for one in kept:
        if one is images:
            continue
        assert torch.equal(one[0, 0], one[1, 2])
        # What is hidden is hidden in whole rows and columns of rectangles.
        hidden = one[0, 0] == 0
        assert torch.equal(hidden, hidden.any(dim=1)[:, None] & hidden.any(dim=0))
        shares.add(round(float(one.mean()), 2))
    assert 0.6 < sum(shares) / len(shares) < 0.95
