"""What the compiler says of every CUDA kernel on every architecture.

    python -m sede_kernels.backends.cuda.compile_report --write records/compiler

compiles csrc/cuda/*.cu of a clone with nvcc (no GPU needed; some minutes), counts registers, shared
memory, spills and the instructions of the matrix units, and writes ``cuda.json`` and ``cuda.md``.
"""

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from sede_kernels.backends.cuda.loops import loop_of
from sede_kernels.backends.cuda.nvcc import MISSING, nvcc
from sede_kernels.whole_file import write_text

SOURCES = Path(__file__).parents[3] / "csrc" / "cuda"
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100f", "sm_120")
#: Instructions that are counted: the matrix units', asynchronous copies, and what a spill becomes.
COUNTED = ("HMMA", "HGMMA", "LDSM", "LDGSTS", "UTMALDG", "LDL", "STL")
#: Sources with the instructions of one architecture.
ONLY_FOR = {"hopper": ("sm_90a",)}

_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)")
_PROPERTIES = re.compile(r"Function properties for (\w+)")


def digest() -> str:
    """Of the kernels' sources."""
    found = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh"), *SOURCES.glob("*.h"),
                        *SOURCES.glob("device/*.cuh")]):  # fmt: skip
        found.update(path.name.encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout + done.stderr


def _cuobjdump() -> str:
    """The toolkit's, or the one that Triton brings along."""
    found = shutil.which("cuobjdump")
    if found is None:
        triton = importlib.util.find_spec("triton")
        bundled = "backends/nvidia/bin/cuobjdump"
        if triton is None or triton.origin is None:
            sys.exit(
                "cuobjdump was not found: put the CUDA toolkit on the path, or install triton."
            )
        found = str(Path(triton.origin).parent / bundled)
    return found


def resources(said: str) -> dict[str, dict[str, int]]:
    """Kernel -> registers, shared bytes and spilled bytes, from what ``ptxas -v`` says."""
    found: dict[str, dict[str, int]] = {}
    name = ""
    for line in said.splitlines():
        if match := _PROPERTIES.search(line):
            name = match[1]
        elif match := _SPILLS.search(line):
            found[name] = {"spilled": int(match[2]) + int(match[3]), "stack": int(match[1])}
        elif "Used" in line and (match := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            found[name] |= {
                "registers": int(match[1]),
                "static_shared": int(shared[1]) if shared else 0,
            }
    return found


def instructions(assembly: str) -> dict[str, Counter[str]]:
    """Kernel -> how often each counted instruction stands in its machine code."""
    found: dict[str, Counter[str]] = {}
    name = ""
    for line in assembly.splitlines():
        if match := re.search(r"Function : (\w+)", line):
            name = match[1]
            found[name] = Counter()
        elif (match := _INSTRUCTION.match(line)) and match[1] in COUNTED:
            found[name][match[1]] += 1
    return found


def _architectures_of(source: str, wanted: tuple[str, ...]) -> list[str]:
    return [name for name in wanted if name in ONLY_FOR.get(source, wanted)]


def _by_kernel(assembly: str) -> list[tuple[str, str]]:
    """The name and the code of every kernel."""
    parts = re.split(r"Function : (\w+)", assembly)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def compile_all(compiler: str, architectures: tuple[str, ...], only: str) -> list[dict[str, Any]]:
    """A row for every kernel and architecture, of the sources whose names match."""
    rows = []
    dump = _cuobjdump()
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted(SOURCES.glob(f"{only}.cu")):
            for architecture in _architectures_of(source.stem, architectures):
                out = f"{folder}/{source.stem}.cubin"
                said = _run(compiler, "-std=c++17", f"-arch={architecture}", "-cubin", "-Xptxas",
                            "-v", str(source), "-o", out)  # fmt: skip
                if "serialized" in said:
                    sys.exit(f"products of {source.name} wait for each other:\n{said}")
                assembly = _run(dump, "-sass", out)
                counts = instructions(assembly)
                walks = {
                    name: loop_of(code)._asdict()
                    for name, code in _by_kernel(assembly)
                    if name.startswith("hopper_")
                }
                for kernel, numbers in sorted(resources(said).items()):
                    found = {key.lower(): counts[kernel][key] for key in COUNTED}
                    rows.append(
                        {"kernel": kernel, "architecture": architecture, **numbers, **found}
                        | walks.get(kernel, {})
                    )
    return rows


def table(report: dict[str, Any]) -> str:
    """The report as a page."""
    columns = ("registers", "static_shared", "spilled", *(key.lower() for key in COUNTED))
    lines = [
        "# CUDA kernels, as compiled",
        "",
        f"{report['compiler']}. Registers a thread, bytes of static shared memory a block, spilled",
        "bytes, and how often an instruction stands in the code. No GPU has run them.",
        "",
        f"| kernel | architecture | {' | '.join(columns)} |",
        "| --- | --- |" + " ---: |" * len(columns),
    ]
    lines += [
        f"| {row['kernel']} | {row['architecture']} | "
        + " | ".join(str(row[column]) for column in columns)
        + " |"
        for row in report["kernels"]
    ]
    lines += [
        "",
        "Of compute capability 9.0 also the instructions of a warp for a tile: of its loop, of",
        "blocks in it that are seldom entered, and of the search for the maximum (`loops.py`).",
        "",
        "| kernel | all | seldom | maximum |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['kernel']} | {row['loop']} | {row['rare']} | {row['maximum']} |"
        for row in report["kernels"]
        if "loop" in row
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Compile, print what spills, and write the report where that is asked for."""
    parser = argparse.ArgumentParser(description="What nvcc says of the CUDA kernels.")
    parser.add_argument("--write", metavar="FOLDER", help="write cuda.json and cuda.md there")
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument(
        "--only",
        default="*",
        metavar="NAME",
        help="the one source in csrc/cuda that changed; other rows stay as they are written",
    )
    options = parser.parse_args(argv)
    compiler = nvcc()
    if compiler is None:
        parser.error(MISSING)
    if not SOURCES.is_dir():
        parser.error("this needs a clone of the sources")
    version = re.search(r"release [\d.]+, V[\d.]+", _run(compiler, "--version"))
    report: dict[str, Any] = {
        "compiler": f"nvcc {version[0] if version else 'of unknown version'}",
        "digest": digest(),
        "kernels": compile_all(compiler, tuple(options.architectures), options.only),
    }
    for row in report["kernels"]:
        if row["spilled"]:
            print(f"{row['kernel']} on {row['architecture']} spills {row['spilled']} bytes")
    print(f"{len(report['kernels'])} kernels compiled")
    if options.write:
        folder = Path(options.write)
        if options.only != "*":
            known = {row["kernel"] for row in report["kernels"]}
            kept = json.loads((folder / "cuda.json").read_text())["kernels"]
            for row in kept:
                row |= {key.lower(): row.get(key.lower(), 0) for key in COUNTED}
            report["kernels"] += [row for row in kept if row["kernel"] not in known]
        report["kernels"].sort(key=lambda row: (row["kernel"], row["architecture"]))
        write_text(folder / "cuda.json", json.dumps(report, indent=1) + "\n")
        write_text(folder / "cuda.md", table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
