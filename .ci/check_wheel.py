"""Run in an environment that holds an installed wheel and its dependencies, from any folder.

Checks that the wheel brought the native module, that it chose the best instruction set of this
processor, that it computes, and that the command works. Ends with one line, or with an error.
"""

import platform
import subprocess
import sys
from pathlib import Path

import torch

import sede_kernels
from sede_kernels.backends.cpu import _native

LARGEST_MB = 8.0  # of the native module: no GPU code may have slipped in
ARM = ["scalar", "neonbf16"]
EVERY_ISA = {
    "x86_64": ["scalar", "avx2", "avx512", "avx512bf16"],
    "aarch64": ARM,
    "arm64": ARM,
}
BEYOND_BASELINE = {"x86_64": "avx2", "aarch64": "bf16"}  # flag of /proc/cpuinfo


def flags() -> list[str]:
    """Of this processor, as Linux names them; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [line for line in lines if line.startswith(("flags", "Features"))]
    return found[0].partition(":")[2].split() if found else []


def main() -> None:
    """Check, and say what was found."""
    reason = sede_kernels.available_backends()["cpu"]
    if reason is not None:
        sys.exit(f"the wheel has no usable native module: {reason}")
    native = _native.module()
    file = Path(str(native.__file__))
    if file.parent != Path(sede_kernels.__file__).parent:
        sys.exit(f"the native module is {file}, of another installation")
    megabytes = file.stat().st_size / 1e6
    if megabytes > LARGEST_MB:
        sys.exit(f"{file.name} has {megabytes:.1f} MB, more than {LARGEST_MB}")
    machine = platform.machine()
    compiled, isa = native.compiled_isas(), native.isa()
    if compiled != EVERY_ISA.get(machine, ["scalar"]):
        sys.exit(f"the wheel holds the instruction sets {compiled}")
    more = BEYOND_BASELINE.get(machine) in flags()
    if isa != native.supported_isas()[-1] or (more and isa == "scalar"):
        sys.exit(f"instruction set {isa} was chosen of {native.supported_isas()}")
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(300, 33, dtype=torch.float64), dim=1)
    loss, truth = (
        sede_kernels.weighted_info_nce(
            rows[:7].to(dtype), rows[7:14].to(dtype), rows.to(dtype), hardness=3.0, backend=backend
        )
        for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64))
    )
    if not abs(float(loss) - float(truth)) < 1e-5 * float(truth):
        sys.exit(f"loss {float(loss)}, in fp64 {float(truth)}")
    subprocess.run([sys.executable, "-m", "sede_kernels", "info"], check=True, capture_output=True)
    print(f"{file.name}: {megabytes:.1f} MB, {isa} of {', '.join(compiled)}; checked")


if __name__ == "__main__":
    main()
