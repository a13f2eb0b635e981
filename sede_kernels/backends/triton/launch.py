"""Which launch configuration a kernel runs with, from ``launch_tables/<kernel>.json``.

A table is keyed by what decides a tile (operand width, padded dimension, accumulators) and then by
an architecture class, which follows from the compute capability and the shared memory of a block,
never from a GPU's name. The first entry of a row is the default, the others are what
``SEDE_AUTOTUNE=1`` tries. ``compile_report`` compiles every entry; nothing else runs.

An older Triton needs more registers for the same tile. ``launch_tables/below-VERSION`` holds the
rows that a Triton older than that takes instead; an empty list there takes the entry away.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from sede_kernels.backends.triton import emulated, interpreting, triton_version, version_pair

TABLES = Path(__file__).with_name("launch_tables")
#: Class -> bytes of shared memory a block may use there.
SHARED_MEMORY = {"sm_80": 166_912, "sm_89": 101_376, "sm_90": 232_448, "sm_100": 232_448}
#: Class -> compute capability that the report compiles it for.
CAPABILITY = {"sm_80": 80, "sm_89": 89, "sm_90": 90, "sm_100": 100}
_INTERPRETER_CORES = 4
_OLDER = "below-"
Table = dict[str, dict[str, list[list[int]]]]


@dataclass(frozen=True)
class Config:
    """Tile and launch parameters of one kernel."""

    rows: int
    cols: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """Triton's launch keywords."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def table(kernel: str, version: str | None = None) -> Table:
    """A shipped table: key -> class -> list of [rows, cols, warps, stages].

    Args:
        kernel: name of the file.
        version: of Triton, such as ``3.9.0``; the installed one for None.
    """
    return _table(kernel, triton_version() if version is None else version_pair(version))


@cache
def _table(kernel: str, version: tuple[int, int]) -> Table:
    rows: Table = json.loads((TABLES / f"{kernel}.json").read_text())
    folders = sorted(
        ((version_pair(path.name[len(_OLDER) :]), path) for path in TABLES.glob(f"{_OLDER}*")),
        reverse=True,
    )
    for limit, folder in folders:
        path = folder / f"{kernel}.json"
        if version < limit and path.exists():
            for key, changed in json.loads(path.read_text()).items():
                both = {**rows[key], **changed}
                rows[key] = {name: entries for name, entries in both.items() if entries}
    return rows


def architecture_class(capability: tuple[int, int], shared_memory: int) -> str:
    """The class of a device; an unknown one gets the class with the least shared memory."""
    wanted = {9: "sm_90", 10: "sm_100", 8: "sm_80"}.get(capability[0], "sm_89")
    return wanted if shared_memory >= SHARED_MEMORY[wanted] else "sm_89"


@cache
def _device_class(index: int) -> tuple[str, int]:
    properties = torch.cuda.get_device_properties(index)
    shared = int(getattr(properties, "shared_memory_per_block_optin", 0))
    name = architecture_class((properties.major, properties.minor), shared)
    return name, int(properties.multi_processor_count)


def device_class(device: torch.device) -> tuple[str, int]:
    """(class, number of multiprocessors); the interpreter plays an sm_90 with few of them."""
    played = emulated()
    if played is not None:
        return played.architecture, played.cores
    if device.type != "cuda":
        return "sm_90", _INTERPRETER_CORES
    return _device_class(torch.cuda.current_device() if device.index is None else device.index)


def listed(kernel: str, key: str, architecture: str) -> bool:
    """Whether a row of the table has an entry for the class."""
    return interpreting() or architecture in table(kernel)[key]


def candidates(kernel: str, key: str, architecture: str) -> list[Config]:
    """The configurations of one row of the table, the default first."""
    if interpreting():
        return [Config(16, 32, 4, 1), Config(32, 32, 4, 1)]
    return [Config(*entry) for entry in table(kernel)[key][architecture]]


def product_precision(kind: str) -> str:
    """How operands of a kind are multiplied: "ieee" asks for three tf32 products, not for one.

    Half inputs keep G and a in fp32 as well, for |context|^2 is a difference of large terms.
    """
    return "tf32x3" if kind == "ieee" else "tf32"
