#!/usr/bin/env bash
# Installs a wheel as a user would, away from the sources, and uses it there; the first failure ends it.
#
#   release/smoke.sh dist/cvt_torch-0.1.0-py3-none-any.whl
#
# The environment takes 5 GB under $TMPDIR for some minutes, most of it PyTorch, and is then removed.
set -euo pipefail

wheel=$(realpath "$1")
sources=$(realpath "$(dirname "$0")/..")
room=$(mktemp -d)
trap 'code=$?; rm -rf "$room"; [ $code = 0 ] || echo "FAILED: the wheel does not work" >&2' EXIT

# Only the wheel may be found, and nothing may be downloaded once it is installed.
unset PYTHONPATH
export PYTHONNOUSERSITE=1 HF_HUB_OFFLINE=1 PIP_DISABLE_PIP_VERSION_CHECK=1

step() {
    echo "== $*"
    "$@"
}

mkdir "$room/empty"
cp "$sources/examples/shirt.png" "$room/empty/"
cd "$room/empty"
step "${PYTHON:-python3}" -m venv "$room/venv"
step "$room/venv/bin/pip" install --quiet --constraint "$sources/constraints.txt" "$wheel"
step "$room/venv/bin/pip" check
du -sh "$room/venv"

PATH=$room/venv/bin:$PATH
step cvt --version
step cvt predict shirt.png
step cvt info cvt_13
# The recipe's warm-up takes two epochs.
step cvt train --epochs 1 --optim.warmup_epochs 0 --output run --quiet
step cvt evaluate --model run
step python -c '
import sys
from importlib.metadata import version
import cvt
assert cvt.__file__.startswith(sys.prefix), cvt.__file__
assert cvt.__version__ == version("cvt-torch")
assert cvt.load_model("run")[1].classes == tuple("0123456789")
assert all(getattr(cvt, name) for name in cvt.__all__)'

for file in run/best.safetensors run/report.html; do
    [ -s "$file" ] || { echo "cvt train wrote no $file" >&2; exit 1; }
done
echo "== the wheel works"
