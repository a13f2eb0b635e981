"""Region-word similarity of chosen pairs, a launch forward and one to three back.

Roles as in ``cross_attention``: t2i: sources are regions, queries words; i2t the other way. See
``docs/backends.md``.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from sede_kernels.backends._chosen_pairs import shape_of
from sede_kernels.backends.triton import interpreting, launch
from sede_kernels.backends.triton._host import on_device, operand_kind, padded
from sede_kernels.backends.triton.cross_attention import (
    how_constants,
    how_numbers,
    product_precision,
)
from sede_kernels.backends.triton.kernels.cross_attention_pairs import (
    _pairs_bwd_kernel,
    _pairs_fwd_kernel,
    _pairs_query_grad_kernel,
    _pairs_source_grad_kernel,
)
from sede_kernels.types import Attend, Fragments, SideGradients, Wanted

#: Fragments that a set is padded to, either side.
SMALLEST = 32
_INTERPRETED = {"cols": 32, "warps": 4, "stages": 1}
#: (Kernel, sources) whose three tf32 products would spill before sm_100: without matrix units.
_WITHOUT_MATRIX_UNITS = ("cross_attention_pairs_backward", 64)


@dataclass(frozen=True)
class _Call:
    """Query and source sets (B, N or 1, F, D) and their lengths, contiguous."""

    query: Tensor
    source: Tensor
    query_lengths: Tensor | None
    source_lengths: Tensor | None

    @property
    def inputs(self) -> tuple[Tensor | None, ...]:
        """The tensors, as kernels take them."""
        return self.query, self.source, self.query_lengths, self.source_lengths

    @property
    def pairs(self) -> int:
        """N."""
        return shape_of(self.query, self.source)[1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """N, sets a row on either side, fragments of either side, D."""
        (_, of_queries, L, D), (of_sources, R) = self.query.shape, self.source.shape[1:3]
        return self.pairs, of_queries, of_sources, L, R, D

    def constants(self, name: str) -> dict[str, Any]:
        """Tile and launch options of kernel ``name``."""
        kind = operand_kind(self.query.dtype)
        blocks = padded(self.query.shape[2], SMALLEST), padded(self.source.shape[2], SMALLEST)
        config, architecture = launch.Config(rows=blocks[0], **_INTERPRETED), "sm_90"
        if not interpreting():
            architecture, _ = launch.device_class(self.query.device)
            config = launch.candidates(name, table_key(kind, *blocks), architecture)[0]
        return {
            "QUERY_VARY": self.query_lengths is not None,
            "SOURCE_VARY": self.source_lengths is not None,
            "PRECISION": tile_precision(name, kind, blocks[1], architecture),
            "BLOCK_M": config.rows,
            "BLOCK_N": blocks[1],
            "BLOCK_D": config.cols,
            **config.options,
        }


def table_key(kind: str, queries: int, sources: int) -> str:
    """Row of the launch tables: the operands and the padded sizes of both sets."""
    return f"{kind}/{queries}x{sources}"


def tile_precision(name: str, kind: str, sources: int, architecture: str) -> str:
    """``product_precision``; full fp32 where three tf32 products would spill."""
    plain = (name, sources) == _WITHOUT_MATRIX_UNITS and architecture != "sm_100"
    return "ieee" if plain and kind == "ieee" else product_precision(kind)


def _call(sides: Fragments, direction: str) -> _Call:
    regions, words, region_lengths, word_lengths = sides
    sets, lengths = (words, regions), (word_lengths, region_lengths)
    if direction == "i2t":
        sets, lengths = sets[::-1], lengths[::-1]
    dense = [None if n is None else n.to(torch.int64).contiguous() for n in lengths]
    return _Call(sets[0].contiguous(), sets[1].contiguous(), dense[0], dense[1])


def cross_attention_pairs(sides: Fragments, how: Attend) -> Tensor:
    """See ``sede_kernels.ops.cross_attention_pairs``. Memory: the result."""
    regions, words = sides.regions, sides.words
    shape = shape_of(regions, words)
    if regions.numel() == 0 or words.numel() == 0:
        return regions.new_zeros(shape, dtype=torch.float32)
    out = regions.new_empty(shape, dtype=torch.float32)
    with on_device(regions):
        call = _call(sides, how.direction)
        _pairs_fwd_kernel[(out.numel(),)](
            *call.inputs,
            out,
            *call.sizes,
            *how_numbers(how, call.source.shape[2]),
            **how_constants(how),
            **call.constants("cross_attention_pairs"),
        )
    return out


def cross_attention_pairs_backward(
    grad: Tensor, sides: Fragments, how: Attend, wanted: Wanted
) -> SideGradients:
    """See ``sede_kernels.ops.cross_attention_pairs``. Memory: S and G of every pair in fp32.

    A side that pairs share gets their sum in one program, in order.
    """
    call = _call(sides, how.direction)
    swap = how.direction == "i2t"
    for_query, for_source = wanted if swap else wanted[::-1]
    empty = grad.new_empty(0, dtype=torch.float32)
    d_query = empty.new_zeros(call.query.shape) if for_query else empty
    d_source = empty.new_zeros(call.source.shape) if for_source else empty
    if call.query.numel() and call.source.numel():
        with on_device(grad):
            _sides_backward(grad.to(torch.float32).contiguous(), call, how, d_query, d_source)
    return SideGradients(*((d_query, d_source) if swap else (d_source, d_query)))


def _sides_backward(
    grad: Tensor, call: _Call, how: Attend, d_query: Tensor, d_source: Tensor
) -> None:
    """Fill the gradients that are not empty."""
    count = grad.numel()
    L, R, D = call.sizes[3:]
    d_scores, d_norm = grad.new_empty((count, L, R)), grad.new_empty((count, L))
    d_gram = grad.new_empty((count, R, R) if d_source.numel() else 0)
    _pairs_bwd_kernel[(count,)](
        grad,
        *call.inputs,
        d_scores,
        d_norm,
        d_gram,
        *call.sizes,
        *how_numbers(how, R),
        FOR_SOURCE=d_source.numel() > 0,
        **how_constants(how),
        **call.constants("cross_attention_pairs_backward"),
    )
    constants = call.constants("cross_attention_pairs_grad")
    for kernel, more, out in (
        (_pairs_query_grad_kernel, d_norm, d_query),
        (_pairs_source_grad_kernel, d_gram, d_source),
    ):
        if out.numel():
            grid = (out.shape[0] * out.shape[1], triton.cdiv(D, constants["BLOCK_D"]))
            kernel[grid](d_scores, more, *call.inputs, out, *call.sizes, **constants)
