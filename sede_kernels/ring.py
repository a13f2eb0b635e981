"""What the banks share: a ring of slots whose buffers stay what they are said to be.

Banks live inside models that others cast, move, shard, save, load and build on the meta device.
Every buffer but the rows is dense and has one dtype for ever, a state dict is checked before
anything of it is taken, and memory that nobody wrote to becomes an empty bank.
"""

import os
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sede_kernels.types import ANONYMOUS, EMPTY

BANK_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8)

_is_alias: Any = torch._C._is_alias_of  # type: ignore[attr-defined]
_LOOKS = 8  # at a value on a GPU, which wait for it
_OVERWRITTEN = (
    "DistributedDataParallel broadcast its buffers and overwrote this rank's {name} with that of "
    "rank 0; call sede_kernels.distributed.keep_banks_local(model) before you wrap the model, or "
    "wrap it with broadcast_buffers=False."
)


def ids_where(name: str, flag: Tensor, ids: Tensor) -> Tensor:
    """``ids``, all -1 where the flag is False; decided on the device.

    Raises:
        TypeError: the flag is no 0-d bool tensor.
    """
    if not isinstance(flag, Tensor) or flag.dtype != torch.bool or flag.ndim:
        came = f"{flag.dtype} {tuple(flag.shape)}" if isinstance(flag, Tensor) else repr(flag)
        raise TypeError(f"{name}: flag must be a 0-d bool tensor or None, got {came}.")
    return ids.masked_fill(~flag, EMPTY)  # torch.where would make a tensor of the number


def apart(given: Any, buffer: Tensor) -> Any:
    """What is to be stored, copied where it lies in the buffer that is written to meanwhile."""
    if isinstance(given, Tensor) and _is_alias(given, buffer):
        return given.clone()
    return given


def _readable(*tensors: Tensor | None) -> bool:
    """Whether all have values to read: not on the meta device, not fake, not sharded."""
    return all(t is None or (type(t) in (Tensor, nn.Parameter) and not t.is_meta) for t in tensors)


def _same_kind(a: torch.dtype, b: torch.dtype) -> bool:
    return (
        torch.bool not in (a, b)
        and not (a.is_complex or b.is_complex)
        and a.is_floating_point == b.is_floating_point
    )


