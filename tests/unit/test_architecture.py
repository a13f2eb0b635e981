"""The arrows between the rooms of the house, and what CONTRIBUTING.md says of it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: From the ground up: a room imports those of lower floors only.
FLOORS = (
    (
        "deprecation",
        "dense",
        "errors",
        "first_version",
        "fragment_types",
        "ids",
        "jsonl",
        "precision",
        "types",
        "whole_file",
    ),
    ("reference_erase",),
    ("reference", "score_types", "testing"),
    ("backends", "reference_late", "reference_scores"),
    ("ops",),
    ("checks",),
    ("erase_checks", "ring", "warmup", "resharding", "scaled_loss"),
    ("sharded_ring", "fragment_bank"),
    ("bank",),
    ("functional", "sharded_bank", "sharded_fragment_bank"),
    ("attention_modules", "monitor"),
    ("modules", "momentum", "distributed", "info"),
    ("integrations", "training"),
    ("study",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
#: The compiled module belongs to its backend, and the benchmarks measure it.
COMPILED = "sede_kernels._cpu"
#: It puts counters around the ops and between the cpu backend and its native module.
COUNTERS = {
    ("benchmarks.host", "sede_kernels.backends.cpu._native"),
    ("benchmarks.host", "sede_kernels.ops._op"),
}


def _modules(package: str) -> dict[str, Path]:
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


OURS, SUITE = _modules("sede_kernels"), _modules("benchmarks")


def _imports(name: str, path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, lazily and for types too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _known(name: str) -> str:
    """The module that a dotted name lies in."""
    while name and name not in OURS and name not in SUITE:
        name = name.rpartition(".")[0]
    return name


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_room_has_a_floor():
    assert {_room(module) for module in OURS} - {""} == set(FLOOR)


#: Former names: each imports the module that it stands for, which may lie above it.
FORMER = {"sede_kernels.training.cli"}


@pytest.mark.parametrize("module", sorted(set(OURS) - {"sede_kernels"} - FORMER))
def test_imports_go_down(module):
    here = _room(module)
    for name in _imports(module, OURS[module]):
        there = _room(_known(name))
        if name.startswith("sede_kernels.") and there and there != here:
            assert FLOOR[there] < FLOOR[here], f"{module} imports {name}"
        assert not name.startswith(("benchmarks", "sede_kernels._bench", "tests")), name


@pytest.mark.parametrize("module", sorted(OURS | SUITE))
def test_no_private_module_of_another_package_is_imported(module):
    for name in _imports(module, (OURS | SUITE)[module]):
        known = name if name == COMPILED else _known(name)
        if (module, known) in COUNTERS:
            continue
        for at, part in enumerate(known.split(".")):
            if part.startswith("_") and not part.startswith("__") and known != COMPILED:
                owner = ".".join(known.split(".")[:at])
                assert f"{module}.".startswith(f"{owner}."), f"{module} imports {name}"


def test_no_circle_in_the_benchmarks():
    arrows = {
        module: {_known(name) for name in _imports(module, path)} & set(SUITE) - {module}
        for module, path in SUITE.items()
    }
    while True:
        leaves = {module for module, targets in arrows.items() if not targets}
        if not leaves:
            break
        arrows = {m: targets - leaves for m, targets in arrows.items() if m not in leaves}
    assert arrows == {}


def test_every_path_that_contributing_names_exists():
    quoted = re.findall(r"`([^`\s]+)`", TEXT)
    paths = {word for word in quoted if "/" in word or re.search(r"\.(py|md|h|toml|sh)$", word)}
    assert len(paths) > 40
    inside = [path for path in sorted(paths) if path[0] not in "~<"]
    missing = [path for path in inside if not (ROOT / path).exists()]
    assert missing == []


def _switches() -> set[str]:
    """SEDE_ variables that code and scripts read or set, and options of CMake."""
    files = [*OURS.values(), *SUITE.values(), *(ROOT / "tests").rglob("*.py"), ROOT / "setup.py"]
    files += [*(ROOT / "benchmarks").glob("*.sh"), *(ROOT / ".ci").glob("*"), ROOT / "Makefile"]
    words = set()
    for path in files:
        text = path.read_text(encoding="utf-8")
        if path != Path(__file__).resolve():
            words |= set(re.findall(r"(?<!\w)(?<!-D)SEDE_[A-Z_]*[A-Z]", text))
    for path in (ROOT / "csrc").rglob("*.cpp"):
        words |= set(re.findall(r'getenv\("(SEDE_\w+)"\)', path.read_text(encoding="utf-8")))
    for path in (ROOT / "CMakeLists.txt", ROOT / "csrc" / "cuda" / "CMakeLists.txt"):
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in lines:
            if option := re.match(r"\s*(?:option|find_program|set(?=.*CACHE))\((SEDE_\w+)", line):
                words.add(option[1])
    return words


def test_one_table_has_every_environment_variable():
    rows = re.findall(r"^\| `(SEDE_\w+)", TEXT, re.M)
    assert len(rows) == len(set(rows))
    assert set(rows) == _switches()
