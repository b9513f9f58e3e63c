#!/usr/bin/env bash
# On a machine with a GPU: build with CUDA, test, look for bad memory accesses, tune, benchmark. Needs no network.
#   bash bench/gpu.sh [build] [test] [sanitize] [tune] [bench] [step]     some of it; all of it without a word
# In parts of less than ten minutes: "build test", "sanitize", "tune step", "bench". Each has so many seconds, keeps what it has when they are over, and leaves the next part its turn.
# What another run built is used again. Results are files in $OUT (default bench/results/gpu):
#   log.txt  gpu-tests.xml  host-tests.xml  sanitize.txt  tune.jsonl  table.json  ops.jsonl  step.jsonl
# PYTHON chooses the interpreter. Exits with 1 if the build, a test, a checker of memory or a result fails.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results/gpu}
SITE=$PWD/build/gpu-site
ALL="build test sanitize tune bench step"
PARTS=" ${*:-$ALL} "
failed=0

for part in $PARTS; do
  [[ " $ALL " == *" $part "* ]] || { echo "gpu.sh: no part '$part'; choose from $ALL"; exit 2; }
done
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1

part() { [[ $PARTS == *" $1 "* ]]; }
say() { printf '\n== %s  (%s s)\n' "$*" "$SECONDS"; }
has() { "$PYTHON" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)" 2>/dev/null; }
tool() { command -v "$1" || { [ -x "/usr/local/cuda/bin/$1" ] && echo "/usr/local/cuda/bin/$1"; }; }
# SECONDS COMMAND...: interrupted, so that it can write its results, and soon killed.
within() {
  timeout --signal=INT --kill-after=15 "$@"
  local code=$?
  [ $code -ne 124 ] && [ $code -ne 137 ] || echo "stopped after $1 s: ${*:2:6} ..."
  return $code
}

machine() {
  say "machine"
  "$PYTHON" - <<'PY'
import sys
from importlib import metadata, util
print("python", sys.version.split()[0])
for name in ("torch", "triton", "numpy", "pybind11", "scikit-build-core", "pytest", "hypothesis", "pytest-timeout", "pytest-xdist"):
    try: print(name, metadata.version(name))
    except metadata.PackageNotFoundError: print(name, "MISSING")
if util.find_spec("torch"):
    import torch
    print("device", torch.cuda.get_device_properties(0) if torch.cuda.is_available() else "NONE")
PY
  [ -n "$nvcc" ] && "$nvcc" --version | tail -2 || echo "nvcc MISSING"
  command -v cmake >/dev/null && cmake --version | head -1 || echo "cmake MISSING"
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu --format=csv 2>/dev/null
}

build() {
  say "build"
  local missing=""
  [ -n "$nvcc" ] || missing+=" nvcc"
  has torch || missing+=" torch"
  has pybind11 || missing+=" pybind11"
  has scikit_build_core || missing+=" scikit-build-core"
  if [ -n "$missing" ]; then echo "cannot build, missing:$missing"; return 1; fi
  local arch # of this GPU only: that is what is tested
  arch=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2>/dev/null) && export CUDAARCHS=$arch
  rm -rf "$SITE"
  PULLBACK_CUDA=ON within 200 "$PYTHON" -m pip install --quiet --no-index --no-build-isolation --no-deps --target "$SITE" .
}

tests() {
  say "tests on the GPU"
  if ! { has pytest && has hypothesis && has pytest_timeout; }; then
    echo "not run: pytest, hypothesis or pytest-timeout is missing"
    return 1
  fi
  local code=0 workers=()
  has xdist && workers=(-n 6)
  # Only rooms that do without other libraries than torch.
  within 240 "$PYTHON" -m pytest -q "${workers[@]}" tests/ops tests/training/test_step_gpu.py -m gpu --timeout 240 \
    --junitxml "$OUT/gpu-tests.xml" 2>&1 | grep -v ^SKIPPED | tail -40 || code=1
  say "the rest of the ops room"
  within 120 "$PYTHON" -m pytest -q "${workers[@]}" tests/ops -m "not gpu" --deselect tests/ops/test_triton_aot.py \
    --junitxml "$OUT/host-tests.xml" 2>&1 | grep -v ^SKIPPED | tail -15 || code=1
  return $code
}

