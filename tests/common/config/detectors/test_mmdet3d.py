from pathlib import Path

import pytest
from bevkd_common.config.detectors.mmdet3d import Mmdet3dConfig, describe, files, inherited
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


def test_inherited_files_are_files_of_the_detector(tmp_path):
    content = {
        "nus/model.py": "_base_ = ['../base/schedule.yaml', '../base/data.py', 'mmdet3d::_base_/runtime.py']\n",
        "base/schedule.yaml": "_base_: runtime.json\nlr: 1\n",
        "base/runtime.json": '{"a": 1}',
        "base/data.py": "_base_ = './common.py'\n",
        "base/common.py": "x = 1\n",
        "nus/lazy.py": "with read_base():\n    from ..base.common import *\n    from .model import x\n",
        "nus/circle.py": "_base_ = 'circle.py'\n",
        "nus/damaged.py": "_base_ = [\n",
    }
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def names(file: str) -> set[str]:
        return {str(path.relative_to(tmp_path)) for path in inherited(tmp_path / file)}

    common = {"base/schedule.yaml", "base/runtime.json", "base/data.py", "base/common.py", "nus/model.py"}
    assert names("nus/model.py") == common
    assert names("nus/lazy.py") == common | {"nus/lazy.py"}
    assert names("nus/circle.py") == {"nus/circle.py"}
    assert names("nus/damaged.py") == {"nus/damaged.py"}
    assert names("nus/missing.py") == {"nus/missing.py"}


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
