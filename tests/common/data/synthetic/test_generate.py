import json
import os
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest
from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data.synthetic import content_hash, ensure_world, generate
from bevkd_common.data.synthetic.__main__ import main
from bevkd_common.data.synthetic.nuscenes import NuScenesWriter
from bevkd_common.errors import CannotWriteError, UserError
from bevkd_common.files import folder_when_complete

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


def left(folder):
    """What stands in a folder beside locks."""
    return [entry.name for entry in folder.iterdir() if entry.suffix != ".lock"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interrupted_world_leaves_nothing(tmp_path, interruption):
    def interrupt(done, total):
        if done == 2:
            raise interruption

    with pytest.raises(interruption):
        ensure_world(WRITER, tmp_path, progress=interrupt)
    assert left(tmp_path) == []


def test_an_interruption_stops_all_processes(tmp_path):
    many = NuScenesWriter(TINY.model_copy(update={"train_scenes": 40}))

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_world(many, tmp_path, workers=2, progress=interrupt)
    assert left(tmp_path) == []


def test_of_two_that_make_the_same_world_the_second_waits_and_makes_nothing(tmp_path):
    begun, calls = threading.Event(), []

    def progress(done, total):
        calls.append(done)
        begun.set()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ensure_world, WRITER, tmp_path, progress=progress)
        assert begun.wait(timeout=60)
        second = pool.submit(ensure_world, WRITER, tmp_path, progress=progress)
        assert first.result() == second.result()
    assert calls == [1, 2, 3]
    assert left(tmp_path) == [TINY.name()]


def test_a_killed_generation_leaves_no_process_and_its_files_are_removed(tmp_path):
    code = f"""
import sys
from pathlib import Path
from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data.synthetic import ensure_world
from bevkd_common.data.synthetic.nuscenes import NuScenesWriter
if __name__ == "__main__":
    config = WorldConfig.model_validate({TINY.model_copy(update={"train_scenes": 400}).model_dump()!r})
    ensure_world(NuScenesWriter(config), Path(sys.argv[1]), 2, lambda done, total: print(done, flush=True))
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    worlds = tmp_path / "worlds"
    with subprocess.Popen([sys.executable, script, worlds], stdout=subprocess.PIPE, start_new_session=True) as one:
        assert one.stdout.readline() == b"1\n"
        group = os.getpgid(one.pid)
        one.kill()
    patience = time.monotonic() + 30
    while _is_alive(group) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not _is_alive(group)
    (partial,) = left(worlds)
    assert partial.endswith(".partial")
    with folder_when_complete(worlds / partial.removeprefix(".").removesuffix(".partial")) as again:
        assert again == worlds / partial
        assert list(again.iterdir()) == []


def _is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_folder_of_the_same_name_is_left_alone(tmp_path):
    path = tmp_path / TINY.name()
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no complete world: move it away"):
        ensure_world(WRITER, tmp_path)
    assert (path / "thesis.tex").read_text() == "years of work"


def test_a_full_disk_names_the_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(CannotWriteError, match=r"worlds.* cannot be written \(File too large\)"):
            ensure_world(WRITER, tmp_path / "worlds")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left(tmp_path / "worlds") == []


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
