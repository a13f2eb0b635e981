"""Region-word similarity of chosen pairs on the native kernels, one pair after another."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels.backends._chosen_pairs import all_chosen, shape_of
from sede_kernels.backends.cpu import _native
from sede_kernels.backends.cpu.erase import RULE_CODES
from sede_kernels.fragment_types import Attend, Erase, Fragments, Wanted
from sede_kernels.types import SideGradients

Settings = tuple[float, int, float, bool, int, float, bool, int, bool]

#: Aggregate of csrc/kernels/cross_attention_api.h.
AGGREGATE_CODES = {"lse": 0, "mean": 1, "max": 2, "sum": 3}

_WIDTH = 16  # the kernels take rows of whole vectors


def native_settings(how: Attend) -> Settings:
    """The settings as the native calls take them."""
    erase = how.erase or Erase("mean")
    return (
        how.smoothing,
        AGGREGATE_CODES[how.aggregate],
        how.aggregate_scale,
        how.erase is not None,
        RULE_CODES[erase.rule],
        erase.threshold,
        erase.side == "low",
        erase.keep_min,
        erase.renormalize,
    )


class _Pairs:
    """The sides by their roles, fp32 and contiguous, each (B, N or 1, F, D) with its lengths."""

    def __init__(self, fragments: Fragments, direction: str) -> None:
        regions, words, region_lengths, word_lengths = fragments
        self.shape = shape_of(regions, words)
        self.swap = direction == "i2t"
        self.contexts = all_chosen(regions)
        sides = (regions, region_lengths), (words, word_lengths)
        (self.source, self.source_lengths), (self.query, self.query_lengths) = (
            _dense(*side) for side in (sides[::-1] if self.swap else sides)
        )

    def call(self) -> tuple[int, ...]:
        """The arguments of a native call; the tensors are ours."""
        return (
            self.source.data_ptr(),
            self.query.data_ptr(),
            *self.shape,
            self.source.shape[1],
            self.query.shape[1],
            self.source.shape[2],
            self.query.shape[2],
            self.source.shape[3],
            self.source_lengths.data_ptr(),
            self.query_lengths.data_ptr(),
            self.contexts,
        )


def _dense(sets: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    values, missing = sets.to(torch.float32), -sets.shape[3] % _WIDTH
    values = F.pad(values, (0, missing)) if missing else values.contiguous()
    most = sets.shape[2]
    if lengths is None:
        return values, torch.full(sets.shape[:2], most, dtype=torch.int64, device="cpu")
    return values, _native.counts("cross_attention_pairs", lengths, sets.shape[:2], most)


def cross_attention_pairs(sides: Fragments, how: Attend) -> Tensor:
    """See ``sede_kernels.ops.cross_attention_pairs``."""
    pairs = _Pairs(sides, how.direction)
    out = _native.zeros(*pairs.shape)
    _native.module().cross_attention_pairs(pairs.call(), native_settings(how), out.data_ptr())
    return out


def cross_attention_pairs_backward(
    grad: Tensor, sides: Fragments, how: Attend, wanted: Wanted
) -> SideGradients:
    """See ``sede_kernels.ops.cross_attention_pairs``."""
    settings = native_settings(how)
    pairs = _Pairs(sides, how.direction)
    g = grad.to(torch.float32).contiguous()
    grad_address = _native.address("grad", g, torch.float32, pairs.shape[0] * pairs.shape[1])
    asked = wanted[::-1] if pairs.swap else wanted
    grads = [
        _native.zeros(*(side.shape if wants else (0,)))
        for side, wants in zip((pairs.source, pairs.query), asked, strict=True)
    ]
    addresses = (d.data_ptr() if wants else 0 for d, wants in zip(grads, asked, strict=True))
    _native.module().cross_attention_pairs_backward(
        pairs.call(), settings, grad_address, *addresses
    )
    dim = sides.regions.shape[3]
    d_source, d_query = (
        d[..., :dim] if wants else d for d, wants in zip(grads, asked, strict=True)
    )
    return SideGradients(*((d_query, d_source) if pairs.swap else (d_source, d_query)))
