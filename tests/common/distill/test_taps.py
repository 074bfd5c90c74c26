"""Checks of the taps a method asks for."""

import pytest
from bevkd_common.distill.taps import choices, describe, require_tap
from bevkd_common.errors import UserError
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.taps import BevMap, HeadMaps, ImageMap, Taps

GRID = Grid(-51.2, -51.2, 0.8, 128, 96)
TAPS = Taps(
    "BEVDet",
    {
        "bev_neck": BevMap(256, GRID),
        "image_neck": ImageMap(512, 16),
        "head": HeadMaps(GRID, (("car",), ("bus", "truck")), (("reg", 2),)),
    },
)


def test_a_tap_is_returned_by_kind():
    found = 0
    for name, kind in (("bev_neck", BevMap), ("image_neck", ImageMap), ("head", HeadMaps)):
        assert require_tap(TAPS, name, kind, "test") is TAPS.specs[name]
        found += 1
    assert found == len(TAPS.specs)


def test_a_missing_tap_names_who_asks_the_detector_and_the_choices():
    with pytest.raises(UserError) as caught:
        require_tap(TAPS, "bev_block9", BevMap, "distillbev layer 'deep', student")
    assert str(caught.value) == (
        "distillbev layer 'deep', student: BEVDet has no tap 'bev_block9', but needed is a bird's-eye-view map; "
        "BEVDet offers bev_neck (256 x 96 x 128, 0.8 m)"
    )


def test_a_tap_of_another_kind_says_what_it_is():
    with pytest.raises(UserError, match="offers 'head' as a set of head maps, but needed is an image feature map"):
        require_tap(TAPS, "head", ImageMap, "test")


def test_choices_of_each_kind():
    assert choices(TAPS, ImageMap) == "BEVDet offers image_neck (512 channels, stride 16)"
    assert choices(TAPS, HeadMaps) == "BEVDet offers head (2 tasks, 96 x 128)"
    assert choices(Taps("PointNet", {}), BevMap) == "PointNet offers nothing of that kind"


def test_a_map_in_words():
    assert describe(256, GRID) == ("256 channels on 96 x 128 cells of 0.8 m, x -51.2 to 51.2 m, y -51.2 to 25.6 m")
