"""The content that a seed gives, compared with digests recorded when the generator's version was last raised.

The digests cover every file of a small world and do not depend on the machine. Images are compared as decoded
pixels, points to a millimetre, and numbers in JSON to six decimals. OpenBLAS runs the same kernels on every
processor: where two faces coincide, the last bit of a product decides which of them a ray meets.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bevkd_common.config.datasets.world import GENERATOR_VERSION, WorldConfig
from PIL import Image

CONFIG = WorldConfig(
    seed=17, train_scenes=3, val_scenes=1, keyframes_per_scene=2, image_size=(32, 88), lidar_azimuths=180
)
MAKE = """
import sys
from pathlib import Path
from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data.synthetic import ensure_world
from bevkd_common.data.synthetic.nuscenes import NuScenesWriter

config = WorldConfig.model_validate_json(sys.argv[1])
ensure_world(NuScenesWriter(config), Path(sys.argv[2]))
"""
RECORDED = {
    "can_bus": "31ef955c062f39d19b3ed51aa2d9202c1d2528c9b7987d55cb4f256981a1fe26",
    "maps": "52fae0495be6861f23d0015a9b94c09ed6d30811c42fe0d454cb839a243d3efc",
    "masks": "b624f43389e341345433bb0354738b76d4dddfc995b214a4fc7aa862708654bd",
    "samples": "d170f30a4e680e7eef617d958af61803c0306dac772bced53add8adb8fd64169",
    "sweeps": "ff1d03efa7c5685a211ac8a6dac1b2f133565a53262959337af1edb806dca81b",
    "v1.0-synthetic": "8a5f3bcd9b14157964dea7938ff08eb4ee48d8d0e547963eed5bbd2ed7ce1b36",
    "world.json": "10268cc57774f3fedd2e701cfce75a134c9d1b699e30af378542609cb61c946d",
}


@pytest.fixture(scope="module")
def digests(tmp_path_factory) -> dict[str, str]:
    """Digest of each top-level entry of the world, over the sorted paths and the contents of its files."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the digests were recorded with the x86 kernels of OpenBLAS")
    folder = tmp_path_factory.mktemp("seeded")
    # OpenBLAS reads the variable when numpy is imported. Every x86 build has the kernels of this processor.
    subprocess.run(
        [sys.executable, "-c", MAKE, CONFIG.model_dump_json(), str(folder)],
        env=os.environ | {"OPENBLAS_CORETYPE": "Prescott"},
        check=True,
    )
    root = folder / CONFIG.name()
    hashes = {}
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*")):
        if path.is_file():
            digest = hashes.setdefault(name.split("/")[0], hashlib.sha256())
            digest.update(f"{name} {hashlib.sha256(content(path)).hexdigest()}\n".encode())
    return {name: digest.hexdigest() for name, digest in hashes.items()}


def content(path: Path) -> bytes:
    """The content of a file in a form that does not depend on the platform."""
    if path.suffix in (".jpg", ".png"):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        return f"{pixels.shape} {pixels.dtype} ".encode() + pixels.tobytes()
    if path.suffix == ".json":
        # The order of keys and rows counts, as it does for the bytes.
        value = json.loads(path.read_text(encoding="utf-8"), parse_float=lambda text: round(float(text), 6) + 0.0)
        if path.name == "world.json":
            del value["content_hash"]
        return json.dumps(value).encode()
    if path.name.endswith(".pcd.bin"):
        # Adding 0 turns -0 into 0.
        return (np.round(np.fromfile(path, np.float32), 3) + 0).tobytes()
    return path.read_bytes()


def test_the_content_of_a_seed_is_the_recorded_one(digests):
    assert digests == RECORDED, f"raise GENERATOR_VERSION (now {GENERATOR_VERSION}) if the change is intended"


def test_the_recorded_content_covers_every_kind_of_file():
    assert set(RECORDED) == {"can_bus", "maps", "masks", "samples", "sweeps", "v1.0-synthetic", "world.json"}
