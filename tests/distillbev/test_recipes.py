"""Recipes of published size, held to the settings of the released scripts."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from bevkd_common.config.reading.loading import parse_recipe
from bevkd_common.config.recipes import Choice, catalogue

CHOICES = [Choice(("distillbev",), pair) for pair in catalogue().pairs if "distillbev" in pair.sections]
RECIPES = {
    (recipe.selects.teacher, recipe.selects.student): recipe
    for recipe in (choice.load() for choice in CHOICES)
    if recipe.selects.dataset == "nuscenes"
}
TEACHERS = ("centerpoint", "mvp")
CONVOLUTIONS = ("bevdet", "bevdet4d", "bevdepth")
PAIRS = [(teacher, student) for teacher in TEACHERS for student in (*CONVOLUTIONS, "bevformer")]


COMPOSED = Path(__file__).parent / "composed_recipes.json"


def test_pairs_and_sections_compose_to_the_recipes_that_were_one_file_each():
    """Hashes of what each recipe sets; after a deliberate change, commit what the failing test prints."""
    hashes = {}
    for choice in CHOICES:
        written = choice.load().model_dump(mode="json", exclude_unset=True)
        hashes[choice.pair.name] = sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()
    assert len(hashes) == 21
    assert hashes == json.loads(COMPOSED.read_text()), json.dumps(hashes, indent=1)


def test_every_recipe_is_copied_as_one_complete_file_with_its_comments():
    for choice in CHOICES:
        text = choice.text()
        assert parse_recipe(text, choice.name) == choice.load()
        comments = [line for line in choice.header.splitlines() if line != "#"]
        assert len(comments) >= 5
        assert set(comments) <= set(text.splitlines())


def test_every_recipe_of_published_size_is_here():
    assert len(RECIPES) == 13
    assert RECIPES.keys() - set(PAIRS) == {
        *((teacher, f"{student}-r101") for teacher in TEACHERS for student in ("bevdepth", "bevformer")),
        ("mvp", "bevdepth-swin-b"),
    }


@pytest.mark.parametrize("pair", [pair for pair in RECIPES if "bevformer" not in pair[1]])
def test_the_scene_turns_and_flips_under_convolutional_students(pair):
    scene = RECIPES[pair].dataset.bev_augmentation
    assert (scene.rotation, scene.scale, scene.translation) == ((-0.3925, 0.3925), (0.95, 1.05), (0, 0, 0))
    assert (scene.flip_x, scene.flip_y) == (0.5, 0.5)


@pytest.mark.parametrize("pair", [pair for pair in RECIPES if "bevformer" in pair[1]])
def test_the_scene_stays_as_recorded_under_bevformer(pair):
    dataset = RECIPES[pair].dataset
    assert dataset.bev_augmentation is None
    images = dataset.images
    assert (images.resize, images.rotate_degrees, images.flip) == ((0, 0), (0, 0), False)
    assert images.colors is not None


@pytest.mark.parametrize("pair", RECIPES)
def test_teachers_keep_all_points(pair):
    """But for voxels of plain points, of which nothing is published; they keep CenterPoint's bounds."""
    teacher = RECIPES[pair].teacher
    assert teacher.sweeps == 10
    if "bevformer" not in pair[1]:
        assert (teacher.pillar, teacher.max_points, teacher.max_pillars) == (0.2, None, None)
    elif pair[0] == "mvp":
        assert (teacher.reader.voxel, teacher.reader.max_points, teacher.reader.max_voxels) == (0.064, None, None)
    else:
        assert (teacher.reader.voxel, teacher.reader.max_points, teacher.reader.max_voxels) == (0.064, 10, 120000)


@pytest.mark.parametrize(
    "pair", [pair for pair in RECIPES if pair[1] not in ("bevdet", "bevformer", "bevformer-r101")]
)
def test_the_earlier_frame_is_earlier(pair):
    student = RECIPES[pair].student
    assert (student.nearest_s, student.farthest_s, student.scene_start) == (0.75, 2.25, "key_frame")
    assert (student.motion, student.alignment) == ("displacement", "corner")
    assert student.head.code_weights == (1.0,) * 10


@pytest.mark.parametrize("pair", PAIRS)
def test_students_are_trained_as_published(pair):
    recipe = RECIPES[pair]
    training, optimizer = recipe.student_training, recipe.student_training.optimizer
    common = (training.epochs, optimizer.lr, optimizer.weight_decay, training.precision, training.ema)
    assert common == (24, 2e-4, 0.01, "fp32", None)
    schedule = training.schedule
    if pair[1] == "bevformer":
        assert (training.batch, training.clip_norm, training.class_balanced) == (8, 35.0, False)
        assert optimizer.lr_factors == {"image_backbone": 0.1}
        assert (schedule.kind, schedule.warmup_factor, schedule.final_factor) == ("cosine", 0.3333, 1e-3)
        assert (recipe.student.frames, recipe.student.encoder_layers, recipe.student.grid.nx) == (4, 6, 200)
    else:
        assert (training.batch, training.clip_norm, training.class_balanced) == (64, 5.0, True)
        assert (schedule.kind, schedule.warmup_steps) == ("step", 500)
        assert recipe.student.bev_neck.extra_norm_act
        assert recipe.dataset.images.resize == (-0.06, 0.11)


@pytest.mark.parametrize("pair", PAIRS)
def test_teachers_are_trained_as_published(pair):
    training = RECIPES[pair].teacher_training
    assert (training.epochs, training.schedule.kind, training.clip_norm) == (20, "one_cycle", 35.0)
    assert training.class_balanced
    if pair[1] == "bevformer":
        assert (training.optimizer.lr, training.optimizer.lr_factors) == (5e-4, {"reader": 0.1})
        assert (training.batch, training.paste) == ({"centerpoint": 16, "mvp": 24}[pair[0]], None)
    else:
        assert (training.optimizer.lr, training.batch) == (1e-3, 32)
        assert list(training.paste.counts.values()) == [2, 3, 7, 4, 6, 2, 6, 6, 2, 2]
