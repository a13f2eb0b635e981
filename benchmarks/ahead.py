"""``sede bench ahead``: which of the Triton and CUDA backends is ahead, for each case of a run."""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from sede_kernels.backends import order
from sede_kernels.whole_file import write_text

from . import flags, records, table

Record = dict[str, Any]
NAMES = {"sede triton": "triton", "sede cuda": "cuda"}
#: Op of the benchmark, by how its name starts -> op of the backends, and the size that counts.
OPS = {
    "weighted_score_info_nce": ("score_info_nce", "N"),
    "score_info_nce": ("score_info_nce", "N"),
    "weighted_info_nce": ("info_nce", "D"),
    "info_nce": ("info_nce", "D"),
    "hardest": ("hardest", "D"),
    "enqueue": ("enqueue", "D"),
    "erase_": ("erase", "L"),
}


def times(found: list[Record]) -> dict[tuple[Any, ...], dict[str, Record]]:
    """Case -> backend -> its record, of cases that both backends ran right."""
    cases: dict[tuple[Any, ...], dict[str, Record]] = defaultdict(dict)
    for record in records.latest(found).values():
        name = NAMES.get(record["implementation"])
        if name and record["status"] == "ok" and record["median_ms"]:
            cases[records.case_key(record)][name] = record
    return {key: both for key, both in cases.items() if len(both) == 2}


def line(both: dict[str, Record]) -> str:
    """``cuda 1.31 x ahead: info_nce forward bf16 B=64 ...``."""
    triton, cuda = (both[name]["median_ms"] for name in ("triton", "cuda"))
    first = "cuda" if cuda < triton else "triton"
    ratio = max(triton, cuda) / min(triton, cuda)
    return f"{first} {ratio:.2f} x ahead: {table.title(both['cuda'])}"


def rows(cases: dict[tuple[Any, ...], dict[str, Record]], device: str) -> list[dict[str, str]]:
    """Rows of ``backends/order.json``: the geometric mean of the cases of an op and shape."""
    logs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for both in cases.values():
        record = both["cuda"]
        known = next((OPS[name] for name in OPS if record["op"].startswith(name)), None)
        if known is not None and known[1] in record["sizes"]:
            place = known[0], order.shape_class(record["sizes"][known[1]])
            logs[place].append(math.log(both["triton"]["median_ms"] / record["median_ms"]))
    return [
        {"device": device, "op": op, "shape": shape, "first": "cuda" if sum(logs) > 0 else "triton"}
        for (op, shape), logs in sorted(logs.items())
    ]


def main(argv: list[str]) -> int:
    """A line for each case; with ``--order`` also the rows for ``auto``."""
    parser = argparse.ArgumentParser(prog="sede bench ahead", description=__doc__)
    parser.add_argument("records", type=Path, help="results file or folder")
    parser.add_argument("--order", type=Path, metavar="FILE", help="write backends/order.json here")
    parser.add_argument("--device", default="", help="such as sm_90: whose rows these are")
    options = parser.parse_args(argv)
    if options.order and not options.device:
        parser.error("--order needs --device")
    if options.order:
        flags.check_place(options.order, "--order")
    cases = times(records.load([options.records]))
    for both in cases.values():
        print(line(both))
    if not cases:
        print("no case was run right by both Triton and CUDA")
    if options.order and cases:
        kept = json.loads(options.order.read_text()) if options.order.exists() else []
        kept = [row for row in kept if row["device"] != options.device]
        found = kept + rows(cases, options.device)
        write_text(options.order, json.dumps(found, indent=1) + "\n")
    return 0
