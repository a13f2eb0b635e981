"""Momentum encoders: the slow copies that fill the banks."""

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class MomentumEncoder(nn.Module):
    """Exponential moving average of an encoder: theta_k <- m theta_k + (1 - m) theta.

    Parameters are averaged with torch's fused foreach EMA, buffers copied (batch statistics).
    Calls run without a gradient; the copy is never in an optimiser.

    Args:
        encoder: the module to follow; it is deep-copied.
        momentum: m in [0, 1]; 0.99 to 0.999 is usual, lower for small banks.

    Cost:
        ``update`` reads both sets of parameters once and writes one.

    Source:
        He et al. 2020 (MoCo).

    Example:
        >>> encoder = nn.Linear(2, 2)
        >>> slow = MomentumEncoder(encoder, momentum=0.9)
        >>> slow.update(encoder)
        >>> slow(torch.ones(1, 2)).requires_grad
        False
    """

    def __init__(self, encoder: nn.Module, momentum: float = 0.995) -> None:
        super().__init__()
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"MomentumEncoder: momentum must be in [0, 1], got {momentum}.")
        self.momentum = momentum
        average = get_ema_multi_avg_fn(momentum)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(encoder, multi_avg_fn=average)
        # A first update would copy; the deep copy already is one.
        self.average.n_averaged.fill_(1)
        self.average.requires_grad_(False)

    @property
    def module(self) -> nn.Module:
        """The averaged encoder."""
        module: nn.Module = self.average.module
        return module

    @torch.no_grad()
    def update(self, encoder: nn.Module) -> None:
        """One momentum step towards ``encoder``; call it before encoding keys."""
        self.average.update_parameters(encoder)
        # AveragedModel averages buffers or leaves them; batch statistics are to be copied.
        for slow, fast in zip(self.module.buffers(), encoder.buffers(), strict=True):
            slow.copy_(fast)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The averaged encoder's output, without a gradient."""
        return self.average(*args, **kwargs)
