#!/usr/bin/env bash
# 2026-12-01, safetensors 0.8.0, Linux: `save_file` makes a file of mode 0600, whatever the umask.
#
# Expected: the mode of any new file (0644 under umask 022, 0664 under 002), as safetensors 0.4.5 gives, and as
# `numpy.savez` gives. A file that exists loses the mode that its owner gave it, because it is replaced, not written.
# `save`, which returns bytes, leaves the mode to the caller. Users who share weights on a common disk find that others
# cannot read them.
#
# Output seen:
#   0.4.5 umask 022: new 644, existing 664, save() 644, numpy 644
#   0.8.0 umask 022: new 600, existing 600, save() 644, numpy 644
#   0.8.0 umask 002: new 600, existing 600, save() 664, numpy 664
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cat > "$folder/look.py" <<'PYTHON'
import os
import sys

import numpy
import safetensors
from safetensors.numpy import save, save_file

mask = int(sys.argv[1], 8)
os.umask(mask)
arrays = {"a": numpy.zeros(3)}
with open("existing.safetensors", "w"):
    os.chmod("existing.safetensors", 0o664)
for name in ("new", "existing"):
    save_file(arrays, f"{name}.safetensors")
with open("bytes.safetensors", "wb") as file:
    file.write(save(arrays))
numpy.savez("numpy.npz", **arrays)
new, existing, by_bytes, npz = (
    oct(os.stat(name).st_mode & 0o777)[2:]
    for name in ("new.safetensors", "existing.safetensors", "bytes.safetensors", "numpy.npz")
)
print(
    f"{safetensors.__version__} umask {mask:03o}: new {new}, existing {existing}, save() {by_bytes}, numpy {npz}"
)
PYTHON
look() { # VERSION UMASK
  local place="$folder/$1-$2"
  mkdir "$place"
  (cd "$place" && "$folder/$1/bin/python" "$folder/look.py" "$2")
}
for version in 0.4.5 0.8.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "safetensors==$version" "numpy==1.26.4"
done
{ look 0.4.5 022; look 0.8.0 022; look 0.8.0 002; } | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   \(0\.[48]\..*\)$/\1/p' "$0")
echo "as stated"
