import pytest
from bevkd_common.config.detectors.lidarformer import LidarFormerConfig, describe
from bevkd_common.config.detectors.point_readers import encoded_layers
from pydantic import ValidationError

READER = {"kind": "pillars"}


def test_the_plan_names_reader_backbone_queries_and_sweeps():
    config = LidarFormerConfig.model_validate({"reader": READER | {"pillar": 0.512}})
    assert describe(config) == ("pillars of 0.512 m, SECOND 128/256, 200 x 200 queries, 6 + 6 layers, 10 sweeps")


def test_the_default_reads_voxels_that_become_the_cells_of_the_queries():
    config = LidarFormerConfig()
    assert config.cells == (config.grid.nx, config.grid.ny) == (200, 200)
    assert config.reader.cell == pytest.approx(config.grid.cell)
    assert describe(config).startswith("voxels of 0.064 x 0.064 x 0.2 m, sparse encoder 16/32/64/128, SECOND")


@pytest.mark.parametrize(("layers", "stages", "left"), [(40, 4, 2), (40, 1, 20), (24, 4, 1), (22, 4, 0)])
def test_layers_that_an_encoder_leaves(layers, stages, left):
    # 40: 41 -> 21 -> 11 -> 5 -> 2.
    assert encoded_layers(layers, stages) == left


def test_cells_run_along_x_then_y():
    config = LidarFormerConfig.model_validate({"reader": READER, "point_range": (0, -6.4, -5, 12.8, 12.8, 3)})
    assert config.cells == (64, 96)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reader": {"kind": "rings"}}, "'pillars', 'voxels'"),
        ({"reader": {"kind": "voxels", "voxel_height": 1.6}}, "5 layers of voxels, too few"),
        ({"reader": READER | {"pillar": 0}}, "greater than 0"),
        ({"backbone_layers": (3,)}, "the same length"),
        ({"backbone_layers": (3, -1)}, "greater than or equal to 0"),
        ({"levels": 1}, "`levels` is 1, but there are 2 stages"),
        ({"channels": 100}, "not a multiple of the 8 `attention_heads`"),
        ({"point_range": (51.2, -51.2, -5, -51.2, 51.2, 3)}, "lower x, y, z"),
        ({"point_range": (-51.2, -51.1, -5, 51.2, 51.1, 3)}, "along y must be a multiple of 2 cells of 0.2 m"),
        ({"grid": {"x0": 60, "y0": 0, "cell": 1, "nx": 4, "ny": 4}}, "do not overlap"),
    ],
)
def test_impossible_detectors_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        LidarFormerConfig.model_validate({"reader": READER} | changes)
