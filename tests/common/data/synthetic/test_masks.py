"""Masks of the world made as wrong as the configuration says."""

import json
from io import StringIO

import numpy as np
import pytest
from bevkd_common.config.datasets.masks import ALIKE, MaskErrorsConfig
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.config.datasets.synthetic import SyntheticConfig
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.synthetic.dataset import build
from bevkd_common.data.synthetic.masks import SyntheticMasks, degraded
from bevkd_common.data.virtual_points import files as virtual_point_files
from bevkd_common.data.virtual_points.lifting import TAG, VIRTUAL
from bevkd_common.errors import UserError
from bevkd_common.progress import ConsoleReporter, SilentReporter
from PIL import Image
from rich.console import Console

EXACT = MaskErrorsConfig(miss=0, min_pixels=1, mislabel=0, jitter=0, false_instances=0, score=1, score_noise=0)


def board() -> tuple[np.ndarray, np.ndarray]:
    """Twelve squares of 12 x 12 pixels, two of which nobody looks for, and the class of each number."""
    numbers = np.zeros((60, 80), np.uint8)
    for number in range(1, 13):
        row, column = divmod(number - 1, 4)
        numbers[row * 20 + 4 : row * 20 + 16, column * 20 + 4 : column * 20 + 16] = number
    labels = np.full(256, -1)
    labels[1:11] = np.arange(10)
    return numbers, labels


def found_over(images: int, **rates: float) -> list:
    numbers, labels = board()
    errors = EXACT.model_copy(update=rates)
    return [degraded(numbers, labels, errors, np.random.default_rng([7, image])) for image in range(images)]


def test_without_errors_the_masks_are_exact():
    numbers, labels = board()
    (found,) = found_over(1)
    assert sorted(found.labels.tolist()) == list(range(10))
    assert (found.scores == 1).all()
    for instance, label in enumerate(found.labels):
        pixels = found.pixels[found.offset[instance] : found.offset[instance + 1]]
        np.testing.assert_array_equal(pixels, np.flatnonzero(labels[numbers.ravel()] == label))


def test_rates_are_those_of_the_configuration():
    images = 300
    missing = found_over(images, miss=0.2)
    assert sum(map(len, missing)) / (10 * images) == pytest.approx(0.8, abs=0.02)
    false = found_over(images, miss=1.0, false_instances=1.5)
    assert np.mean([len(found) for found in false]) == pytest.approx(1.5, abs=0.15)
    wrong = found_over(images, mislabel=0.3, score=0.75, wrong_score=0.35)
    sure = np.concatenate([found.scores for found in wrong])
    assert set(sure) == {0.75, 0.35}
    assert (sure == 0.35).mean() == pytest.approx(0.3, abs=0.025)
    noisy = np.concatenate([found.scores for found in found_over(images, score=0.6, score_noise=0.1)])
    assert (noisy.mean(), noisy.std()) == (pytest.approx(0.6, abs=0.01), pytest.approx(0.1, abs=0.01))
    assert sum(map(len, wrong)) == 3000


def test_another_class_is_one_of_the_same_sort():
    numbers, labels = board()
    taken = {label: set() for label in range(10)}
    for found in found_over(200, mislabel=1.0):
        for instance, label in enumerate(found.labels):
            true = labels[numbers.ravel()[found.pixels[found.offset[instance]]]]
            taken[int(true)].add(CLASSES[label])
    assert sorted(name for sort in ALIKE for name in sort) == sorted(CLASSES)
    for label, others in taken.items():
        sort = next(sort for sort in ALIKE if CLASSES[label] in sort)
        assert others == set(sort) - {CLASSES[label]}


