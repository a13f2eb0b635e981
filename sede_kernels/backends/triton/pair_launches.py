"""Launches of the pair kernels: for chosen pairs, and for those of all pairs that are marked."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from sede_kernels.backends.triton import interpreting, launch
from sede_kernels.backends.triton._host import padded
from sede_kernels.backends.triton._problem import Problem
from sede_kernels.backends.triton.kernels.cross_attention_pairs import (
    _pairs_bwd_kernel,
    _pairs_fwd_kernel,
)
from sede_kernels.backends.triton.kernels.cross_attention_sides import (
    _pairs_query_grad_kernel,
    _pairs_source_grad_kernel,
)

#: Fragments that a set is padded to, either side.
SMALLEST = 32
_INTERPRETED = {"cols": 32, "warps": 4, "stages": 1}


@dataclass(frozen=True)
class PairSide:
    """Sets (S, F, D) of one side, contiguous: pair b N + n takes set b ``row`` + n ``step``."""

    sets: Tensor
    lengths: Tensor | None  # [S] int64
    row: int
    step: int

    def sharing(self, rows: int, pairs: int) -> tuple[int, int, int]:
        """(first, step, number): set s is in the pairs s first + i step, i < number."""
        if self.row and self.step:
            return 1, 1, 1
        return (1, pairs, rows) if self.step else (pairs, 1, pairs)


@dataclass(frozen=True)
class Pairs:
    """B rows of N pairs and what is asked of them.

    Args:
        problem: of the call.
        query: the side that attends.
        source: the side that is attended.
        rows: B.
        pairs: N.
        lost: (B, N) int8, contiguous: not 0 where a pair is wanted; None: all are.
        numbers: what ``how_numbers`` gives.
        options: AGGREGATE and the constants of erasing.
    """

    problem: Problem
    query: PairSide
    source: PairSide
    rows: int
    pairs: int
    lost: Tensor | None
    numbers: tuple[float, float, int, int, int]
    options: dict[str, Any]

    @property
    def inputs(self) -> tuple[Tensor | None, ...]:
        """The tensors, as kernels take them."""
        sides = self.query, self.source
        return *(side.sets for side in sides), *(side.lengths for side in sides), self.lost

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Fragments of either side, D."""
        return self.query.sets.shape[1], *self.source.sets.shape[1:]

    @property
    def blocks(self) -> tuple[int, int]:
        """What the sets of queries and sources are padded to."""
        return padded(self.sizes[0], SMALLEST), padded(self.sizes[1], SMALLEST)

    def served(self, name: str) -> "Pairs":
        """The same in fp32 where kernel ``name`` has no tile for the operands (older Tritons)."""
        key = table_key(self.problem.kind, *self.blocks)
        if launch.listed(name, key, self.problem.architecture):
            return self
        return replace(
            self,
            problem=replace(self.problem, dtype=torch.float32, kind="ieee"),
            query=replace(self.query, sets=self.query.sets.float()),
            source=replace(self.source, sets=self.source.sets.float()),
        )

    def constants(self, name: str) -> dict[str, Any]:
        """Tile and launch options of kernel ``name``."""
        kind, blocks = self.problem.kind, self.blocks
        config = launch.Config(rows=blocks[0], **_INTERPRETED)
        if not interpreting():
            config = self.problem.config(name, table_key(kind, *blocks))
        return {
            "MARKED": self.lost is not None,
            "QUERY_VARY": self.query.lengths is not None,
            "SOURCE_VARY": self.source.lengths is not None,
            "PRECISION": tile_precision(kind),
            "BLOCK_M": config.rows,
            "BLOCK_N": blocks[1],
            "BLOCK_D": config.cols,
            **config.options,
        }

    def launch(
        self, kernel: Any, name: str, before: tuple[Any, ...], after: tuple[Any, ...], side: Tensor
    ) -> None:
        """Forward or backward: a program a pair, which returns at once where none is wanted."""
        steps = (self.query.row, self.query.step, self.source.row, self.source.step)
        kernel[(self.rows * self.pairs,)](
            *before,
            *self.inputs,
            *after,
            self.pairs,
            *steps,
            *self.sizes,
            *side.stride(),
            *self.numbers,
            **self.options,
            **self.constants(name),
        )


def table_key(kind: str, queries: int, sources: int) -> str:
    """Row of the launch tables: the operands and the padded sizes of both sets."""
    return f"{kind}/{queries}x{sources}"


def tile_precision(kind: str) -> str:
    """Full fp32 or tf32: contexts that cancel would lose what three tf32 products leave out."""
    return "ieee" if kind == "ieee" else "tf32"


def write_similarities(call: Pairs, out: Tensor) -> None:
    """Put the wanted pairs' similarities in their places of ``out`` (B, N), of any strides."""
    call.launch(_pairs_fwd_kernel, "cross_attention_pairs", (), (out,), out)


def add_gradients(call: Pairs, grad: Tensor, d_query: Tensor, d_source: Tensor) -> None:
    """Add the wanted pairs' gradients to those of the sides, of which one may be empty.

    Args:
        call: the pairs.
        grad: (B, N) fp32, of any strides.
        d_query: (query sets, L, D) fp32, contiguous.
        d_source: (source sets, R, D) fp32, contiguous.
    """
    count = call.rows * call.pairs
    L, R, D = call.sizes
    d_scores, attention = grad.new_empty((2, count, L, R))
    d_dot, along, d_norm = grad.new_empty((3, count, L))
    written = (d_scores, attention, d_dot, along, d_norm)
    name = "cross_attention_pairs_backward"
    call.served(name).launch(_pairs_bwd_kernel, name, (grad,), written, grad)
    constants = call.constants("cross_attention_pairs_grad")
    for kernel, factor, out, own, other in (
        (_pairs_query_grad_kernel, d_norm, d_query, call.query, call.source),
        (_pairs_source_grad_kernel, along, d_source, call.source, call.query),
    ):
        if out.numel():
            kernel[(own.sets.shape[0], triton.cdiv(D, constants["BLOCK_D"]))](
                d_scores,
                attention,
                d_dot,
                factor,
                *call.inputs,
                out,
                call.pairs,
                *own.sharing(call.rows, call.pairs),
                other.row,
                other.step,
                *call.sizes,
                **constants,
            )
