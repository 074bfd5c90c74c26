"""Engine, experiment, report and command line serve every data set: they name none."""

import re
from pathlib import Path

import bevkd
import bevkd_common

NAMES = re.compile(r"nuscenes|synthetic|kitti|painted|virtual", re.IGNORECASE)
COMMON = Path(bevkd_common.__file__).parent
ROOMS = (Path(bevkd.__file__).parent, COMMON / "engine", COMMON / "experiment", COMMON / "report")

ALLOWED = {
    # A made data set is labelled, whatever it is.
    "inputs.py": {"synthetic"},
    "render.py": {"synthetic"},
    "reporting.py": {"synthetic"},
    # The commands that make data: `data synth`, and `data virtual-points` of the data sets that have them.
    "data.py": {"nuscenes", "synthetic", "virtual"},
    # An optional package that is looked for.
    "doctor.py": {"nuscenes"},
    # The data set of the checkpoints that other code bases released.
    "weights.py": {"nuscenes"},
}


def test_no_room_above_the_data_names_a_data_set():
    files = [path for room in ROOMS for path in room.rglob("*.py")]
    found = {path.name: {word.lower() for word in NAMES.findall(path.read_text())} for path in files}
    assert len(files) >= 40
    assert {name: words for name, words in found.items() if words} == ALLOWED
