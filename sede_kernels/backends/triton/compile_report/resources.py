"""Compile a case for an architecture without a GPU and read what the assembler says of it."""

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton.compile_report.cases import Case

_TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_MOST_REGISTERS = 255
_REGISTER_FILE = 65536


@dataclass(frozen=True)
class Resources:
    """Registers a thread, stack bytes, spill instructions, shared bytes, matrix and copy counts."""

    registers: int
    stack: int
    spills: int
    shared: int
    hgmma: int
    hmma: int
    tcgen05: int
    utmaldg: int

    def as_dict(self) -> dict[str, int]:
        """For the committed table."""
        return asdict(self)


def _dump(flag: str, path: Path) -> str:
    done = subprocess.run([str(_TOOL), flag, str(path)], capture_output=True, text=True, check=True)
    return done.stdout


def _compiled(case: Case) -> Any:
    signature, constants, attributes = case.source()
    return triton.compile(
        ASTSource(case.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", launch.CAPABILITY[case.architecture], 32),
        options=case.options,
    )


def _read(compiled: Any, *flags: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        return [_dump(flag, path) for flag in flags]


def disassemble(case: Case) -> str:
    """The assembler text of a compiled case."""
    return _read(_compiled(case), "-sass")[0]


def compile_case(case: Case) -> Resources:
    """Compile through ``triton.compile`` and disassemble the result."""
    compiled = _compiled(case)
    usage, code = _read(compiled, "-res-usage", "-sass")
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage gave no usage for {case.name}: {usage!r}")

    def count(pattern: str) -> int:
        return len(re.findall(rf"\b{pattern}", code))

    return Resources(
        registers=int(found.group(1)),
        stack=int(found.group(2)),
        spills=count(r"(?:STL|LDL)\b"),
        shared=compiled.metadata.shared,
        hgmma=count("HGMMA"),
        hmma=count("HMMA"),
        tcgen05=count(r"UTC\w*MMA"),
        utmaldg=count("UTMALDG"),
    )


def faults(case: Case, used: Resources) -> list[str]:
    """What is wrong with a compiled case; empty when it may ship."""
    threads = 32 * case.options["num_warps"]
    problems = []
    if used.spills:
        problems.append(f"{used.spills} spill instructions")
    if used.registers > min(_MOST_REGISTERS, _REGISTER_FILE // threads):
        problems.append(f"{used.registers} registers x {threads} threads do not fit")
    if used.shared > launch.SHARED_MEMORY[case.architecture]:
        problems.append(f"{used.shared} bytes of shared memory do not fit")
    if case.matrix and case.architecture == "sm_90" and not used.hgmma:
        problems.append("no HGMMA")
    if case.copies and not used.utmaldg:
        problems.append("no UTMALDG")
    return problems
