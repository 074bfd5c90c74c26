"""Generation of worlds, scene by scene and optionally in parallel.

A world is complete or absent: it is written to a temporary folder, which is then renamed. Beside the files of its
format, its folder holds world.json: the version of the generator, the content hash and the configuration.
"""

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from filelock import FileLock

from bevkd_common.config.datasets.world import GENERATOR_VERSION
from bevkd_common.config.records import Record, read_record
from bevkd_common.errors import UserError
from bevkd_common.files import folder_when_complete, writing

from .recording import record
from .scene import draw_scene
from .writer import Folder, Rows, Writer


class _World(Record):
    """What is read of world.json."""

    content_hash: str


def ensure_world(
    writer: Writer[Rows], root: Path, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Returns the folder of a world. Generates the world first if the folder does not exist.

    Args:
        writer: Configuration and format of the world.
        root: Folder that holds data sets; the world is `root / writer.name`.
        workers: Number of processes. The bytes do not depend on it.
        progress: Called after each scene with the number of finished scenes and of all scenes.

    Raises:
        UserError: If the folder is there and no complete world.
        CannotWriteError: If a file cannot be written, as on a full disk.
    """
    target = root / writer.name
    if _is_complete(target):
        return target
    with writing(target):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{writer.name}.lock")
        lock.acquire()
    try:
        # Another process may have finished the same world while this one waited.
        if not _is_complete(target):
            if target.exists():
                raise UserError(f"{target} is no complete world: move it away, and run the same command again")
            with folder_when_complete(target) as scratch:
                _write_world(writer, scratch, workers, progress)
    finally:
        lock.release()
    return target


def _is_complete(world: Path) -> bool:
    return (world / "world.json").is_file()


def content_hash(data_root: Path) -> str:
    """Returns the content hash of a synthetic data set. Equal hashes mean equal bytes in every file.

    The hash is the sha256 of the lines "<relative path> <sha256 of the file>", sorted by path, over all files but
    `world.json`, which holds the hash.

    Raises:
        UserError: If the folder is not a complete synthetic data set.
    """
    path = data_root / "world.json"
    if not path.is_file():
        raise UserError(f"{data_root} is no complete synthetic data set: it has no world.json; generate it again")
    return read_record(path, _World, "move the folder of the world away, and generate it again").content_hash


def _write_world(
    writer: Writer[Rows], root: Path, workers: int, progress: Callable[[int, int], None] | None
) -> None:
    config = writer.config
    written: dict[int, tuple[Rows, dict[str, str]]] = {}

    def note(index: int, scene: tuple[Rows, dict[str, str]]) -> None:
        written[index] = scene
        if progress is not None:
            progress(len(written), config.scenes)

    if workers <= 1:
        for index in range(config.scenes):
            note(index, write_scene(writer, index, root))
    else:
        # Forking a process that runs threads is unsafe.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
            futures = {pool.submit(write_scene, writer, index, root): index for index in range(config.scenes)}
            try:
                for future in as_completed(futures):
                    note(futures[future], future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    folder = Folder(root)
    scenes = [written[index] for index in range(config.scenes)]
    for _, digests in scenes:
        folder.digests.update(digests)
    writer.write_shared([rows for rows, _ in scenes], folder)
    lines = "".join(f"{name} {folder.digests[name]}\n" for name in sorted(folder.digests))
    world = {
        "generator_version": GENERATOR_VERSION,
        "content_hash": hashlib.sha256(lines.encode()).hexdigest(),
        "config": config.model_dump(mode="json"),
    }
    path = root / "world.json"
    with writing(path):
        path.write_text(json.dumps(world, indent=2) + "\n", encoding="utf-8")


def _end_with_parent() -> None:
    """End this process when its parent is gone; a worker of a killed parent would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def write_scene(writer: Writer[Rows], index: int, root: Path) -> tuple[Rows, dict[str, str]]:
    """Draws, records and writes scene `index`; returns its rows and the sha256 of its files."""
    folder = Folder(root)
    recording = record(writer.config, draw_scene(writer.config, index), writer.rig(index))
    return writer.write_scene(recording, folder), folder.digests
