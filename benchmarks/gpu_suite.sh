#!/usr/bin/env bash
# One command on a machine with an NVIDIA GPU and no network: build, test, sanitize, measure.
#
#   benchmarks/gpu_suite.sh [--quick] [--dry-run]
#
# --quick ends within 8 minutes; without it the full grid runs (hours). Everything is written to
# ${OUT:-records/bench/<device>}: summary.txt, gpu.jsonl, outputs.npz, checks.log, bench.log, and of
# a full run three figures: at most 8 files. The last lines are a table of at most 40 lines.
# Checks run beside each other, on all cores; the benchmark runs alone.
# Without a GPU it lists what it would do and changes nothing.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

quick=0 dry=0
for word in "$@"; do
  case "$word" in
    --quick) quick=1 ;;
    --dry-run) dry=1 ;;
    *) echo "gpu_suite.sh: unknown option '$word'; use --quick or --dry-run" >&2; exit 2 ;;
  esac
done

python="${PYTHON:-python3}"
has_gpu=0 arch=- name=no-gpu
if command -v nvidia-smi >/dev/null 2>&1 || [ -e /dev/nvidia0 ]; then
  found="$("$python" - <<'PY'
import re
import sys

try:
    import torch
except ImportError:
    sys.exit(3)
if torch.cuda.is_available():
    major, minor = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    print(1, f"{major}{minor}", re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"))
else:
    print(0, "-", "no-gpu")
PY
  )"
  if [ $? -eq 3 ]; then
    echo "gpu_suite.sh: $python has no torch; name another with PYTHON=..." >&2
    exit 2
  fi
  read -r has_gpu arch name <<<"$found"
fi
[ "$has_gpu" = 1 ] || dry=1
out="${OUT:-records/bench/$name}"
cores="$(nproc)"

# Seconds each step may take at most. Build and Triton's tests share the first of two stages, the
# other checks and the warm-up the second. With --quick the benchmark gets what the stages leave of
# $total_s, so that all ends within 8 minutes.
total_s=455
if [ "$quick" = 1 ]; then
  build_s=90 tests_s=110 checks_s=80 bench_s=$total_s figures_s=15
else
  build_s=900 tests_s=3600 checks_s=3600 bench_s=28800 figures_s=300
fi
grid=()
[ "$quick" = 0 ] || grid=(--quick)
# A backend that did not build is no reason to measure nothing: the records say that it is absent.
lacking=(--allow-missing cuda --allow-missing triton)
# Seconds of a first call in the benchmark, after which it counts as hanging.
patience_s=60

# step NAME SECONDS LOG COMMAND...: run, log, remember how it went; the suite goes on either way.
step() {
  local title="$1" seconds="$2" log="$3" start=$SECONDS code
  shift 3
  if [ "$dry" = 1 ]; then
    printf 'would run, at most %4s s: %-13s %s\n' "$seconds" "$title" "$*"
    return 0
  fi
  echo "== $title: $*" | tee -a "$out/$log"
  # Steps beside each other share a log: each line says whose it is.
  timeout --kill-after=5 "$seconds" "$@" > >(sed -u "s/^/$title: /" >>"$out/$log") 2>&1
  code=$?
  local word="ok"
  [ $code -eq 124 ] || [ $code -eq 137 ] && word="stopped after $((SECONDS - start)) s"
  [ $code -ne 0 ] && [ $code -ne 124 ] && [ $code -ne 137 ] && word="failed ($code)"
  [ $code -eq 0 ] || echo "$title" >>"$scratch/failed"
  printf '%-13s %-24s %4d s  %s\n' "$title" "$word" $((SECONDS - start)) "$log" >>"$scratch/state"
  return $code
}

skip() {
  if [ "$dry" = 1 ]; then
    printf 'would skip: %-13s %s\n' "$1" "$2"
  else
    printf '%-13s skipped: %s\n' "$1" "$2" >>"$scratch/state"
  fi
}

build() {
  # No step of a GPU needs the CPU kernels; the full run measures hosts beside them.
  [ "$quick" = 1 ] || step build-cpu "$build_s" checks.log env SEDE_BUILD_CPU=auto SEDE_BUILD_CUDA=0 \
    "$python" setup.py build_ext --inplace
  if "$python" sede_kernels/backends/cuda/nvcc.py >/dev/null 2>&1; then
    step build-cuda "$build_s" checks.log env SEDE_BUILD_CPU=0 SEDE_BUILD_CUDA=1 \
      SEDE_CUDA_ARCHS="$arch" "$python" setup.py build_ext --inplace
  else
    skip build-cuda "no nvcc; the Triton backend needs none"
  fi
}

# tests BACKEND WORKERS: fp64 comparison on fresh inputs, poisoned outputs, 100 repeats bitwise
# equal. Several processes compile at once, and a kernel that takes the GPU from one process leaves
# the others'.
tests() {
  local many=()
  "$python" -c 'import xdist' 2>/dev/null && many+=(-n "$2")
  "$python" -c 'import pytest_timeout' 2>/dev/null &&
    many+=(--timeout $((tests_s - 15)) --timeout-method thread) # a test compiles up to ten kernels
  step "tests-$1" "$tests_s" checks.log env SEDE_GPU_BACKEND="$1" "$python" -m pytest tests/gpu \
    -q -m gpu -p no:cacheprovider ${many[@]+"${many[@]}"}
}

