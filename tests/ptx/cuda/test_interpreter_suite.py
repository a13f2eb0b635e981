"""The tests that Triton's kernels have on the interpreter, passed by this backend's.

They run in a process in which what asks for ``triton`` is served by ``cuda``.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
FILES = (
    "bank_lse", "bank_lse_pair", "enqueue", "enqueue_fragments", "erase", "hardest", "info_nce",
    "public", "score_info_nce", "selection", "strided", "two_sums",
)  # fmt: skip
#: Tests of Triton's own host code: its launches, its tables, its name.
OF_TRITON = (
    "test_a_fixed_maximum_reaches_the_kernel_only_where_it_is_safe",
    "test_a_bounded_temperature_that_learns_has_the_fixed_maximum",
    "test_auto_takes_triton_for_cuda_tensors_only",
    "test_an_explicit_request_that_cannot_be_met_raises",
    "test_tuning_is_stored_and_used",
    "test_every_pass_over_bank_and_batch_can_be_tuned",
    "test_one_launch_serves_both",
    "test_a_call_asks_once_for_the_device_and_once_for_each_product",
)
#: Files of which no test is served by this backend.
WITHOUT = {
    "cancelling_contexts": "region-word similarity",
    "cross_attention": "region-word similarity",
    "cross_attention_pairs": "region-word similarity",
    "exp": "a function of Triton's kernels alone",
    "own_process": "starts the other files",
}
#: A test of the region-word similarity in a file whose other tests are served.
OF_SETS = ("test_lengths_of_a_table",)
LEFT_OUT = " and ".join(f"not {name}" for name in OF_TRITON + OF_SETS)


def test_every_file_is_named() -> None:
    found = {path.stem.removeprefix("test_") for path in ROOT.glob("tests/interpret/test_*.py")}
    assert set(FILES) | set(WITHOUT) == found and not set(FILES) & set(WITHOUT)


def test_they_pass(played: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.ptx.machine", "--arch", played, "--cuda", "-m", "pytest",
         "-q", "-m", "", "-p", "no:cacheprovider", "-k", LEFT_OUT,
         *(f"tests/interpret/test_{name}.py" for name in FILES)],
        cwd=ROOT, env={**os.environ, "PYTHONSAFEPATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert "CUDA backend:" in said, said[-800:]
