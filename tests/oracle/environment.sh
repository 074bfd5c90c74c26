#!/usr/bin/env bash
# Build .oracle/, an environment in which mmdet3d 1.4.0 runs on a CPU beside this workspace, then compare: the recorded
# files with mmdet3d, and mmdet3d as a teacher with our CenterPoint. What is there is skipped.
# Compiling mmcv takes minutes; MAX_JOBS bounds its processes.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=.oracle
python=$folder/bin/python
export VIRTUAL_ENV="$PWD/$folder" PATH="$PWD/$folder/bin:$PATH"
# mmdet3d's packages know neither numpy 2 nor the setuptools that lost pkg_resources.
limits=('numpy<2' 'setuptools<80')

step() { # what, command...
  local what=$1
  shift
  "$@" || { echo "oracle: could not $what; the lines above say why" >&2; exit 1; }
}

compile_mmcv() {
  local sources=$folder/sources
  rm -rf "$sources"
  "$python" -m pip download --quiet --no-deps --no-build-isolation --no-binary mmcv -d "$sources" mmcv==2.1.0 ||
    return 1
  tar -xzf "$sources"/mmcv-2.1.0.tar.gz -C "$sources" || return 1
  # It asks for C++17, which the headers of torch no longer take.
  sed -i 's/-std=c++17/-std=c++20/' "$sources"/mmcv-2.1.0/setup.py || return 1
  MMCV_WITH_OPS=1 uv pip install --no-build-isolation --no-deps "$sources"/mmcv-2.1.0
}

[ -x "$python" ] || step "make $folder" uv venv --quiet --seed --python 3.11 "$folder"
step "install torch" uv pip install --quiet torch torchvision wheel ninja psutil "${limits[@]}"
step "install mmdet3d" uv pip install --quiet --no-deps mmengine==0.10.7 mmdet==3.3.0 mmdet3d==1.4.0
# What they import; their own lists ask for much that no detector needs.
step "install the workspace and what mmdet3d imports" uv pip install --quiet "${limits[@]}" \
  -e cli -e 'packages/common[cu120]' -e packages/distillbev pytest hypothesis \
  addict 'matplotlib<3.10' numba 'nuscenes-devkit==1.2.0' 'opencv-python-headless<4.12' plyfile pycocotools \
  pyyaml rich scikit-image shapely six termcolor terminaltables trimesh yapf
"$python" -W ignore -c 'import torch, mmcv._ext' 2>/dev/null || step "compile mmcv" compile_mmcv

step "find what was recorded" "$python" -W ignore tests/oracle/record.py
step "pass the tests of the oracle" "$python" -m pytest -q tests/oracle
