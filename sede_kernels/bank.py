"""Memory banks: ring buffers of past keys with their ids, as modules whose state survives."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sede_kernels import ops

BANK_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8)
EMPTY, ANONYMOUS = -1, -2


def _positive_int(name: str, argument: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: {argument} must be an integer >= 1, got {value!r}.")
    return value


def _checked_ids(name: str, ids: Tensor | None, rows: int, device: torch.device) -> Tensor | None:
    if ids is None:
        return None
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name}: ids must be a torch.Tensor, got {type(ids).__name__}.")
    if ids.dtype.is_floating_point or ids.dtype == torch.bool:
        raise TypeError(f"{name}: ids must be integers (int64), got {ids.dtype}.")
    if ids.shape != (rows,):
        raise ValueError(f"{name}: ids must be ({rows},), one a key, got {tuple(ids.shape)}.")
    if ids.device.type == "cpu" and not torch.compiler.is_compiling() and rows:
        smallest = int(ids.min())
        if smallest < 0:
            raise ValueError(
                f"{name}: ids must be >= 0 (-1 marks an empty slot), got {smallest}; "
                "leave ids out for keys without an id."
            )
    return ids.to(device=device, dtype=torch.int64)


class BankView(NamedTuple):
    """A bank as the functions read it; what ``MemoryBank.where`` returns.

    Attributes:
        rows: (K, D), the bank's own.
        row_scale: (K,) of an int8 bank, else None.
        ids: (K,) int64, -1 for a slot that does not count.
    """

    rows: Tensor
    row_scale: Tensor | None
    ids: Tensor


class FragmentView(NamedTuple):
    """A fragment bank as a loss reads it; what ``FragmentBank.where`` returns.

    Attributes:
        rows: (K, L, D), the bank's own.
        lengths: (K,) int64.
        ids: (K,) int64, -1 for a slot that does not count.
    """

    rows: Tensor
    lengths: Tensor
    ids: Tensor


def _ids_where(name: str, flag: Tensor, ids: Tensor) -> Tensor:
    """``ids``, all -1 where the flag is False; decided on the device."""
    if not isinstance(flag, Tensor) or flag.dtype != torch.bool or flag.ndim:
        came = f"{flag.dtype} {tuple(flag.shape)}" if isinstance(flag, Tensor) else repr(flag)
        raise TypeError(f"{name}: flag must be a 0-d bool tensor or None, got {came}.")
    return torch.where(flag, ids, EMPTY)


class MemoryBank(nn.Module):
    """Ring buffer of the last ``size`` keys: the negatives of the weighted InfoNCE.

    ``enqueue`` is explicit and in place, takes any number of keys and wraps anywhere; nothing
    else changes the bank. Call it in training only, after the loss, on every rank alike (see
    ``sede_kernels.distributed`` for a bank shared between ranks).

    Args:
        size: K >= 1, number of slots.
        dim: D >= 1, length of a key.
        dtype: float32, bfloat16, float16, float64, or int8 with one float32 scale a row.
        normalize: scale keys to unit length in ``enqueue`` (a key that already is stays bit for
            bit); the loss kernels do not need it.

    Attributes:
        rows: (K, D) ``dtype``.
        row_scale: (K,) float32 for int8 banks, else None; row j is ``row_scale[j] * rows[j]``.
        ids: (K,) int64, -1 for an empty slot, -2 for a key that came without an id.
        ptr: () int64, next slot to write.
        count: () int64, filled slots.

    All are buffers: in ``state_dict``, moved by ``.to()`` (which leaves the row dtype alone
    except for floating banks), copied by ``deepcopy``. ``enqueue`` never synchronises with a GPU.

    Example:
        >>> bank = MemoryBank(3, 2)
        >>> bank.enqueue(torch.eye(2), torch.tensor([7, 8]))
        >>> bank.ids.tolist(), len(bank)
        ([7, 8, -1], 2)
    """

    rows: Tensor
    row_scale: Tensor | None
    ids: Tensor
    ptr: Tensor
    count: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        normalize: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        _positive_int("MemoryBank", "size", size)
        _positive_int("MemoryBank", "dim", dim)
        if dtype not in BANK_DTYPES:
            raise TypeError(
                "MemoryBank: dtype must be float32, bfloat16, float16, float64 or int8, "
                f"got {dtype}."
            )
        self.normalize = normalize
        self.register_buffer("rows", torch.zeros(size, dim, dtype=dtype, device=device))
        scale = torch.zeros(size, device=device) if dtype == torch.int8 else None
        self.register_buffer("row_scale", scale)
        self.register_buffer("ids", torch.full((size,), EMPTY, device=device))
        self.register_buffer("ptr", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))

    def __len__(self) -> int:
        """Filled slots; reads the device."""
        return int(self.count)

    def extra_repr(self) -> str:
        """Shape and dtype."""
        size, dim = self.rows.shape
        return f"size={size}, dim={dim}, dtype={self.rows.dtype}, normalize={self.normalize}"

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        # .half() or .to(bfloat16) of a whole model must not touch the scales of an int8 bank.
        scale = self.row_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if scale is not None and self.row_scale is not None:
            self.row_scale = scale.to(self.row_scale.device)
        return self

    @torch.no_grad()
    def enqueue(self, keys: Tensor, ids: Tensor | None = None, *, backend: str = "auto") -> None:
        """Write keys (N, D) at the ring pointer; the oldest rows go, only the last K stay.

        Args:
            keys: (N, D) floating, any N >= 0, on the bank's device; never modified.
            ids: (N,) integers >= 0 naming what each key is of, or None.
            backend: see ``weighted_info_nce``.

        Raises:
            ValueError, TypeError: wrong shape, dtype, device or ids; the bank stays as it was.

        Cost:
            One read of the keys and one write of N rows; no host synchronisation.
        """
        rows = self.rows
        dim = rows.shape[1]
        if not isinstance(keys, Tensor) or not keys.dtype.is_floating_point:
            came = keys.dtype if isinstance(keys, Tensor) else type(keys).__name__
            raise TypeError(f"MemoryBank.enqueue: keys must be a floating tensor, got {came}.")
        if keys.ndim != 2 or keys.shape[1] != dim:
            raise ValueError(
                f"MemoryBank.enqueue: keys must be (N, {dim}), got {tuple(keys.shape)}."
            )
        if keys.device != rows.device:
            raise ValueError(
                f"MemoryBank.enqueue: keys are on {keys.device} but the bank is on "
                f"{rows.device}; move one of them with .to()."
            )
        key_ids = _checked_ids("MemoryBank.enqueue", ids, keys.shape[0], keys.device)
        if keys.shape[0]:
            ops.enqueue.write(
                rows,
                self.row_scale,
                self.ids,
                self.ptr,
                self.count,
                keys.detach(),
                key_ids,
                self.normalize,
                backend,
            )

    def where(self, flag: Tensor | None) -> "MemoryBank | BankView":
        """The bank where ``flag`` holds, an empty one elsewhere; for ``bank`` of any function.

        Args:
            flag: () bool on the bank's device, never read on the host; None for the bank itself.

        Raises:
            TypeError: the flag is something else.

        Cost:
            One pass over the ids.
        """
        if flag is None:
            return self
        return BankView(self.rows, self.row_scale, _ids_where("MemoryBank.where", flag, self.ids))

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(K, D) copy in ``dtype``, scales applied, in slot order; empty slots are zero."""
        rows = self.rows.to(dtype)
        if self.row_scale is not None:
            rows = rows * self.row_scale.to(dtype).unsqueeze(1)
        return rows.masked_fill((self.ids == EMPTY).unsqueeze(1), 0.0)

    @torch.no_grad()
    def clear(self) -> None:
        """Empty every slot."""
        self.ids.fill_(EMPTY)
        self.ptr.zero_()
        self.count.zero_()


