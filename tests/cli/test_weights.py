"""`bevkd weights`: what is published, and one file that is imported, or refused with a table."""

import pytest
import torch
from bevkd_common.config.reading.loading import load_detector
from bevkd_common.config.recipes import load_named
from bevkd_common.errors import UserError
from bevkd_common.experiment.build import build_detector
from bevkd_common.models.weights.centerpoint import CENTERPOINT_PILLAR
from safetensors import safe_open

SMALL = [
    "point_range=[-6.4, -6.4, -5.0, 6.4, 6.4, 3.0]",
    "pillar=0.4",
    "pillar_channels=4",
    "backbone_channels=[4, 4, 4]",
    "backbone_layers=[0, 0, 0]",
    "neck_channels=[4, 4, 4]",
    "head.channels=4",
]
SETTINGS = [word for setting in SMALL for word in ("--set", setting)]


@pytest.fixture
def bevkd(command):
    return command


@pytest.fixture
def published(tmp_path):
    detector = build_detector(load_detector("centerpoint", SMALL), CLASSES, seed=0)
    weights = {}
    for key, value in detector.state_dict().items():
        theirs, ours = next((t, o) for t, o in CENTERPOINT_PILLAR.prefixes if key.startswith(o))
        weights[theirs + key.removeprefix(ours)] = value
    torch.save({"meta": {"mmdet3d_version": "1.1.0"}, "state_dict": weights}, tmp_path / "small.pth")
    return weights


CLASSES = tuple(name for task in load_detector("centerpoint").head.tasks for name in task)


def test_what_is_published_is_listed(bevkd):
    code, out, err = bevkd("weights", "ls")
    rows = [line.split("\t") for line in out.splitlines()]
    assert (code, err, len(rows)) == (0, "", 22)
    assert all(len(row) == 7 for row in rows)
    assert ["BEVDet4D-R50", "BEVDet4D", "bevdet4d", "old", "32.2", "45.7"] in [row[:6] for row in rows]


def test_a_file_is_imported(bevkd, published, tmp_path):
    arguments = ("weights", "import", "small.pth", "--as", "centerpoint", *SETTINGS, "--out", "ours.safetensors")
    code, out, err = bevkd(*arguments)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "mmdet3d CenterPoint with pillars, convention new: its pillars have 11 inputs; "
        "it was saved by mmdetection3d 1.1.0",
        f"{len(published)} tensors, 0 left out: ours.safetensors",
    ]
    with safe_open(tmp_path / "ours.safetensors", framework="pt") as file:
        assert file.metadata()["source"] == "small.pth"
        assert len(file.keys()) == len(published)


def test_a_file_that_does_not_fit_is_a_table_and_no_file(bevkd, published, tmp_path):
    code, out, err = bevkd(
        "weights", "import", "small.pth", "--as", "centerpoint", *SETTINGS, "--set", "head.channels=5", "--out",
        "ours.safetensors",
    )  # fmt: skip
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 2
    assert rows[0][:4] == ["shape", "head.shared_conv.bn.bias", "(4,)", "(5,)"]
    assert f"{len(rows)} keys, listed above; nothing was written" in err
    assert not (tmp_path / "ours.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--as", "centrepoint"), "no detector `centrepoint` is installed"),
        (("--as", "teacher"), "--as teacher: name the recipe of this teacher with --recipe"),
        (("--as", "centerpoint", "--out", "ours.pth"), "--out ours.pth: the name of the file must end in"),
        (("--as", "centerpoint", "--rename", "a"), "--rename a: must read THEIRS=OURS"),
        (("--as", "centerpoint", "--set", "pilar=0.4"), "pilar: unknown key"),
        (
            ("--as", "bevdet", "--recipe", "distillbev/centerpoint-bevdepth.synthetic"),
            "names 0 detectors of the recipe",
        ),
    ],
)
def test_commands_that_cannot_be_followed(bevkd, published, arguments, message, tmp_path):
    code, out, err = bevkd("weights", "import", "small.pth", "--out", "ours.safetensors", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "ours.safetensors").exists()


def test_a_hostile_file_is_refused(bevkd, tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": Hostile()}, tmp_path / "bad.pth")
    code, out, err = bevkd("weights", "import", "bad.pth", "--as", "centerpoint", "--out", "ours.safetensors")
    assert (code, out) == (2, "")
    assert "cannot be read safely" in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


class Hostile:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_a_published_recipe_does_not_start_at_random_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    recipe = load_named("distillbev/centerpoint-bevdet.nuscenes")
    with pytest.raises(UserError, match=r"the weights of resnet50\.tv_in1k cannot be fetched from the hub"):
        build_detector(recipe.student, CLASSES, seed=0)
