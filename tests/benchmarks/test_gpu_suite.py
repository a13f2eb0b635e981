"""benchmarks/gpu_suite.sh without a GPU: the dry run, and its flow with stand-ins."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the dry run is for machines without a GPU")
@pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
def test_gpu_suite_is_a_dry_run_without_a_gpu(tmp_path, quick):
    out = tmp_path / "out"
    words = ["bash", "benchmarks/gpu_suite.sh", *(["--quick"] if quick else [])]
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(out)}
    done = subprocess.run(
        words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    assert "a dry run" in done.stdout
    for step in ("tests-triton", "tests-cuda", "outputs", "warm-up", "benchmark"):
        assert re.search(rf"would run, at most +\d+ s: {step} ", done.stdout)
    for step in ("build-cpu", "figures"):
        assert (f": {step} " in done.stdout) is not quick
    assert "sanitizer" in done.stdout or "memcheck" in done.stdout
    assert len(done.stdout.splitlines()) <= 40
    assert not out.exists()


def test_gpu_suite_quick_fits_in_eight_minutes():
    script = (ROOT / "benchmarks" / "gpu_suite.sh").read_text()
    times = re.search(r"build_s=(\d+) tests_s=(\d+) checks_s=(\d+) bench_s=\$total_s", script)
    build, tests, checks = map(int, times.groups())
    total = int(re.search(r"^total_s=(\d+)$", script, re.MULTILINE)[1])
    assert total - (max(build, tests) + checks) >= 240, "left for the benchmark"
    assert total + 20 <= 480
    subprocess.run(["bash", "-n", str(ROOT / "benchmarks" / "gpu_suite.sh")], check=True)


FAKE_PYTHON = """#!/bin/sh
# Stands in for a machine with a GPU and much trouble: the benchmark runs on the CPU at tiny sizes,
# crashes once, the warm-up hangs, tests fail, nvcc is missing.
case "$*" in
  "-c import "*) exit 0 ;;
  "-") echo "1 90 fake-gpu" ;;
  sede_kernels/backends/cuda/nvcc.py) exit 1 ;;
  "-m pytest"*) echo "1 failed, 3 passed in 0.1s"; exit 1 ;;
  "-m tests.ptx.outputs"*) echo "kept" >"$OUT/outputs.npz" ;;
  "-m benchmarks.warm --jobs"*"--quick"*) sleep 60 & wait ;;
  "-m benchmarks.warm"*) ;;
  "-m benchmarks.run --device cuda"*)
    place=$(echo "$*" | sed 's/.*--resume //; s/ .*//')
    if [ ! -e "$OUT/../crashed" ]; then
      : >"$OUT/../crashed"
      echo '["r", "", ""]' >"$place"
      kill -SEGV $$
    fi
    exec "$REAL" -m benchmarks.run --device cpu --no-figures --smoke --no-memory --budget 0.01 \\
      --op enqueue --allow-missing cpu --out "$OUT/gpu.jsonl" --resume "$place" ;;
  *) exec "$REAL" "$@" ;;
esac
"""
#: A tool that refuses the device, as compute-sanitizer does on some machines.
FAKE_SANITIZER = "#!/bin/sh\necho 'Device not supported'\nexit 1\n"


def _tree(folder):
    """The tree, in which the script is a file of its own, with less patience."""
    script = (ROOT / "benchmarks" / "gpu_suite.sh").read_text()
    impatient = re.sub(r"checks_s=\d+ bench_s=\$total_s", "checks_s=2 bench_s=$total_s", script)
    assert impatient != script
    (folder / "benchmarks").mkdir(parents=True)
    for entry in (*ROOT.iterdir(), *(ROOT / "benchmarks").iterdir()):
        if entry.name not in ("benchmarks", ".git", "gpu_suite.sh"):
            (folder / entry.relative_to(ROOT)).symlink_to(entry)
    (folder / "benchmarks" / "gpu_suite.sh").write_text(impatient)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for a GPU where there is none")
def test_gpu_suite_goes_on_after_failures_and_ends_in_a_short_table(tmp_path):
    (tmp_path / "bin").mkdir()
    out = tmp_path / "out"
    programs = {
        "nvidia-smi": "#!/bin/sh\n", "python": FAKE_PYTHON, "compute-sanitizer": FAKE_SANITIZER,
    }  # fmt: skip
    for name, text in programs.items():
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": "python",
        "REAL": sys.executable,
        "OUT": str(out),
    }
    done = subprocess.run(
        ["bash", "benchmarks/gpu_suite.sh", "--quick"], env=environment,
        cwd=_tree(tmp_path / "tree"), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1, "a failed step fails the suite"
    summary = (out / "summary.txt").read_text()
    assert done.stdout.endswith(summary)
    failed = re.search(r"(\d+) steps failed: (.*);.*;", summary)
    assert set(failed[2].split()) == {
        "tests-triton", "tests-cuda", "memcheck", "racecheck", "warm-up", "benchmark",
    }, summary  # fmt: skip
    assert "tests-cuda: 1 failed, 3 passed in 0.1s" in summary
    assert re.search(r"warm-up +stopped after [2-9] s", summary), summary
    assert re.search(r"benchmark +failed \(139\)", summary) and "no nvcc" in summary
    assert re.search(r"benchmark +ok ", summary), "another process went on"
    assert "enqueue fwd fp32" in summary
    assert len(summary.splitlines()) <= 40
    log = (out / "checks.log").read_text()
    assert "memcheck: Device not supported" in log and "racecheck: Device not supported" in log
    names = sorted(path.name for path in out.rglob("*") if path.is_file())
    assert names == ["bench.log", "checks.log", "gpu.jsonl", "outputs.npz", "summary.txt"]


def test_gpu_suite_names_a_wrong_option():
    words = ["bash", "benchmarks/gpu_suite.sh", "--fast"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
