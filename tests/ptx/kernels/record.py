"""The committed record: one line of JSON for each problem, architecture and entry."""

import hashlib
import json
from dataclasses import astuple
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import triton

from sede_kernels.backends.triton import version_pair
from sede_kernels.backends.triton.compile_report.text import kernel_text
from tests.ptx.kernels.execute import Outcome, entries_of, problems

#: Of the newest Triton every entry is recorded, of an older one the first of every row.
ARCHITECTURES, OLDER_ARCHITECTURES = ("sm_80", "sm_89", "sm_90"), ("sm_80", "sm_90")
FOLDER = Path(__file__).parents[3] / "records" / "ptx"
#: Share of the warp instructions by which two runs may differ.
_COUNT_TOLERANCE = 1e-3


@cache
def _text(kernel: str, module: str) -> str:
    """The text of a kernel, by its name; empty where there is none any more."""
    try:
        return kernel_text(getattr(import_module(module), kernel))
    except (AttributeError, ModuleNotFoundError):
        return ""


def digest(line: dict[str, Any]) -> str:
    """Of the problem, the entries, the text of the kernels and Triton's version."""
    kept = [line[name] for name in ("problem", "architecture", "triton", "entries")]
    texts = [_text(name, module) for name, module in sorted(line["kernels"].items())]
    return hashlib.sha256(json.dumps([*kept, *texts]).encode()).hexdigest()[:16]


def line_of(outcome: Outcome) -> dict[str, Any]:
    """What is kept of an outcome."""
    rows = dict(outcome.problem.rows)
    entries = [[name, rows[name], *astuple(entry)] for name, entry in outcome.entries.items()]
    worst = max((check.share for check in outcome.checks), default=0.0)
    line = {
        "problem": outcome.problem.name,
        "architecture": outcome.architecture,
        "triton": triton.__version__,
        "entries": entries,
        "kernels": outcome.kernels,
    }
    return {
        **line,
        "digest": digest(line),
        "errors": {
            check.name: [float(f"{check.error:.3g}"), float(f"{check.peak:.3g}")]
            for check in outcome.checks
        },
        "worst_share_of_budget": float(f"{worst:.3g}"),
        "faults": dict(sorted(outcome.faults.items())),
        "executed": {name: round(share, 2) for name, share in outcome.executed.items()},
        "warp_instructions": outcome.instructions,
    }


def worse(errors: dict[str, list[float]], recorded: dict[str, list[float]]) -> list[str]:
    """Results that are further from the truth than they were: the machine repeats itself."""
    names = ("error", "largest error")
    return [
        f"{result}: {name} {now:.3g}, recorded {then:.3g}"
        for result, both in errors.items()
        for name, now, then in zip(names, both, recorded[result], strict=True)
        if not now <= 1.5 * then + 1e-7
    ]


def changed(line: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """What else a run has that is not in the record: other kernels, more instructions or fewer.

    The machine repeats itself and so does the compiler; other random numbers may take more steps.
    """
    now, then = line["warp_instructions"], recorded["warp_instructions"]
    found = []
    if line["kernels"] != recorded["kernels"]:
        found.append(f"kernels {sorted(line['kernels'])}, recorded {sorted(recorded['kernels'])}")
    if abs(now - then) > _COUNT_TOLERANCE * then:
        found.append(f"{now} warp instructions, recorded {then}")
    return found


def path_of(folder: Path, version: str) -> Path:
    """The file of a Triton version."""
    return folder / f"triton-{version}.jsonl"


def load(folder: Path) -> list[dict[str, Any]]:
    """Every line of every file."""
    files = sorted(folder.glob("triton-*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def key_of(line: dict[str, Any]) -> str:
    """What a line is of."""
    tiles = ["x".join(map(str, entry[2:])) for entry in line["entries"]]
    return " ".join([line["problem"], line["architecture"], *tiles])


def write(folder: Path, lines: list[dict[str, Any]]) -> None:
    """Into the file of the installed version, beside the lines of other problems there."""
    path = path_of(folder, triton.__version__)
    kept = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    both = {key_of(line): line for line in [*kept, *lines]}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(both[key]) + "\n" for key in sorted(both)))


def _listed(version: str, newest: bool) -> set[str]:
    """Keys of every architecture and entry that a version has a line of."""
    return {
        key_of(line_of(Outcome(problem, architecture, entries)))
        for architecture in (ARCHITECTURES if newest else OLDER_ARCHITECTURES)
        for problem in problems()
        for entries in entries_of(problem, architecture, version)[: None if newest else 1]
    }


def versions(lines: list[dict[str, Any]]) -> list[str]:
    """Of Triton, the newest last."""
    return sorted({line["triton"] for line in lines}, key=version_pair)


def missing(lines: list[dict[str, Any]], version: str) -> list[str]:
    """What has no line of this version and must have one."""
    wanted = _listed(version, version == versions(lines)[-1])
    return sorted(wanted - {key_of(line) for line in lines if line["triton"] == version})


def surplus(lines: list[dict[str, Any]], version: str) -> list[str]:
    """Lines of this version that are of no problem or entry any more."""
    found = {key_of(line) for line in lines if line["triton"] == version}
    return sorted(found - _listed(version, version == versions(lines)[-1]))


def of_version(version: str) -> dict[str, dict[str, Any]]:
    """Key -> committed line, of a Triton version."""
    return {key_of(line): line for line in load(FOLDER) if line["triton"] == version}


def differences(lines: list[dict[str, Any]]) -> list[str]:
    """From the committed record, of lines of a run with one version: ``worse`` and ``changed``."""
    recorded = of_version(lines[0]["triton"])
    return [
        f"{key_of(line)}: {text}"
        for line in lines
        for then in [recorded[key_of(line)]]
        for text in worse(line["errors"], then["errors"]) + changed(line, then)
    ]


def elsewhere(lines: list[dict[str, Any]], version: str) -> list[str]:
    """Lines of a version whose host launched other kernels than with the newest: made before it."""
    newest: dict[str, list[dict[str, str]]] = {}
    for line in lines:
        if line["triton"] == versions(lines)[-1]:
            newest.setdefault(f"{line['problem']} {line['architecture']}", []).append(
                line["kernels"]
            )
    return sorted(
        key_of(line)
        for line in lines
        if line["triton"] == version
        and line["kernels"] not in newest.get(f"{line['problem']} {line['architecture']}", [])
    )


def current(folder: Path) -> set[str]:
    """Keys of the lines of the installed version whose kernels and entries are those of today."""
    lines = load(folder)
    gone = set(elsewhere(lines, triton.__version__))
    mine = [line for line in lines if line["triton"] == triton.__version__]
    return {key_of(line) for line in mine if digest(line) == line["digest"]} - gone


def prune(folder: Path) -> None:
    """Take out what is of no problem or entry of the installed version any more."""
    lines, path = load(folder), path_of(folder, triton.__version__)
    if path.exists():
        gone = set(surplus(lines, triton.__version__))
        kept = [x for x in lines if x["triton"] == triton.__version__ and key_of(x) not in gone]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
