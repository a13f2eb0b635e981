"""Momentum encoders: the slow copies that fill the banks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sede_kernels.checks import check_number


class _Masters(nn.Module):
    """float32 averages of parameters that the module keeps in half precision, by their place."""

    def _apply(self, fn: Any, recurse: bool = True) -> "_Masters":
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != torch.float32:
                kept = new if old.is_meta or new.is_meta else old
                self._buffers[name] = kept.to(device=new.device, dtype=torch.float32)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # They come and go with the dtype of the module: those of the state are taken, all others
        # are made from the module's parameters by the next update.
        self._buffers.clear()
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and name.isdecimal() and isinstance(value, Tensor):
                self.register_buffer(name, torch.empty_like(value, dtype=torch.float32))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class MomentumEncoder(nn.Module):
    """Exponential moving average of an encoder: theta_k <- m theta_k + (1 - m) theta.

    Parameters are averaged with torch's fused foreach EMA, buffers copied (batch statistics).
    Parameters in half precision are averaged in float32, where a step of 1 - m does not round away,
    and the module holds them rounded. Calls run without a gradient; the copy is never in an
    optimiser.

    Args:
        encoder: the module to follow; it is deep-copied.
        momentum: m in [0, 1]; 0.99 to 0.999 is usual, lower for small banks. ``self.momentum`` may
            be changed between updates.

    Cost:
        ``update`` reads both sets of parameters once and writes one. A float32 copy of the
        parameters that are in half precision, from the first update on.

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
        if not isinstance(encoder, nn.Module):
            raise TypeError(
                f"MomentumEncoder: encoder must be a module, got {type(encoder).__name__}."
            )
        self.momentum = check_number("MomentumEncoder", "momentum", momentum, low=0.0, high=1.0)
        self.average = AveragedModel(encoder)
        self.average.n_averaged.fill_(1)  # the deep copy
        self.average.requires_grad_(False)
        self.masters = _Masters()
        self._copies_next = False  # after the meta device there is nothing to average with

    @property
    def module(self) -> nn.Module:
        """The averaged encoder."""
        module: nn.Module = self.average.module
        return module

    def extra_repr(self) -> str:
        """The momentum."""
        return f"momentum={self.momentum}"

    @torch.no_grad()
    def update(self, encoder: nn.Module) -> None:
        """One momentum step towards ``encoder``; call it before encoding keys.

        Raises:
            ValueError: the encoder has other parameters or buffers than the one copied.
        """
        slow, fast = list(self.module.parameters()), list(encoder.parameters())
        pairs = list(zip(self.module.buffers(), encoder.buffers(), strict=False))
        counts = len(list(self.module.buffers())), len(list(encoder.buffers()))
        if len(slow) != len(fast) or counts[0] != counts[1]:
            raise ValueError(
                f"MomentumEncoder: update needs an encoder of {len(slow)} parameters and "
                f"{counts[0]} buffers like the one copied, got {len(fast)} and {counts[1]}."
            )
        for ours, theirs in (*zip(slow, fast, strict=True), *pairs):
            if ours.shape != theirs.shape:
                raise ValueError(
                    "MomentumEncoder: update needs an encoder like the one copied, got "
                    f"{tuple(theirs.shape)} for a parameter or buffer of {tuple(ours.shape)}."
                )
        averages = [self._average_of(place, parameter) for place, parameter in enumerate(slow)]
        kinds: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
        for average, parameter in zip(averages, fast, strict=True):
            current = parameter.detach().to(device=average.device, dtype=average.dtype)
            if self._copies_next or not (average.is_floating_point() or average.is_complex()):
                average.copy_(current)
            else:
                kinds.setdefault((average.device, average.dtype), []).append((average, current))
        for group in kinds.values():
            averaged, followed = (list(side) for side in zip(*group, strict=True))
            torch._foreach_lerp_(averaged, followed, 1 - self.momentum)
        for place, parameter in enumerate(slow):
            if averages[place] is not parameter:
                parameter.copy_(averages[place])
        for slow_buffer, fast_buffer in pairs:
            slow_buffer.copy_(fast_buffer)
        self.average.n_averaged.add_(1)
        self._copies_next = False

    def _average_of(self, place: int, parameter: Tensor) -> Tensor:
        """What is averaged: the parameter, or the float32 it is a rounding of."""
        if not parameter.is_floating_point() or parameter.element_size() >= 4:
            self.masters._buffers.pop(str(place), None)
            return parameter
        current = parameter.detach().to(torch.float32)
        known = self.masters._buffers.get(str(place))
        if known is None or known.shape != parameter.shape:
            known = current
        else:
            # Where somebody wrote to the parameter, it is no rounding of the average any more.
            known = known.to(parameter.device)
            known = torch.where(known.to(parameter.dtype) == parameter, known, current)
        self.masters.register_buffer(str(place), known)
        return known

    def _apply(self, fn: Any, recurse: bool = True) -> "MomentumEncoder":
        meta = any(parameter.is_meta for parameter in self.parameters())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._copies_next |= meta and not any(p.is_meta for p in self.parameters())
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        if any(key.startswith(f"{prefix}average.module.") for key in state_dict):
            self._copies_next = False
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The averaged encoder's output, without a gradient."""
        return self.average(*args, **kwargs)