def test_masks_are_moved_and_scaled_by_shares_of_their_size():
    shifts, sizes = [], []
    for found in found_over(150, jitter=0.1):
        for instance in range(len(found)):
            row, column = np.divmod(found.pixels[found.offset[instance] : found.offset[instance + 1]], 80)
            label = int(found.labels[instance])
            middle = np.array([label // 4, label % 4]) * 20 + 9.5
            shifts.append(np.array([row.mean(), column.mean()]) - middle)
            sizes.append(len(row))
    assert len(sizes) == 1500
    # 1.2 pixels, and what rounding to whole pixels adds.
    np.testing.assert_allclose(np.std(shifts, axis=0), [1.2, 1.2], atol=0.12)
    np.testing.assert_allclose(np.mean(shifts, axis=0), [0, 0], atol=0.1)
    assert np.std(np.sqrt(sizes)) == pytest.approx(1.2, abs=0.2)


def test_small_instances_are_never_found():
    numbers = np.zeros((60, 80), np.uint8)
    numbers[3, :5], numbers[9, :6] = 1, 2
    labels = np.array([-1] + [0] * 255)
    found = degraded(numbers, labels, EXACT.model_copy(update={"min_pixels": 6}), np.random.default_rng(0))
    assert len(found) == 1
    assert found.pixels.tolist() == list(range(9 * 80, 9 * 80 + 6))


def test_masks_of_a_world_name_the_classes_of_its_tables(config, world, nuscenes):
    masks = SyntheticMasks(world, "v1.0-synthetic", EXACT)
    counted = 0
    for sample in nuscenes.sample:
        scene = nuscenes.get("scene", sample["scene_token"])["name"]
        numbered = json.loads((world / "masks" / f"{scene}.json").read_text())
        for channel in ("CAM_FRONT", "CAM_BACK_LEFT"):
            name = nuscenes.get("sample_data", sample["data"][channel])["filename"]
            found = masks.instances(name, scene, config.image_size)
            pixels = np.asarray(Image.open((world / "masks" / name).with_suffix(".png")))
            expected = set()
            for number in np.unique(pixels[pixels > 0]).tolist():
                instance = nuscenes.get("instance", numbered[str(number)])
                category = nuscenes.get("category", instance["category_token"])["name"]
                if not category.startswith(("movable_object.debris", "movable_object.pushable")):
                    expected.add((number, category.split(".")[1]))
            numbers = {int(pixels.ravel()[found.pixels[start]]) for start in found.offset[:-1]}
            assert numbers == {number for number, _ in expected}
            for instance, label in enumerate(found.labels):
                number = int(pixels.ravel()[found.pixels[found.offset[instance]]])
                short = CLASSES[label].replace("traffic_cone", "trafficcone").split("_")[0]
                assert (number, short) in {(n, kind.replace("adult", "pedestrian")) for n, kind in expected}
            counted += len(found)
    assert counted > 40


def test_errors_depend_on_the_image_alone(config, world):
    names = sorted(path.relative_to(world).as_posix() for path in world.glob("samples/CAM_FRONT/*.jpg"))
    scene = sorted(path.stem for path in world.glob("masks/*.json"))[0]
    first, again = (SyntheticMasks(world, "v1.0-synthetic", MaskErrorsConfig()) for _ in range(2))
    expected = {name: first.instances(name, scene, config.image_size) for name in names}
    for name in reversed(names):
        found = again.instances(name, scene, config.image_size)
        np.testing.assert_array_equal(found.pixels, expected[name].pixels)
        np.testing.assert_array_equal(found.scores, expected[name].scores)
    assert len({found.pixels.tobytes() for found in expected.values()}) == len(names) > 5


def test_a_missing_mask_is_named(config, world):
    masks = SyntheticMasks(world, "v1.0-synthetic", EXACT)
    with pytest.raises(UserError, match=r"masks/samples/none\.png is no mask .*; generate the world again"):
        masks.instances("samples/none.jpg", "scene-1", config.image_size)


def test_a_world_makes_its_virtual_points_once(config, world, monkeypatch):
    def opened(**errors):
        return build(SyntheticConfig(world=config, virtual_points=MaskErrorsConfig(**errors)), world.parent)

    dataset, output = opened(), StringIO()
    painted = DataNeeds(clouds=frozenset({"lidar", "painted"}), sweeps=2)
    with pytest.raises(UserError, match="holds none, or not all"):
        dataset.source("train", painted)
    dataset.prepare(DataNeeds(cameras=True), SilentReporter())
    assert not dataset.virtual_points.path.exists()
    dataset.prepare(painted, ConsoleReporter(Console(file=output)))
    sweeps = len(list(world.glob("s*s/LIDAR_TOP/*.bin")))
    assert f"virtual points: {sweeps}/{sweeps} in" in output.getvalue()
    sample = dataset.source("train", painted).load(0, seed=None)
    assert (sample.clouds["painted"].points[:, TAG] == VIRTUAL).sum() > 200
    said = "Virtual points from masks of the synthetic world, 14% missed and all of fewer than 4 pixels, 7% misl"
    assert dataset.virtual_points.manifest.sentence.startswith(said)
    # Other rates are other points, beside these.
    assert opened(miss=0.5).virtual_points.path != dataset.virtual_points.path
    monkeypatch.setattr(virtual_point_files, "_Sweeps", None)
    opened().prepare(painted, SilentReporter())
