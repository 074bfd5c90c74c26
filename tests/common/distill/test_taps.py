"""Checks of the taps a method asks for."""

from dataclasses import dataclass, replace

import pytest
from bevkd_common.distill.taps import choices, describe, require_heatmaps, require_tap
from bevkd_common.errors import UserError
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.taps import BevMap, Branch, HeadMaps, ImageMap, Meaning, Queries, Taps, TapSpec

GRID = Grid(-51.2, -51.2, 0.8, 128, 96)
HEAD = HeadMaps(GRID, (("car",), ("bus", "truck")), (Branch("reg", 2, Meaning.CENTER_OFFSET),))
TAPS = Taps(
    "BEVDet",
    {
        "bev_neck": BevMap(256, GRID),
        "image_neck": ImageMap(512, 16, (16, 44)),
        "head": HEAD,
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
        "distillbev layer 'deep', student: BEVDet has no tap 'bev_block9', but a BEV map is needed; "
        "BEVDet offers bev_neck (256 x 96 x 128, 0.8 m)"
    )


def test_a_tap_of_another_kind_says_what_it_is():
    with pytest.raises(UserError, match="offers 'head' as a set of head maps, but an image feature map is needed"):
        require_tap(TAPS, "head", ImageMap, "test")


def test_choices_of_each_kind():
    assert choices(TAPS, ImageMap) == "BEVDet offers image_neck (512 x 16 x 44, stride 16)"
    assert choices(TAPS, HeadMaps) == "BEVDet offers head (2 tasks, 96 x 128)"
    assert choices(Taps("PointNet", {}), BevMap) == "PointNet has no tap of that kind"


def test_a_map_in_words():
    assert describe(256, GRID) == ("256 channels on 96 x 128 cells of 0.8 m, x -51.2 to 51.2 m, y -51.2 to 25.6 m")


def test_heat_maps_are_announced_by_the_head():
    queries = Queries(GRID, ("car",), layers=1, count=5, channels=4, code=())
    peaks = replace(queries, heatmap=True)
    assert (
        require_heatmaps(TAPS, "test", "change it") == require_heatmaps(Taps("A", {"head": peaks}), "", "") == GRID
    )
    with pytest.raises(UserError, match=r"^test: A has a set of queries .* predicts no heat maps; do so$"):
        require_heatmaps(Taps("A", {"head": queries}), "test", "do so")
    with pytest.raises(UserError, match=r"^test: A has no tap 'head'; do so$"):
        require_heatmaps(Taps("A", {}), "test", "do so")


@dataclass(frozen=True)
class Foreign(TapSpec):
    """A description that the project does not ship."""

    noun = "a foreign tap"
    words = "as foreign as can be"

    def problem(self, value, samples):
        return None


def test_a_class_of_descriptions_from_elsewhere_is_as_good():
    taps = Taps("Elsewhere", {"it": Foreign()})
    assert require_tap(taps, "it", Foreign, "test") == Foreign()
    with pytest.raises(UserError, match="Elsewhere offers 'it' as a foreign tap, but a BEV map is needed"):
        require_tap(taps, "it", BevMap, "test")
    with pytest.raises(UserError, match="but a foreign tap is needed; BEVDet has no tap of that kind"):
        require_tap(TAPS, "bev_neck", Foreign, "test")
