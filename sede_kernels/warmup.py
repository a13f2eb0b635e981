"""Warm-up of losses with banks: counted on the device, compared on the device."""

from typing import Any

import torch
from torch import Tensor, nn

from sede_kernels.checks import check_count

_PLAUSIBLE = 1 << 40  # more steps than anyone takes
_READ = "_is_hf_initialized"


def _has_value(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and not tensor.is_meta


class WarmUp(nn.Module):
    """A loss whose banks join in after ``start_step`` enqueues.

    A subclass calls ``advance`` once an enqueue. It passes ``bank.where(self.warm)`` as the bank:
    before the warm-up is over, the device then finds every slot empty. Nothing is read on the host,
    so a compiled step is one graph for the whole run.

    Args:
        start_step: enqueues before the banks take part; 0 for no warm-up, which costs nothing.

    Attributes:
        steps: () int64, enqueues so far; a buffer, saved with the module. It stays as it is
            with ``start_step`` 0.
    """

    steps: Tensor

    def __init__(self, start_step: int = 0) -> None:
        super().__init__()
        self.start_step = check_count(type(self).__name__, "start_step", start_step)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def warm(self) -> Tensor | None:
        """Whether the banks take part: () bool on the device, or None with ``start_step`` 0."""
        return None if self.start_step == 0 else self.steps >= self.start_step

    @torch.no_grad()
    def advance(self) -> None:
        """Count one enqueue, where anything depends on the count."""
        if self.start_step:
            self.steps.add_(1)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Begin the warm-up again."""
        self.steps.zero_()

    def __setattr__(self, name: str, value: Any) -> None:
        # Loaders fill the place of a buffer on the meta device, some with memory nobody wrote to.
        # That of transformers marks the tensors that it read from a checkpoint, and every module
        # at the end.
        steps = self.__dict__.get("_buffers", {}).get("steps") if name == "steps" else None
        super().__setattr__(name, value)
        if steps is not None and steps.is_meta and _has_value(self.steps):
            self._unread = not getattr(value, _READ, False)
            if not 0 <= int(self.steps) < _PLAUSIBLE:
                self.steps.zero_()
        elif name == _READ and value and self.__dict__.pop("_unread", False):
            self.steps.zero_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "steps" not in self._buffers:  # a pickle of 0.1.0 holds a number
            steps = torch.tensor(int(self.__dict__.pop("steps", 0)), dtype=torch.int64)
            self.register_buffer("steps", steps)

    def _apply(self, fn: Any, recurse: bool = True) -> "WarmUp":
        before = self.steps
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.steps.dtype != torch.int64:
            now = self.steps if before.is_meta or self.steps.is_meta else before
            self.steps = now.to(device=self.steps.device, dtype=torch.int64)
        if _has_value(self.steps) and (not _has_value(before) or int(before) != int(self.steps)):
            self.steps.zero_()  # ``to_empty``
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # Version 0.1.0 kept the count as a Python number beside the tensors.
        old, name = prefix + "_extra_state", prefix + "steps"
        own = type(self).set_extra_state is nn.Module.set_extra_state
        if own and isinstance(state_dict.get(old), int):
            state_dict.setdefault(name, torch.tensor(state_dict.pop(old), dtype=torch.int64))
        elif name not in state_dict:
            steps = self.steps
            state_dict[name] = torch.zeros((), dtype=torch.int64) if steps.is_meta else steps
        super()._load_from_state_dict(state_dict, prefix, *arguments)