sanitize() {
  say "compute-sanitizer"
  local sanitizer check code broken=0
  if ! sanitizer=$(tool compute-sanitizer); then echo "not run: compute-sanitizer is missing"; return 1; fi
  within 60 "$PYTHON" tools/every_kernel.py --names || broken=1 # also compiles what follows
  : >"$OUT/sanitize.txt"
  for check in memcheck racecheck synccheck initcheck; do
    # One allocation a tensor: else what lies beside it is memory like any other.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 within 125 "$sanitizer" --tool "$check" --error-exitcode 9 --print-limit 20 \
      "$PYTHON" tools/every_kernel.py >"$OUT/sanitize.part" 2>&1
    code=$?
    { echo "== $check: exit $code"; head -c 1000000 "$OUT/sanitize.part"; } >>"$OUT/sanitize.txt"
    echo "$check: exit $code  $(grep -a 'ERROR SUMMARY\|RACECHECK SUMMARY' "$OUT/sanitize.part" | tail -1)"
    # initcheck does not see what the tensor memory accelerator writes: it is told, not held against us.
    [ $code -eq 0 ] || [ $check = initcheck ] || broken=1
  done
  rm -f "$OUT/sanitize.part"
  return $broken
}

# NAME SECONDS ARGUMENTS...: the file of `python -m bench` as $OUT/NAME.jsonl
benchmark() {
  say "benchmark: $1"
  local code=0 folder
  folder=$(mktemp -d)
  within "$2" "$PYTHON" -m bench --device cuda --out "$folder" "${@:3}" || code=1
  mv "$folder"/*.jsonl "$OUT/$1.jsonl" || code=1
  rm -rf "$folder"
  return $code
}

tune() {
  say "which way to encode"
  PYTHONPATH=$PWD:$PYTHONPATH within 200 "$PYTHON" bench/tune_encoder.py --shapes 768x24576x32 2304x131072x64 \
    --out "$OUT/tune.jsonl" --write "$OUT/table.json" >/dev/null
  local code=$?
  [ -f "$OUT/tune.jsonl" ] && "$PYTHON" - "$OUT/tune.jsonl" <<'PY'
import json, sys
for r in map(json.loads, open(sys.argv[1])):
    took = r.get("error") or f"{r['ms']:8.3f} ms, {r['ms'] / r['gemm_ms']:.2f} GEMMs, {r['uncertain_rows']} uncertain"
    print(f"d={r['d']} F={r['F']} {r['dtype']:9} {r['way']:6} {r['block']} {list((r['tile'] or {}).values())} {took}")
PY
  # What was measured is what the benchmark then runs.
  [ -f "$OUT/table.json" ] && cp "$OUT/table.json" "$SITE/pullback/ops/gpu/table.json"
  return $code
}

main() {
  nvcc=$(tool nvcc) && export CUDACXX=$nvcc
  machine
  if part build || [ ! -d "$SITE/pullback" ]; then build || return 1; fi
  export PYTHONPATH=$SITE${PYTHONPATH:+:$PYTHONPATH}
  "$PYTHON" -c "
import pullback, sys
if not pullback.__file__.startswith('$SITE'): sys.exit('another pullback comes first: ' + pullback.__file__)
from pullback import _cuda
from pullback.ops import available_backends
print('devices', _cuda.device_count(), 'backends', available_backends())" || return 1
  part test && { tests || failed=1; }
  part sanitize && { sanitize || failed=1; }
  part tune && { tune || failed=1; }
  part bench && { benchmark ops 300 --ops $("$PYTHON" -c "from bench.ops import OPS; print(*OPS)") || failed=1; }
  part step && { say "a step, kernel by kernel"; within 90 "$PYTHON" -m bench.step.kernels || failed=1; }
  part step && { benchmark step 280 --ops step || failed=1; }
  say "done, failed: $failed"
  return $failed
}

main 2>&1 | tee "$OUT/log.txt"
exit "${PIPESTATUS[0]}"
