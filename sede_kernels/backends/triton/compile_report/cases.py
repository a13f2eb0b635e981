"""What the report compiles: every kernel with the signatures that the host side launches.

Each module of ``MODULES`` lists the compilations of an op as ``cases(architecture)``: one for every
entry of its launch table and for every fixed configuration.
"""

import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import triton.language as tl

from sede_kernels.backends.triton import launch, outdated_reason
from sede_kernels.backends.triton.compile_report.text import kernel_text

#: Modules of this package with a ``cases(architecture) -> Iterator[Case]`` each.
MODULES = (
    "bank_cases",
    "chunk_cases",
    "row_cases",
    "info_nce_cases",
    "score_cases",
    "cross_attention_cases",
    "cross_attention_pairs_cases",
)
#: Operand of a table's key -> (pointer type, Triton type, input precision).
OPERANDS = {
    "half": ("bf16", tl.bfloat16, "tf32"),
    "tf32": ("fp32", tl.float32, "tf32"),
    "ieee": ("fp32", tl.float32, "ieee"),
}
_TWIN = " fp16"
#: What ``tile_name`` adds to a name.
_TILE = re.compile(r" \d+x\d+ \d+w\d+s")
_PACKAGE = "sede_kernels.backends.triton.compile_report"


@dataclass(frozen=True)
class Case:
    """One compilation: a kernel, the types of its arguments, its constants and launch options.

    Arguments that ``types`` does not name are constants; pointers and the integers of ``aligned``
    are multiples of 16, as they are in every large problem.
    """

    name: str
    architecture: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]
    aligned: frozenset[str] = frozenset()
    matrix: bool = False  # it multiplies matrices on tensor cores: sm_90 must use HGMMA
    copies: bool = False  # it loads by descriptor: TMA instructions must show

    @property
    def key(self) -> str:
        """Unique name of the compilation."""
        return f"{self.name} {self.architecture}"

    def source(self) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
        """(signature, constants, attributes) in the form ``ASTSource`` takes."""
        signature, constants, attributes = {}, {}, {}
        for position, name in enumerate(self.kernel.arg_names):
            kind = self.types.get(name)
            if kind is None:
                signature[name] = "constexpr"
                constants[name] = self.constants.get(name)
                continue
            signature[name] = kind
            if kind.startswith("*") or name in self.aligned:
                attributes[(position,)] = [["tt.divisibility", 16]]
        return signature, constants, attributes

    @property
    def digest(self) -> str:
        """Changes with the kernel's text, signature, constants or options."""
        signature, constants, attributes = self.source()
        text = json.dumps([signature, constants, sorted(attributes), self.options], default=str)
        text += kernel_text(self.kernel)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def tile_name(config: launch.Config) -> str:
    """A configuration in a case's name."""
    return f"{config.rows}x{config.cols} {config.warps}w{config.stages}s"


def configurations(kernel: str, architecture: str) -> Iterator[tuple[str, launch.Config]]:
    """(key, configuration) of every entry of a launch table."""
    for key, by_architecture in launch.table(kernel).items():
        for entry in by_architecture.get(architecture, []):
            yield key, launch.Config(*entry)


def _in_fp16(case: Case) -> Case | None:
    """The twin of a case in bf16, which has the same entry of the launch table."""
    types = {name: kind.replace("bf16", "fp16") for name, kind in case.types.items()}
    if types == case.types:
        return None
    constants = {k: tl.float16 if v is tl.bfloat16 else v for k, v in case.constants.items()}
    return replace(case, name=case.name + _TWIN, types=types, constants=constants)


def cases() -> Iterator[Case]:
    """Every compilation on every architecture."""
    for module in MODULES:
        listed = importlib.import_module(f"{_PACKAGE}.{module}")
        for architecture in launch.CAPABILITY:
            for case in listed.cases(architecture):
                yield case
                twin = _in_fp16(case)
                if twin is not None:
                    yield twin


def served(listed: Iterable[Case]) -> list[Case]:
    """What this Triton runs untuned: a row's first entry, in bf16 where it has a twin in fp16."""
    found: dict[str, Case] = {}
    for case in listed:
        capability = launch.CAPABILITY[case.architecture]
        outdated = outdated_reason((capability // 10, capability % 10))
        if not case.name.endswith(_TWIN) and outdated is None:
            found.setdefault(_TILE.sub("", case.key), case)
    return list(found.values())
