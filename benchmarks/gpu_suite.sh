#!/usr/bin/env bash
# One command on a machine with an NVIDIA GPU and no network: build, test, sanitize, measure.
#
#   benchmarks/gpu_suite.sh [--quick] [--dry-run]
#
# --quick ends within 8 minutes; without it the full grid runs (hours). Everything is written to
# ${OUT:-records/bench/<device>}: summary.txt, gpu.jsonl, tests.log, sanitizer.log, bench.log
# and three figures at most (8 files). The last lines are a table of at most 40 lines.
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
  if ! "$python" -c 'import torch' 2>/dev/null; then
    echo "gpu_suite.sh: $python has no torch; name another with PYTHON=..." >&2
    exit 2
  fi
  read -r has_gpu arch name < <("$python" - <<'PY'
import re
import torch

if torch.cuda.is_available():
    major, minor = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    print(1, f"{major}{minor}", re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"))
else:
    print(0, "-", "no-gpu")
PY
  )
fi
[ "$has_gpu" = 1 ] || dry=1
out="${OUT:-records/bench/$name}"

# Seconds each step may take at most; builds and sanitizer runs come in twos. With --quick the
# benchmark gets what the others leave of $total_s, so that all ends within 8 minutes.
total_s=455
if [ "$quick" = 1 ]; then
  build_s=60 tests_s=90 sanitizer_s=45 bench_s=$total_s figures_s=15
else
  build_s=900 tests_s=3600 sanitizer_s=1800 bench_s=28800 figures_s=300
fi

failed=()
state=()

# step NAME SECONDS LOG COMMAND...: run, log, remember how it went; the suite goes on either way.
step() {
  local title="$1" seconds="$2" log="$3" start=$SECONDS code
  shift 3
  if [ "$dry" = 1 ]; then
    printf 'would run, at most %4s s: %-13s %s\n' "$seconds" "$title" "$*"
    return 0
  fi
  echo "== $title: $*" | tee -a "$out/$log"
  timeout --kill-after=5 "$seconds" "$@" >>"$out/$log" 2>&1
  code=$?
  local word="ok"
  [ $code -eq 124 ] && word="stopped after $seconds s"
  [ $code -ne 0 ] && [ $code -ne 124 ] && word="failed ($code)"
  [ $code -eq 0 ] || failed+=("$title")
  state+=("$(printf '%-13s %-24s %4d s  %s' "$title" "$word" $((SECONDS - start)) "$log")")
  return $code
}

build() {
  step build-cpu "$build_s" bench.log env SEDE_BUILD_CPU=auto "$python" setup.py build_ext --inplace
  if [ ! -d csrc/cuda ]; then
    skip build-cuda "this version has no CUDA sources"
  elif "$python" sede_kernels/backends/cuda/nvcc.py >/dev/null 2>&1; then
    step build-cuda "$build_s" bench.log env SEDE_BUILD_CUDA=1 SEDE_CUDA_ARCHS="$arch" \
      "$python" setup.py build_ext --inplace
  else
    skip build-cuda "no nvcc; the Triton backend needs none"
  fi
}

skip() {
  if [ "$dry" = 1 ]; then
    printf 'would skip: %-13s %s\n' "$1" "$2"
  else
    state+=("$(printf '%-13s skipped: %s' "$1" "$2")")
  fi
}

tests() {
  # fp64 comparison on fresh inputs, poisoned outputs, 100 repeats bitwise equal: tests/gpu.
  step gpu-tests "$tests_s" tests.log "$python" -m pytest tests/gpu -q -m gpu -p no:cacheprovider
}

sanitize() {
  local tool
  if ! tool="$(command -v compute-sanitizer)"; then
    skip sanitizer "compute-sanitizer is not installed"
    return
  fi
  # Tiny sizes of every kernel; the quick run takes one op of each family.
  local kind op chosen=() ops=(info_nce erase_mean enqueue scan_t2i)
  [ "$quick" = 1 ] || ops=('*info_nce*' 'hardest' 'erase_*' 'enqueue' 'scan_*' 'bfan_*')
  for op in "${ops[@]}"; do chosen+=(--op "$op"); done
  for kind in memcheck racecheck; do
    step "$kind" "$sanitizer_s" sanitizer.log "$tool" --tool "$kind" --error-exitcode 9 \
      "$python" -m benchmarks.run --smoke --device cuda --no-figures "${chosen[@]}" \
      --impl 'sede triton' --impl 'sede cuda' --out "$scratch/$kind.jsonl"
  done
}

measure() {
  local grid=()
  if [ "$quick" = 1 ]; then
    bench_s=$((total_s - SECONDS - figures_s))
    # No case starts in the last 40 s: one with compilers may take that long.
    grid=(--quick --seconds $((bench_s - 40)))
  fi
  step benchmark "$bench_s" bench.log "$python" -m benchmarks.run --device cuda --no-figures \
    --out "$out/gpu.jsonl" ${grid[@]+"${grid[@]}"}
  step ahead 20 bench.log "$python" -m benchmarks.run ahead "$out/gpu.jsonl" \
    --order sede_kernels/backends/order.json --device "sm_$arch"
  step figures "$figures_s" bench.log "$python" -m benchmarks.run plot "$out/gpu.jsonl" \
    --out "$scratch/figures"
}

report() {
  {
    "$python" -m benchmarks.run table "$out/gpu.jsonl" --lines 14 2>/dev/null ||
      echo "no results in $out/gpu.jsonl"
    echo
    printf '%s\n' "${state[@]}"
    echo "${#failed[@]} steps failed${failed[*]:+: ${failed[*]}}; $SECONDS s; files in $out"
    "$python" -m benchmarks.run ahead "$out/gpu.jsonl" 2>/dev/null | head -n 12
  } | head -n 40 | tee "$out/summary.txt"
}

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
scratch=""
if [ "$dry" = 1 ]; then
  scratch="<scratch>"
  [ "$has_gpu" = 1 ] || echo "no NVIDIA GPU here: a dry run, nothing is built, run or written"
  echo "results would go to $out"
else
  mkdir -p "$out" || exit 2
  scratch="$(mktemp -d)" || exit 2
  trap 'rm -rf "$scratch"' EXIT
  : >"$out/bench.log"
fi

build
tests
sanitize
measure
[ "$dry" = 1 ] && { echo "would end with a table of at most 40 lines"; exit 0; }
# At most 8 files: three logs, records, summary, and the figures as PNG.
find "$scratch/figures" -name '*.png' -exec cp {} "$out/" \; 2>/dev/null
for log in "$out"/*.log; do # the end says what went wrong; 8 MB of it is enough
  [ "$(wc -c <"$log")" -le 8000000 ] || { tail -c 8000000 "$log" >"$scratch/end" && cp "$scratch/end" "$log"; }
done
report
[ ${#failed[@]} -eq 0 ]
