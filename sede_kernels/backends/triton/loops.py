"""How long a tile's arithmetic is: instructions of the loop over the bank, read from compiled code.

``python -m sede_kernels.backends.triton.loops`` prints a table for the first entry of each row of
``launch_tables/bank_lse.json`` without statistics, on the classes that multiply from registers.
"""

import re
import sys
from collections import Counter

from sede_kernels.backends.triton.compile_report.bank_cases import cases
from sede_kernels.backends.triton.compile_report.resources import disassemble

#: Instructions of the unit that exp2 shares with conversions of a single number.
SHARED_UNIT = ("MUFU", "F2F")


def loop_instructions(code: str) -> Counter[str]:
    """Operations of the shortest loop with matrix instructions, by name; empty without one."""
    lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+ )?([A-Z]\w*)([^;]*);", code)
    found: Counter[str] = Counter()
    for at, name, rest in lines:
        target = re.search(r"0x([0-9a-f]+)", rest) if name == "BRA" else None
        if target is None or int(target[1], 16) >= int(at, 16):
            continue
        first, last = int(target[1], 16), int(at, 16)
        body = Counter(op for where, op, _ in lines if first <= int(where, 16) <= last)
        if any("MMA" in op for op in body) and (not found or body.total() < found.total()):
            found = body
    return found


def main() -> int:
    """Print the table."""
    print("| tile | instructions of a warp | of exp2's unit |\n| --- | --: | --: |")
    for architecture in ("sm_80", "sm_90"):
        seen: set[str] = set()
        for case in cases(architecture):
            key = case.name.split()[1] if case.name.startswith("bank_lse ") else ""
            if not key.endswith(("/lean", "/static")) or key in seen:
                continue
            seen.add(key)
            found = loop_instructions(disassemble(case))
            unit = sum(found[name] for name in SHARED_UNIT)
            print(f"| {case.key} | {found.total():,} | {unit} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