class FragmentBank(nn.Module):
    """Ring buffer of fragment sets (regions of an image, words of a caption) with lengths.

    For models that compare sets (SCAN, BFAN) and have no single vector to store.

    Args:
        size: K >= 1, number of sets.
        max_length: L >= 1, most fragments a set.
        dim: D >= 1.
        dtype: float32, bfloat16, float16 or float64.

    Attributes:
        rows: (K, L, D), zero beyond each length.
        lengths: (K,) int64, 0 for an empty slot.
        ids: (K,) int64, -1 for an empty slot, -2 for a set without an id.
        ptr: () int64.
        count: () int64.

    Example:
        >>> bank = FragmentBank(4, 3, 2)
        >>> bank.enqueue(torch.ones(2, 2, 2), torch.tensor([2, 1]))
        >>> bank.lengths.tolist()
        [2, 1, 0, 0]
    """

    rows: Tensor
    lengths: Tensor
    ids: Tensor
    ptr: Tensor
    count: Tensor

    def __init__(
        self,
        size: int,
        max_length: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for argument, value in (("size", size), ("max_length", max_length), ("dim", dim)):
            _positive_int("FragmentBank", argument, value)
        if dtype not in BANK_DTYPES[:-1]:
            raise TypeError(
                f"FragmentBank: dtype must be float32, bfloat16, float16 or float64, got {dtype}."
            )
        self.register_buffer("rows", torch.zeros(size, max_length, dim, dtype=dtype, device=device))
        self.register_buffer("lengths", torch.zeros(size, dtype=torch.int64, device=device))
        self.register_buffer("ids", torch.full((size,), EMPTY, device=device))
        self.register_buffer("ptr", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))

    def __len__(self) -> int:
        """Filled slots; reads the device."""
        return int(self.count)

    @torch.no_grad()
    def enqueue(
        self, keys: Tensor, lengths: Tensor | None = None, ids: Tensor | None = None
    ) -> None:
        """Write N fragment sets at the ring pointer.

        Args:
            keys: (N, L', D) floating with L' <= max_length, on the bank's device.
            lengths: (N,) integers in [1, L']; None: all L' fragments are valid.
            ids: (N,) integers >= 0, or None.

        Raises:
            ValueError, TypeError: wrong shape, dtype, device, lengths or ids; nothing is written.

        Cost:
            One read of the keys and one write of N sets; no host synchronisation.
        """
        name = "FragmentBank.enqueue"
        size, longest, dim = self.rows.shape
        if not isinstance(keys, Tensor) or not keys.dtype.is_floating_point:
            came = keys.dtype if isinstance(keys, Tensor) else type(keys).__name__
            raise TypeError(f"{name}: keys must be a floating tensor, got {came}.")
        if keys.ndim != 3 or keys.shape[2] != dim or keys.shape[1] > longest:
            raise ValueError(
                f"{name}: keys must be (N, at most {longest}, {dim}), got {tuple(keys.shape)}."
            )
        if keys.device != self.rows.device:
            raise ValueError(f"{name}: keys are on {keys.device}, the bank on {self.rows.device}.")
        total, width = keys.shape[:2]
        ragged = lengths is not None
        if lengths is None:
            lengths = torch.full((total,), width, device=keys.device)
        if lengths.shape != (total,) or lengths.dtype.is_floating_point:
            raise ValueError(
                f"{name}: lengths must be ({total},) integers, one a set, "
                f"got {tuple(lengths.shape)} {lengths.dtype}."
            )
        if lengths.device.type == "cpu" and total and not torch.compiler.is_compiling():
            shortest, most = int(lengths.min()), int(lengths.max())
            if shortest < 1 or most > width:
                raise ValueError(
                    f"{name}: lengths must lie in [1, {width}], got {shortest} to {most}."
                )
        key_ids = _checked_ids(name, ids, total, keys.device)
        skipped = max(0, total - size)
        slots = (self.ptr + torch.arange(skipped, total, device=keys.device)) % size
        sets, lengths = keys[skipped:], lengths.to(keys.device, torch.int64)[skipped:]
        if ragged:
            index = torch.arange(width, device=keys.device)
            sets = sets.masked_fill((index >= lengths.unsqueeze(1)).unsqueeze(2), 0.0)
        if width < longest:
            sets = F.pad(sets, (0, 0, 0, longest - width))
        self.rows.index_copy_(0, slots, sets.to(self.rows.dtype))
        self.lengths.index_copy_(0, slots, lengths)
        stored = torch.full_like(slots, ANONYMOUS) if key_ids is None else key_ids[skipped:]
        self.ids.index_copy_(0, slots, stored)
        self.ptr.copy_((self.ptr + total) % size)
        self.count.copy_((self.count + total).clamp(max=size))

    def where(self, flag: Tensor | None) -> "FragmentBank | FragmentView":
        """The bank where ``flag`` holds, one with every id -1 elsewhere; see ``MemoryBank``."""
        if flag is None:
            return self
        ids = _ids_where("FragmentBank.where", flag, self.ids)
        return FragmentView(self.rows, self.lengths, ids)
