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
    for step in ("build-cpu", "gpu-tests", "benchmark", "figures"):
        assert re.search(rf"would run, at most +\d+ s: {step} ", done.stdout)
    assert "sanitizer" in done.stdout or "memcheck" in done.stdout
    assert len(done.stdout.splitlines()) <= 40
    assert not out.exists()


def test_gpu_suite_quick_fits_in_eight_minutes():
    script = (ROOT / "benchmarks" / "gpu_suite.sh").read_text()
    times = re.search(
        r"build_s=(\d+) tests_s=(\d+) sanitizer_s=(\d+) bench_s=\$total_s figures_s=(\d+)", script
    )
    build, tests, sanitizer, figures = map(int, times.groups())
    total = int(re.search(r"^total_s=(\d+)$", script, re.MULTILINE)[1])
    assert total - (2 * build + tests + 2 * sanitizer + figures) >= 120, "left for the benchmark"
    assert total + 20 <= 480
    subprocess.run(["bash", "-n", str(ROOT / "benchmarks" / "gpu_suite.sh")], check=True)


FAKE_PYTHON = """#!/bin/sh
# Stands in for a machine with a GPU: the suite's steps run on the CPU at tiny sizes.
case "$*" in
  "-c import torch") exit 0 ;;
  "-") echo "1 90 fake-gpu" ;;
  setup.py*) echo "built" ;;
  "-m pytest"*) echo "1 failed"; exit 1 ;;
  "-m benchmarks.run --device cuda"*) exec "$REAL" -m benchmarks.run --device cpu --no-figures \
    --smoke --no-memory --budget 0.01 --op enqueue --allow-missing cpu --out "$OUT/gpu.jsonl" ;;
  *) exec "$REAL" "$@" ;;
esac
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for a GPU where there is none")
def test_gpu_suite_goes_on_after_a_failed_step_and_ends_in_a_short_table(tmp_path):
    (tmp_path / "bin").mkdir()
    out = tmp_path / "out"
    for name, text in (("nvidia-smi", "#!/bin/sh\n"), ("python", FAKE_PYTHON)):
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
    words = ["bash", "benchmarks/gpu_suite.sh", "--quick"]
    done = subprocess.run(
        words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, "a failed step fails the suite"
    assert "1 steps failed: gpu-tests" in done.stdout
    assert re.search(r"benchmark +ok ", done.stdout), done.stdout
    summary = (out / "summary.txt").read_text()
    assert done.stdout.endswith(summary)
    assert "enqueue fwd fp32" in summary
    assert len(summary.splitlines()) <= 40
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= 8, files


def test_gpu_suite_names_a_wrong_option():
    words = ["bash", "benchmarks/gpu_suite.sh", "--fast"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
