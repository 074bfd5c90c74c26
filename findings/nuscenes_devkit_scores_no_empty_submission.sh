#!/usr/bin/env bash
# 2026-12-01, nuscenes-devkit 1.2.0: a valid submission in which no sample has a box cannot be scored.
#
# Expected: mAP 0. The format allows an empty list for a sample, and a detector early in its training predicts nothing.
# `load_prediction` reads the file; `filter_eval_boxes`, the next step of `DetectionEval`, then fails, because it takes
# the type of all boxes from the first one. One box in any sample is enough for the others to stay empty.
#
# Output seen:
#   loaded: 2 samples, 0 boxes
#   no box at all: Exception: Error: Invalid box type: None
#   one box: filtered to 1
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cat > "$folder/look.py" <<'PYTHON'
import contextlib
import io
import json

from nuscenes.eval.common.loaders import filter_eval_boxes, load_prediction
from nuscenes.eval.detection.data_classes import DetectionBox

META = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": False}
BOX = {
    "sample_token": "a",
    "translation": [1.0, 2.0, 0.5],
    "size": [1.9, 4.6, 1.7],
    "rotation": [1.0, 0.0, 0.0, 0.0],
    "velocity": [0.0, 0.0],
    "detection_name": "car",
    "detection_score": 0.5,
    "attribute_name": "vehicle.parked",
}
FARTHEST = {"car": 50}


class Tables:
    """What the filter asks of the data set: no annotation stands in a bicycle rack."""

    def get(self, table, token):
        return {"anns": [], "data": {"LIDAR_TOP": ""}}


def filtered(results):
    with open("submission.json", "w") as file:
        json.dump({"meta": META, "results": results}, file)
    with contextlib.redirect_stdout(io.StringIO()):
        boxes, _ = load_prediction("submission.json", 500, DetectionBox)
        for box in boxes.all:
            box.ego_translation = box.translation
    yield boxes
    with contextlib.redirect_stdout(io.StringIO()):
        kept = filter_eval_boxes(Tables(), boxes, FARTHEST)
    yield kept


look = filtered({"a": [], "b": []})
boxes = next(look)
print(f"loaded: {len(boxes.sample_tokens)} samples, {len(boxes.all)} boxes")
try:
    print("no box at all:", next(look))
except Exception as error:
    print(f"no box at all: {type(error).__name__}: {error}")
*_, kept = filtered({"a": [BOX], "b": []})
print(f"one box: filtered to {len(kept.all)}")
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "nuscenes-devkit==1.2.0" "numpy==1.26.4"
(cd "$folder" && venv/bin/python look.py 2> errors || { cat errors; exit 1; }) | tee "$folder/seen"
diff "$folder/seen" <(sed -n '/^# Output seen:/,/^set/s/^#   //p' "$0")
echo "as stated"