# Tiny sizes of every kernel for the sanitizers; the quick run takes one op of each family.
tiny=()
ops=(info_nce erase_mean enqueue scan_t2i)
[ "$quick" = 1 ] || ops=('*info_nce*' 'hardest' 'erase_*' 'enqueue' 'scan_*' 'bfan_*')
for op in "${ops[@]}"; do tiny+=(--op "$op"); done

sanitize() {
  local tool kind only
  if ! tool="$(command -v compute-sanitizer)"; then
    skip sanitizer "compute-sanitizer is not installed"
    return
  fi
  for kind in memcheck racecheck; do
    # A library may ask the driver what it refuses; that is no fault of a kernel.
    only=()
    [ "$kind" = memcheck ] && "$tool" --help 2>/dev/null | grep -q -- --report-api-errors &&
      only=(--report-api-errors no)
    # Each tensor is an allocation of its own, so that a stray access is none to a neighbour.
    step "$kind" "$checks_s" checks.log env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$tool" --tool "$kind" \
      --error-exitcode 9 --target-processes application-only "${only[@]}" \
      "$python" -m benchmarks.run --smoke --device cuda --no-figures "${lacking[@]}" "${tiny[@]}" \
      --impl 'sede triton' --impl 'sede cuda' --out "$scratch/$kind.jsonl" &
  done
  wait
}

# warm NAME SECONDS JOBS OPTIONS...: first calls in many processes, for the compilers' caches.
warm() {
  step "$1" "$2" checks.log "$python" -m benchmarks.warm --jobs "$3" --patience "$2" "${@:4}"
}

warm_tiny() { warm warm-tiny "$tests_s" $((cores / 4 + 1)) --smoke "${tiny[@]}"; }
warm_grid() { warm warm-up "$checks_s" $((cores > 4 ? cores - 4 : 1)) "${grid[@]}"; }

outputs() {
  # What the kernels gave, to be compared with the PTX machine's: docs/ptx.md.
  step outputs "$checks_s" checks.log "$python" -m tests.ptx.outputs --gpu "$out/outputs.npz"
}

measure() {
  local start=$SECONDS left at="$scratch/benchmark.json"
  for _ in 1 2 3 4 5 6; do # after a crash, a hang or a lost GPU another process goes on
    left=$((quick ? total_s - SECONDS : bench_s - SECONDS + start))
    [ "$dry" = 1 ] || [ "$left" -gt 30 ] || break
    # No case starts in the last 25 s: one with compilers may take that long.
    step benchmark "$left" bench.log "$python" -m benchmarks.run --device cuda --no-figures \
      "${lacking[@]}" "${grid[@]}" --seconds $((left - 25)) --resume "$at" \
      --patience "$patience_s" --out "$out/gpu.jsonl"
    [ -e "$at" ] || break
  done
  step ahead 20 bench.log "$python" -m benchmarks.run ahead "$out/gpu.jsonl" \
    --order sede_kernels/backends/order.json --device "sm_$arch"
  [ "$quick" = 1 ] || step figures "$figures_s" bench.log "$python" -m benchmarks.run plot \
    "$out/gpu.jsonl" --out "$scratch/figures"
}

report() {
  {
    "$python" -m benchmarks.run table "$out/gpu.jsonl" --lines 14 2>/dev/null ||
      echo "no results in $out/gpu.jsonl"
    echo
    cat "$scratch/state"
    grep -E '^tests-[a-z]+: .*[0-9]+ (passed|failed|error).* in [0-9]' "$out/checks.log"
    mapfile -t failed <"$scratch/failed"
    echo "${#failed[@]} steps failed${failed[*]:+: ${failed[*]}}; $SECONDS s; files in $out"
    "$python" -m benchmarks.run ahead "$out/gpu.jsonl" 2>/dev/null | head -n 12
  } | head -n 40 | tee "$out/summary.txt"
}

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Each of many processes compiles for itself.
export TORCHINDUCTOR_COMPILE_THREADS=1
scratch=""
if [ "$dry" = 1 ]; then
  scratch="<scratch>"
  [ "$has_gpu" = 1 ] || echo "no NVIDIA GPU here: a dry run, nothing is built, run or written"
  echo "results would go to $out"
else
  mkdir -p "$out" || exit 2
  scratch="$(mktemp -d)" || exit 2
  trap 'rm -rf "$scratch"' EXIT
  : >"$scratch/failed" >"$scratch/state"
fi

# beside COMMAND...: each a function with its arguments in one word, all at the same time.
beside() {
  local job
  for job in "$@"; do
    if [ "$dry" = 1 ]; then $job; else $job & fi
  done
  wait
}

beside build warm_tiny "tests triton $((cores > 4 ? cores - 4 : cores))"
beside "tests cuda $((cores / 4 + 1))" outputs sanitize warm_grid
measure
[ "$dry" = 1 ] && { echo "would end with a table of at most 40 lines"; exit 0; }
# The figures of a full run come as PNG.
find "$scratch/figures" -name '*.png' -exec cp {} "$out/" \; 2>/dev/null
for log in "$out"/*.log; do # the end says what went wrong; 8 MB of it is enough
  [ "$(wc -c <"$log")" -le 8000000 ] || { tail -c 8000000 "$log" >"$scratch/end" && cp "$scratch/end" "$log"; }
done
report
[ ! -s "$scratch/failed" ]
