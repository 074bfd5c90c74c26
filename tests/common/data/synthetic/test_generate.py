import json
import subprocess
import sys
from hashlib import sha256

import pytest
from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data.synthetic import content_hash, ensure_world, generate
from bevkd_common.data.synthetic.__main__ import main
from bevkd_common.data.synthetic.nuscenes import NuScenesWriter
from bevkd_common.errors import UserError

TINY = WorldConfig(
    seed=2, train_scenes=2, val_scenes=1, keyframes_per_scene=1, lidar_azimuths=90, image_size=(16, 44)
)
WRITER = NuScenesWriter(TINY)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The tiny world, and what its progress said."""
    calls = []
    root = tmp_path_factory.mktemp("made")
    return ensure_world(WRITER, root, progress=lambda done, total: calls.append((done, total))), calls


def files(folder):
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def test_bytes_do_not_depend_on_the_number_of_processes(made, tmp_path):
    one, two = made[0], ensure_world(WRITER, tmp_path, workers=2)
    first, second = files(one), files(two)
    # Per scene: 5 sweeps, 2 images and 2 masks of 6 cameras, 1 list of masks, 8 CAN-bus files, 1 map; 13 tables,
    # splits.json, world.json.
    assert len(first) == 3 * (5 + 24 + 1 + 8 + 1) + 15
    assert first.keys() == second.keys()
    assert all(first[name].read_bytes() == second[name].read_bytes() for name in first)
    assert content_hash(one) == content_hash(two)


def test_the_content_hash_covers_every_file(made):
    lines = "".join(
        f"{name} {sha256(path.read_bytes()).hexdigest()}\n"
        for name, path in sorted(files(made[0]).items())
        if name != "world.json"
    )
    assert content_hash(made[0]) == sha256(lines.encode()).hexdigest()


def test_another_seed_is_another_world(made):
    other = ensure_world(NuScenesWriter(TINY.model_copy(update={"seed": 3})), made[0].parent)
    assert other.parent == made[0].parent
    assert other != made[0]
    assert content_hash(other) != content_hash(made[0])


def test_a_finished_world_is_left_alone(made, monkeypatch):
    path, calls = made
    assert calls == [(1, 3), (2, 3), (3, 3)]
    monkeypatch.setattr(generate, "write_scene", lambda *_: pytest.fail("made again"))
    assert ensure_world(WRITER, path.parent) == path == path.parent / TINY.name()
    record = json.loads((path / "world.json").read_text())
    assert WorldConfig.model_validate(record["config"]) == TINY


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interrupted_world_leaves_nothing(tmp_path, monkeypatch, interruption):
    def interrupt(done, total):
        if done == 2:
            raise interruption

    with pytest.raises(interruption):
        ensure_world(WRITER, tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_stops_all_processes(tmp_path):
    many = NuScenesWriter(TINY.model_copy(update={"train_scenes": 40}))

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_world(many, tmp_path, workers=2, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_make_the_same_world_the_second_yields(tmp_path):
    def rival(done, total):
        if done == total:
            ensure_world(WRITER, tmp_path)

    path = ensure_world(WRITER, tmp_path, progress=rival)
    assert [entry.name for entry in tmp_path.iterdir()] == [TINY.name()]
    assert len(content_hash(path)) == 64


def test_what_is_no_world_has_no_hash(tmp_path):
    with pytest.raises(UserError, match=r"has no world\.json; generate it again"):
        content_hash(tmp_path)


def test_making_worlds_does_not_import_torch():
    code = "import sys, bevkd_common.data.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_module_is_a_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "bevkd_common.data.synthetic.__main__.WorldConfig", lambda seed: TINY.model_copy(update={"seed": seed})
    )
    monkeypatch.setattr(sys, "argv", ["synthetic", "--out", str(tmp_path), "--seed", "2"])
    main()
    output = capsys.readouterr()
    assert output.out == f"{tmp_path / TINY.name()}\n"
    assert output.err.endswith("scene 3 of 3\n")
