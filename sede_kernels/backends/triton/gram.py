"""G = V V^T of each source set, by which the lengths of contexts are had; and its gradient."""

import torch
import triton
from torch import Tensor

from sede_kernels.backends.triton import LARGEST_FRAGMENT_SET, launch, triton_version
from sede_kernels.backends.triton._problem import Problem
from sede_kernels.backends.triton.attention_sets import Side
from sede_kernels.backends.triton.kernels.cross_attention import _gram_bwd_kernel, _gram_kernel

#: A step of the kernel of G (columns of D) and of that of its gradient (queries: three tf32
#: products of more would spill); their launch options.
GRAM_STEP = 32
GRAM_QUERIES = {"tf32": 64, "tf32x3": 32}
GRAM_OPTIONS = {"num_warps": 8, "num_stages": 2}
#: Rows of G, dS and a are padded so that a kernel can move 16 bytes at once.
WIDTH = 8


def gram_options(architecture: str, version: tuple[int, int]) -> dict[str, int]:
    """Launch options of G: Triton 3.6 has no fence before the products of a second stage on sm_90.

    docs/ptx.md says how that was found.
    """
    unfenced = architecture == "sm_90" and version < (3, 7)
    return {**GRAM_OPTIONS, "num_stages": 1} if unfenced else GRAM_OPTIONS


def gram_of(problem: Problem, source: Side) -> tuple[Tensor, Tensor]:
    """(G (P, W, W), lengths of the sources and sums of |G| along its rows (P, 2, W))."""
    P, R, D = source.sets.shape
    width = triton.cdiv(R, WIDTH)
    gram = source.sets.new_empty((P, width * WIDTH, width * WIDTH), dtype=torch.float32)
    sizes = gram.new_empty((P, 2, width * WIDTH))
    _gram_kernel[(P,)](
        source.sets,
        source.lengths,
        gram,
        sizes,
        R,
        width,
        D,
        HAS_LENGTHS=source.vary,
        PRECISION=launch.product_precision(problem.kind),
        BLOCK_R=LARGEST_FRAGMENT_SET,
        BLOCK_D=GRAM_STEP,
        **gram_options(problem.architecture, triton_version()),
    )
    return gram, sizes


def gram_gradient(problem: Problem, gram: Tensor, attention: Tensor, d_square: Tensor) -> Tensor:
    """(P, W, W): sums of d |context|^2 a^T a over all N queries, from a (N, P W) and (P, N)."""
    d_gram = torch.empty_like(gram)
    precision = launch.product_precision(problem.kind)
    _gram_bwd_kernel[(gram.shape[0],)](
        attention,
        d_square,
        d_gram,
        d_square.shape[1],
        gram.shape[0],
        gram.shape[1] // WIDTH,
        PRECISION=precision,
        BLOCK_R=LARGEST_FRAGMENT_SET,
        BLOCK_N=GRAM_QUERIES[precision],
        **GRAM_OPTIONS,
    )
    return d_gram
