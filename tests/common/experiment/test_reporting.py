"""The part of the ground that pictures show."""

from types import SimpleNamespace

import torch
from bevkd_common.data.samples import Cloud
from bevkd_common.experiment.reporting import _extent
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.taps import AnchorMaps, BevMap, ImageMap, Tokens

SMALL, LARGE = Grid(-2.0, -1.0, 1.0, nx=4, ny=2), Grid(-8.0, -8.0, 2.0, nx=8, ny=8)
CLOUD = Cloud(torch.tensor([[0.0, -3.0, 1.0], [5.0, 4.0, 2.0]]), (2,), ("x", "y", "z"))
BATCH = SimpleNamespace(clouds={"lidar": CLOUD})


def extent(**taps):
    return _extent(SimpleNamespace(taps=taps), BATCH)


def test_the_grid_of_the_head_then_any_grid_then_the_points():
    head, bev = AnchorMaps(SMALL, ("van",), 1, ()), BevMap(3, LARGE)
    without = {"image": ImageMap(3, 8, (4, 4)), "points": Tokens(3, "rows", ("x", "y"), "metres")}
    assert extent(bev=bev, head=head) == (-2.0, 2.0, -1.0, 1.0)
    assert extent(**without, bev=bev) == (-8.0, 8.0, -8.0, 8.0)
    assert extent(**without) == (0.0, 5.0, -3.0, 4.0)
