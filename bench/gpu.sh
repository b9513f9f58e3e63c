#!/usr/bin/env bash
# On a machine with a GPU: build with CUDA, test, look for bad memory accesses, benchmark. Needs no network.
#   bash bench/gpu.sh [build] [test] [sanitize] [bench]     some of it; all of it without a word
# Results in $OUT (default bench/results/gpu); PYTHON chooses the interpreter. The benchmark alone takes 4 to 6 minutes.
# Exits with 1 if the build, a test, the memory checker or a result fails; says what is missing and goes on where it can.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results/gpu}
SITE=$PWD/build/gpu-site
PARTS=" ${*:-build test sanitize bench} "
failed=0

for part in $PARTS; do
  case $part in build | test | sanitize | bench) ;; *) echo "gpu.sh: no part '$part'; choose from build test sanitize bench"; exit 2 ;; esac
done
part() { [[ $PARTS == *" $1 "* ]]; }
mkdir -p "$OUT"

say() { printf '\n== %s\n' "$*"; }
has() { "$PYTHON" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)" 2>/dev/null; }
tool() { command -v "$1" || { [ -x "/usr/local/cuda/bin/$1" ] && echo "/usr/local/cuda/bin/$1"; }; }

say "machine"
"$PYTHON" - <<'PY'
import sys
from importlib import metadata, util
print("python", sys.version.split()[0])
for name in ("torch", "triton", "pybind11", "scikit-build-core", "pytest", "hypothesis", "pytest-timeout"):
    try: print(name, metadata.version(name))
    except metadata.PackageNotFoundError: print(name, "MISSING")
if util.find_spec("torch"):
    import torch
    print("device", torch.cuda.get_device_name() if torch.cuda.is_available() else "NONE")
PY
nvcc=$(tool nvcc) && { export CUDACXX=$nvcc; "$nvcc" --version | tail -2; } || echo "nvcc MISSING"
command -v cmake >/dev/null && cmake --version | head -1 || echo "cmake MISSING"

if part build; then
  say "build"
  missing=""
  [ -n "$nvcc" ] || missing+=" nvcc"
  has torch || missing+=" torch"
  has pybind11 || missing+=" pybind11"
  has scikit_build_core || missing+=" scikit-build-core"
  if [ -n "$missing" ]; then echo "cannot build, missing:$missing"; exit 1; fi
  rm -rf "$SITE"
  PULLBACK_CUDA=ON "$PYTHON" -m pip install --no-index --no-build-isolation --no-deps --target "$SITE" . || exit 1
fi
export PYTHONPATH=$SITE${PYTHONPATH:+:$PYTHONPATH}
"$PYTHON" -c "
import pullback, sys
if not pullback.__file__.startswith('$SITE'): sys.exit('another pullback comes first: ' + pullback.__file__)
from pullback import _cuda
from pullback.ops import available_backends
print('devices', _cuda.device_count(), 'backends', available_backends())" || exit 1

if part test; then
  say "tests marked gpu, and the rest of the ops room"
  if has pytest && has hypothesis && has pytest_timeout; then
    "$PYTHON" -m pytest -q tests -m gpu --junitxml "$OUT/gpu-tests.xml" 2>&1 | tail -30 || failed=1
    "$PYTHON" -m pytest -q tests/ops -m "not gpu" 2>&1 | tail -30 || failed=1
  else
    echo "not run: pytest, hypothesis or pytest-timeout is missing"; failed=1
  fi
fi

if part sanitize; then
  say "compute-sanitizer"
  if sanitizer=$(tool compute-sanitizer); then
    for check in memcheck racecheck; do
      "$sanitizer" --tool "$check" --error-exitcode 9 "$PYTHON" -m pytest -q -p no:cacheprovider tests/ops/test_cuda_decode.py \
        -m gpu -k "damage or (dense and (33 or 768))" >"$OUT/$check.txt" 2>&1
      code=$?
      tail -4 "$OUT/$check.txt"
      [ $code -eq 0 ] || { echo "$check: exit $code"; failed=1; }
    done
  else
    echo "not run: compute-sanitizer is missing"
  fi
fi

if part bench; then
  say "benchmark"
  "$PYTHON" -m bench --device cuda --out "$OUT" || failed=1
fi
exit $failed
