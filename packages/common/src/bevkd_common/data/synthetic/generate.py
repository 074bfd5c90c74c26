"""Making a world: scene by scene, in parallel if asked, complete or not at all.

Layout of a data set:

    v1.0-synthetic/*.json    the thirteen tables and splits.json (which the devkit reads for custom splits)
    samples/ sweeps/ maps/   as in nuScenes; a map mask for each scene
    can_bus/                 the CAN-bus expansion
    masks/                   ours, outside the nuScenes schema: for each image a PNG of the same relative path
                             whose pixels are 0 or the number of an instance; masks/<scene>.json maps
                             numbers to instance tokens
    world.json               ours: the configuration and the content hash
"""

import hashlib
import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from bevkd_common.config.datasets.world import GENERATOR_VERSION, WorldConfig
from bevkd_common.errors import UserError

from .rig import VEHICLES, calibrate
from .scene import scene_names
from .scene_files import Folder, WrittenScene, write_scene
from .tables import TABLES, shared_tables

VERSION = "v1.0-synthetic"
TRAIN_SPLIT, VAL_SPLIT = "synthetic_train", "synthetic_val"


def ensure_world(
    config: WorldConfig, root: Path, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Returns the data set of a configuration, made first if it is not there.

    Args:
        config: what to make.
        root: folder that holds data sets; this one is `root / config.name()`.
        workers: processes to use; the bytes do not depend on it.
        progress: called with the scenes done and the scenes in all after each scene.
    """
    target = root / config.name()
    if (target / "world.json").is_file():
        return target
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{config.name()}-", dir=root))
    try:
        _write_world(config, scratch, workers, progress)
        # mkdtemp keeps others out; a data set is for everybody.
        scratch.chmod(0o755)
        scratch.rename(target)
    except OSError:
        # Another process may have finished the same world in the meantime.
        if not (target / "world.json").is_file():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def content_hash(data_root: Path) -> str:
    """Content hash of a complete synthetic data set: equal hashes mean equal bytes in every file.

    It is the sha256 of the lines "<relative path> <sha256 of the file>", sorted by path, over all files but
    `world.json`, which states it.

    Raises:
        UserError: the folder is no complete synthetic data set.
    """
    path = data_root / "world.json"
    if not path.is_file():
        raise UserError(f"{data_root} is no complete synthetic data set: it has no world.json; generate it again")
    return str(json.loads(path.read_text(encoding="utf-8"))["content_hash"])


def _write_world(
    config: WorldConfig, root: Path, workers: int, progress: Callable[[int, int], None] | None
) -> None:
    written: dict[int, WrittenScene] = {}

    def note(index: int, scene: WrittenScene) -> None:
        written[index] = scene
        if progress is not None:
            progress(len(written), config.scenes)

    if workers <= 1:
        for index in range(config.scenes):
            note(index, write_scene(config, index, root))
    else:
        # Spawned children share nothing with this process, whatever threads it runs.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = {pool.submit(write_scene, config, index, root): index for index in range(config.scenes)}
            try:
                for future in as_completed(futures):
                    note(futures[future], future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    folder = Folder(root)
    tables = shared_tables(config, {vehicle: calibrate(config, vehicle) for vehicle in VEHICLES})
    for index in range(config.scenes):
        folder.digests.update(written[index].digests)
        for name in TABLES:
            tables[name].extend(written[index].tables[name])
    for name in TABLES:
        folder.write_json(f"{VERSION}/{name}.json", tables[name])
    names = scene_names(config)
    splits = {TRAIN_SPLIT: names[: config.train_scenes], VAL_SPLIT: names[config.train_scenes :]}
    folder.write_json(f"{VERSION}/splits.json", splits)
    lines = "".join(f"{name} {folder.digests[name]}\n" for name in sorted(folder.digests))
    world = {
        "generator_version": GENERATOR_VERSION,
        "content_hash": hashlib.sha256(lines.encode()).hexdigest(),
        "config": config.model_dump(mode="json"),
    }
    (root / "world.json").write_text(json.dumps(world, indent=2) + "\n", encoding="utf-8")
