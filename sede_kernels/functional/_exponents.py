"""Which exponents a weighted InfoNCE needs, and how their log-sum-exps go together."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels.ops.bank_lse import STATIC_LIMIT
from sede_kernels.types import Want, result_dtype

Scalar = float | Tensor


class Exponents(NamedTuple):
    """One pass over the negatives: L at ``scales``, gradients r O at the ``accumulate``d ones."""

    scales: Tensor  # [E], may carry a gradient
    grad_scales: Tensor  # [E], r: what replaces the exponent in the query gradient
    accumulate: tuple[int, ...]
    normalized: bool
    bounded: bool = False  # known on the host to be at most STATIC_LIMIT

    def want(self, *, hardest: bool, unit_length: bool, moments: bool = False) -> Want:
        """What a pass is to find: moments too where the exponents get a gradient."""
        learned = torch.is_grad_enabled() and self.scales.requires_grad
        return Want(self.accumulate, moments or learned, hardest, unit_length and self.bounded)


def constants(values: list[Scalar], like: Tensor) -> Tensor:
    """[E] on the device of ``like``; numbers are filled in, never copied from the host."""
    dtype = result_dtype(like)
    numbers = not any(isinstance(value, Tensor) for value in values)
    # A compiled function keeps a number that changes as an input only through arithmetic.
    compiling = torch.compiler.is_compiling()
    if numbers and like.device.type == "cpu" and not compiling:
        return torch.tensor(values, dtype=dtype)
    parts = []
    for value in values:
        if isinstance(value, Tensor):
            parts.append(value.to(dtype).reshape(1))
        elif compiling:
            parts.append(like.new_ones((1,), dtype=dtype) * value)
        else:
            parts.append(like.new_full((1,), value, dtype=dtype))
    return torch.cat(parts)


def plan(
    inverse_temperature: Scalar,
    hardness: Scalar,
    query: Tensor,
    *,
    normalize_weights: bool,
    detach_weights: bool,
    differentiable: bool,
) -> Exponents:
    """The row of the table in docs/method.md that the options select."""
    it = inverse_temperature
    if not isinstance(hardness, Tensor) and hardness == 0:
        scales, grads, normalized = [it], [it], False
    else:
        both = it + hardness
        if normalize_weights:
            scales, normalized = [both, hardness], True
            grads = [it, 0.0] if detach_weights else [both, hardness]
        else:
            scales, normalized = [both], False
            grads = [it] if detach_weights else [both]
    count = 2 if normalized and not detach_weights else 1
    accumulate = tuple(range(count)) if differentiable else ()
    grad_scales = constants(grads, query).detach()
    bounded = all(not isinstance(c, Tensor) and c <= STATIC_LIMIT for c in scales)
    return Exponents(constants(scales, query), grad_scales, accumulate, normalized, bounded)


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """Autocast switched off, on the devices that have one."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def safe_logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """log(e^a + e^b) whose gradient is 0, not NaN, where both are -inf."""
    neither = (a == -torch.inf) & (b == -torch.inf)
    total = torch.logaddexp(a.masked_fill(neither, 0.0), b.masked_fill(neither, 0.0))
    return total.masked_fill(neither, -torch.inf)


def log_negatives(lse: Tensor, count: Tensor, exponents: Exponents) -> Tensor:
    """LN (B,) from lse [E, B]; -inf for rows without a negative."""
    if not exponents.normalized:
        return lse[0]
    none = count == 0
    at_both, at_hardness = lse.masked_fill(none, 0.0).unbind()
    log_count = count.clamp(min=1).to(lse.dtype).log()
    return (log_count + at_both - at_hardness).masked_fill(none, -torch.inf)
