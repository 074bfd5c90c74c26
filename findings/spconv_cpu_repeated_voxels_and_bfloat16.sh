#!/usr/bin/env bash
# 2026-12-01, spconv-cu120 2.3.6 with torch 2.6.0, Python 3.11, on the CPU (`algo=ConvAlgo.Native`): a voxel that occurs
# twice is two voxels to a submanifold convolution, without an error, and bfloat16 is refused with a KeyError.
#
# Expected of a repeated voxel: an error, or the sum of both features in one row, as for a coordinate of a sparse tensor of
# torch. Seen: two rows, of which each reads its own feature and not that of the other, while neighbours read both. Whoever
# voxelises two sweeps apart and joins the results gets two answers for one place.
# Expected of bfloat16: a result, as of torch's own convolutions on the CPU.
#
# Output seen (a 3x3x3 kernel of ones; features 1 and 10 at the same voxel, 100 at its neighbour):
#   rows kept: 3
#   merged before: 111, 111
#   repeated: 101, 110, 111
#   bfloat16: KeyError: torch.bfloat16
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cat > "$folder/look.py" <<'PYTHON'
import torch
from spconv.core import ConvAlgo
from spconv.pytorch import SparseConvTensor, SubMConv3d

conv = SubMConv3d(1, 1, 3, bias=False, algo=ConvAlgo.Native)
torch.nn.init.ones_(conv.weight)


def look(features, places, dtype=torch.float32):
    tensor = SparseConvTensor(
        torch.tensor(features, dtype=dtype)[:, None], torch.tensor(places, dtype=torch.int32), [4, 4, 4], 1
    )
    with torch.no_grad():
        return conv.to(dtype)(tensor).features[:, 0]


HERE, BESIDE = [0, 1, 1, 1], [0, 1, 1, 2]
repeated = look([1.0, 10.0, 100.0], [HERE, HERE, BESIDE])
print("rows kept:", len(repeated))
print("merged before:", ", ".join(f"{value:g}" for value in look([11.0, 100.0], [HERE, BESIDE]).tolist()))
print("repeated:", ", ".join(f"{value:g}" for value in repeated.tolist()))
try:
    print("bfloat16:", look([1.0, 2.0], [HERE, BESIDE], torch.bfloat16).dtype)
except Exception as error:
    print(f"bfloat16: {type(error).__name__}: {error}")
PYTHON
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  "spconv-cu120==2.3.6" "torch==2.6.0" "numpy==1.26.4" "setuptools<80"
# spconv prints the arguments of a convolution that failed.
(cd "$folder" && venv/bin/python look.py 2> errors || { cat errors; exit 1; }) |
  grep -E "^(rows kept|merged before|repeated|bfloat16):" | tee "$folder/seen"
diff "$folder/seen" <(sed -n '/^# Output seen/,/^set/s/^#   //p' "$0")
echo "as stated"