class Ring(nn.Module):
    """K slots, each filled or empty, and where the next key goes; see the banks.

    Attributes:
        rows: (K, ...), what is stored.
        ids: (K,) int64, -1 for an empty slot.
        ptr: () int64, next slot to write.
        count: () int64, filled slots.
        rejected: () int64, keys that were not stored because their row would not be finite.
    """

    fixed: ClassVar[Mapping[str, torch.dtype]] = dict.fromkeys(
        ("ids", "ptr", "count", "rejected"), torch.int64
    )

    scalars: ClassVar[tuple[str, ...]] = ("ptr", "count", "rejected")

    rows: Tensor
    ids: Tensor
    ptr: Tensor
    count: Tensor
    rejected: Tensor
    home: Tensor  # () int64, 1 + the rank that the bank belongs to; not saved
    _unsettled = False  # off the meta device, perhaps not yet with values
    _marked_by: int | None = None  # the process that wrote ``home``
    _looks_left = _LOOKS

    def _make_counters(self, device: torch.device | str | None) -> None:
        """The last buffers, after rows and what goes with them."""
        size = self.rows.shape[0]
        ids = torch.full((size,), EMPTY, dtype=torch.int64, device=device)
        self.register_buffer("ids", ids)
        for name in ("ptr", "count", "rejected"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64, device=device))
        home = torch.zeros((), dtype=torch.int64, device=device)
        self.register_buffer("home", home, persistent=False)
        self._unsettled = self.rows.is_meta

    def __len__(self) -> int:
        """Filled slots; reads the device."""
        self._ready()
        return int(self.count)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Empty every slot and forget what was rejected; also the way off the meta device."""
        for name, buffer in self._buffers.items():
            if buffer is not None and name != "home":
                buffer.fill_(EMPTY if name == "ids" else 0)
        self._unsettled = self.rows.is_meta

    def clear(self) -> None:
        """Empty every slot, as ``reset_parameters``."""
        self.reset_parameters()

    def finite_rows(self) -> Tensor:
        """(K,) bool: rows without NaN or infinity."""
        largest: Tensor = torch.linalg.vector_norm(self.rows.flatten(1), torch.inf, dim=1)
        return largest.isfinite()

    def _tensors(self) -> dict[str, Tensor]:
        return {name: b for name, b in self._buffers.items() if b is not None and name != "home"}

    def _needs_a_look(self) -> bool:
        """Whether there is memory that nobody may have written, or a broadcast to watch for."""
        watches = self._looks_left and dist.is_available() and dist.is_initialized()
        return self._unsettled or bool(watches)

    def _ready(self) -> None:
        """Before any use: buffers as said, no memory that nobody wrote, no broadcast.

        Raises:
            TypeError: floating numbers where integers belong, or the reverse.
            ValueError: a buffer whose size does not fit the rows.
        """
        slots = self.rows.shape[:1]
        for name, dtype in self.fixed.items():
            buffer = self._buffers[name]
            if buffer is None:
                continue
            if buffer.dtype != dtype or not buffer.is_contiguous():
                self._buffers[name] = self._as_said(name, buffer)
            shape = () if name in self.scalars else tuple(slots)
            if buffer.shape != shape:
                raise ValueError(
                    f"{type(self).__name__}: {name} of the bank must have shape "
                    f"{shape}, got {tuple(buffer.shape)}; put the right tensor there or make a "
                    "new bank."
                )
        if torch.compiler.is_compiling():
            return
        if self._unsettled:
            self._settle()
        if self._looks_left and dist.is_available() and dist.is_initialized():
            self._watch_for_broadcasts()

    @torch.no_grad()
    def _watch_for_broadcasts(self) -> None:
        """Warn, once, where the mark of this rank has become that of another."""
        world, mark = dist.get_world_size(), dist.get_rank() + 1
        if world == 1 or not _readable(self.home):
            return
        if self._marked_by != os.getpid():
            self._marked_by = os.getpid()
            self.home.fill_(mark)
            return
        if self.home.device.type != "cpu":
            self._looks_left -= 1
        if int(self.home) != mark:
            self._looks_left = 0
            message = _OVERWRITTEN.format(name=type(self).__name__)
            warnings.warn(message, UserWarning, stacklevel=4)

    def _as_said(self, name: str, value: Tensor) -> Tensor:
        """The value in the dtype of its buffer, dense unless it is the rows.

        Raises:
            TypeError: floating numbers where integers belong, or the reverse.
        """
        dtype = self.fixed.get(name, value.dtype)
        if not _same_kind(value.dtype, dtype):
            raise TypeError(
                f"{type(self).__name__}: {name} must be {dtype}, got {value.dtype}; put the right "
                "tensor there or call reset_parameters() on a new bank."
            )
        value = value.to(dtype)
        return value.contiguous() if name in self.fixed else value

    def __setattr__(self, name: str, value: Any) -> None:
        # Loaders put tensors into the place of buffers that they made on the meta device.
        if isinstance(value, Tensor) and name in self.__dict__.get("_buffers", ()):
            super().__setattr__(name, self._as_said(name, value))
            if self._unsettled:
                self._settle()
        else:
            super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # A pickle of 0.1.0 lacks what came later.
        for name in ("rejected", "home"):
            if name not in self._buffers:
                zero = torch.zeros_like(self.ptr)
                self.register_buffer(name, zero, persistent=name != "home")

    def _settle(self) -> None:
        """Once all buffers are off the meta device: an empty bank, unless they hold a bank."""
        if not _readable(*self._buffers.values()):
            return
        self._unsettled = False
        if self._faults(self._tensors()) or self._filled() != int(self.count):
            self.reset_parameters()

    def _filled(self) -> int:
        return int((self.ids != EMPTY).sum())

    def _apply(self, fn: Any, recurse: bool = True) -> "Ring":
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is None or new is None:
                continue
            dtype = self._kept_dtype(name, old.dtype, new.dtype)
            if new.dtype != dtype:
                same = new if old.is_meta or new.is_meta else old
                self._buffers[name] = same.to(device=new.device, dtype=dtype)
        self._marked_by = None
        if self.rows.is_meta:
            self._unsettled = True
        elif self._was_emptied(before):
            self.reset_parameters()
        elif before["rows"] is not None and before["rows"].dtype != self.rows.dtype:
            self._drop_non_finite()
        return self

    def _kept_dtype(self, name: str, old: torch.dtype, new: torch.dtype) -> torch.dtype:
        """The dtype of a buffer after a cast of the whole model."""
        if name == "rows":
            floating = old.is_floating_point and new.is_floating_point
            return new if floating and new in BANK_DTYPES else old
        return self.fixed.get(name, old)

    def _was_emptied(self, before: dict[str, Tensor | None]) -> bool:
        """Whether ``to_empty`` took the values away: the counters are not what they were."""
        old = {name: before[name] for name in ("ids", "ptr", "count")}
        if any(tensor is None or tensor.is_meta for tensor in old.values()):
            return True
        if not _readable(*old.values(), *self._buffers.values()):
            return False
        return not all(
            torch.equal(tensor.to(self._tensors()[name].device), self._tensors()[name])
            for name, tensor in old.items()
            if tensor is not None
        )

    @torch.no_grad()
    def _drop_non_finite(self) -> None:
        """Empty the slots whose rows are not finite: of an old checkpoint, or after a cast."""
        if not _readable(*self._buffers.values()):
            return
        bad = (self.ids != EMPTY) & ~self.finite_rows()
        number = int(bad.sum())
        if number:
            for name, buffer in self._tensors().items():
                if buffer.ndim:
                    buffer[bad] = EMPTY if name == "ids" else 0
            self.rejected.add_(number)
            self.count.fill_(self._filled())

    def _faults(self, given: Mapping[str, Tensor]) -> list[str]:
        """What is wrong with tensors that are to become the buffers of these names."""
        faults = []
        for name, value in given.items():
            own = self._buffers[name]
            if own is None:
                continue
            dtype = self.fixed.get(name, own.dtype)
            if value.shape != own.shape:
                faults.append(f"{name} must be {tuple(own.shape)}, got {tuple(value.shape)}")
            elif not _same_kind(value.dtype, dtype) or (
                name == "rows" and value.dtype not in BANK_DTYPES
            ):
                faults.append(f"{name} must be {dtype}, got {value.dtype}")
            elif _readable(value):
                faults += self._wrong_value(name, value)
        return faults

    def _wrong_value(self, name: str, value: Tensor) -> list[str]:
        size = self.rows.shape[0]
        most = {"ptr": size - 1, "count": size}.get(name)
        if most is not None and not 0 <= int(value) <= most:
            return [f"{name} must lie in [0, {most}], got {int(value)}"]
        if name == "ids" and int(value.min()) < ANONYMOUS:
            return [f"ids must be >= 0, -1 (empty) or -2 (no id), got {int(value.min())}"]
        if name == "rejected" and int(value) < 0:
            return [f"rejected must be >= 0, got {int(value)}"]
        return []

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        error_msgs: list[str] = arguments[-1]
        given = {name: state_dict[prefix + name] for name in self._buffers
                 if isinstance(state_dict.get(prefix + name), Tensor)}  # fmt: skip
        faults = self._faults(given)
        if faults:
            where = f"{type(self).__name__} {prefix[:-1]}".rstrip()
            error_msgs += [f"{where}: {fault}; nothing of it was loaded." for fault in faults]
            return
        if "ptr" in given and "rejected" not in given:  # version 0.1.0 had none
            state_dict[prefix + "rejected"] = given["ptr"].new_zeros((), dtype=torch.int64)
        for name, value in given.items():
            state_dict[prefix + name] = self._as_said(name, value)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        # A part of a state, by strict=False or before torch's own error, fills slots too.
        if {"rows", "ids"} <= given.keys() and _readable(*self._buffers.values()):
            self._unsettled &= "count" not in given
            if self._unsettled:  # the first use looks at it
                return
            self._drop_non_finite()
            if int(self.count) != self._filled():
                self.count = torch.full_like(self.count, self._filled())
