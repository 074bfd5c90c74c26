from pathlib import Path

import pytest
from bevkd_common.config.detectors.mmdet3d import Mmdet3dConfig, describe, files
from bevkd_common.config.plugins import DetectorSpec, installed
from bevkd_common.config.reading.loading import load_recipe
from bevkd_common.config.recipe import Recipe
from bevkd_common.errors import UserError
from bevkd_common.geometry.grid import Grid
from pydantic import ValidationError

RECIPE = Path(__file__).parents[3] / "cli" / "minimal.yaml"
TEACHER = (
    "teacher={kind: mmdet3d, config: a/centerpoint.py, weights: b/released.pth, taps: {bev_neck: {module: pts_neck,"
    " channels: 384, grid: {x0: -25.6, y0: -25.6, cell: 0.8, nx: 64, ny: 64}}}}"
)
NO_TRAINING = "teacher_training=null"


def recipe(*overrides: str) -> Recipe:
    return load_recipe(RECIPE, overrides)


def test_a_finished_teacher_needs_neither_training_nor_checkpoint():
    teacher = recipe(TEACHER, NO_TRAINING).teacher
    assert isinstance(teacher, Mmdet3dConfig)
    assert teacher.taps["bev_neck"].grid == Grid(-25.6, -25.6, 0.8, 64, 64)
    assert (teacher.taps["bev_neck"].output, teacher.taps["bev_neck"].activation) == (0, "none")
    assert files(teacher) == (Path("a/centerpoint.py"), Path("b/released.pth"))
    assert describe(teacher) == "centerpoint with released.pth, 10 sweeps"
    assert installed(DetectorSpec).of(teacher).finished is files


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([TEACHER], "`mmdet3d` comes with its weights and is not trained here: leave out `teacher_training`"),
        ([TEACHER, NO_TRAINING, "teacher_checkpoint=x.safetensors"], "leave out .* `teacher_checkpoint`"),
        (
            ["student={kind: mmdet3d, config: a.py, weights: null}"],
            "`student`: a detector `mmdet3d` is not trained here; it can only be the teacher",
        ),
    ],
)
def test_training_it_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        recipe(*overrides)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sweeps": 0}, "would have no input"),
        ({"taps": {"head": {"module": "x", "channels": 1, "grid": Grid(0, 0, 1, 1, 1)}}}, "in the section `head`"),
        ({"classes": ("car", "car")}, "name one twice"),
        ({"point_columns": (0, 1, 5)}, "less than or equal to 4"),
    ],
)
def test_what_cannot_be_used_is_refused(changes, message):
    settings = {"config": "a.py", "weights": None}
    with pytest.raises(ValidationError, match=message):
        Mmdet3dConfig.model_validate(settings | changes)


def test_weights_have_to_be_stated():
    with pytest.raises(ValidationError, match="weights\n  Field required"):
        Mmdet3dConfig.model_validate({"config": "a.py"})
    assert describe(Mmdet3dConfig(config=Path("a.py"), weights=None, cameras=True)).startswith(
        "a with random weights"
    )
