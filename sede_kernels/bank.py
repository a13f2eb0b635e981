"""Memory banks: ring buffers of past keys with their ids, as modules whose state survives."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sede_kernels import ops
from sede_kernels.checks import FLOATS, check_bool, check_count, check_key_ids
from sede_kernels.dense import check_dense
from sede_kernels.fragment_bank import FragmentBank, FragmentView
from sede_kernels.ring import (
    BANK_DTYPES,
    Ring,
    apart,
    ids_where,
)
from sede_kernels.types import ANONYMOUS, EMPTY, RingState, Shard

__all__ = [
    "ANONYMOUS",
    "BANK_DTYPES",
    "EMPTY",
    "BankView",
    "FragmentBank",
    "FragmentView",
    "MemoryBank",
]


_RING = ("rows", "row_scale", "ids", "ptr", "count", "rejected")  # the buffers of a RingState


class BankView(NamedTuple):
    """A bank as the functions read it; what ``MemoryBank.where`` returns.

    Attributes:
        rows: (K, D), the bank's own.
        row_scale: (K,) of an int8 bank, else None.
        ids: (K,) int64, -1 for a slot that does not count.
        shard: which part of the bank this is, where several ranks hold it.
    """

    rows: Tensor
    row_scale: Tensor | None
    ids: Tensor
    shard: Shard | None = None


def check_keys(bank: "MemoryBank", keys: Any, ids: Any) -> Tensor | None:
    """Keys (N, D) that the bank can take; their ids as it takes them.

    Raises:
        TypeError, ValueError: one sentence naming what was expected and what came.
    """
    name, rows = "MemoryBank.enqueue", bank.rows
    dim = rows.shape[1]
    if isinstance(keys, Tensor):
        check_dense(name, "keys", keys)
    if not isinstance(keys, Tensor) or not keys.dtype.is_floating_point:
        came = keys.dtype if isinstance(keys, Tensor) else type(keys).__name__
        raise TypeError(f"{name}: keys must be a floating tensor, got {came}.")
    if keys.dtype not in FLOATS:
        raise TypeError(
            f"{name}: keys must be float32, bfloat16, float16 or float64, got {keys.dtype}."
        )
    if keys.ndim != 2 or keys.shape[1] != dim:
        raise ValueError(f"{name}: keys must be (N, {dim}), got {tuple(keys.shape)}.")
    if keys.device != rows.device:
        raise ValueError(
            f"{name}: keys are on {keys.device} but the bank is on "
            f"{rows.device}; move one of them with .to()."
        )
    return check_key_ids(name, ids, keys.shape[0], keys.device)


class MemoryBank(Ring):
    """Ring buffer of the last ``size`` keys: the negatives of the weighted InfoNCE.

    ``enqueue`` is explicit and in place, takes any number of keys and wraps anywhere; nothing
    else changes the bank. Call it in training only, after the loss, on every rank alike (see
    ``sede_kernels.distributed`` for a bank shared between ranks).

    Args:
        size: K >= 1, number of slots.
        dim: D >= 1, length of a key.
        dtype: float32, bfloat16, float16, float64, or int8 with one float32 scale per row.
        normalize: scale keys to unit length in ``enqueue`` (a key that already is stays bit for
            bit); the loss kernels do not need it.

    Attributes:
        rows: (K, D) ``dtype``.
        row_scale: (K,) float32 for int8 banks, else None; row j is ``row_scale[j] * rows[j]``.
        ids: (K,) int64, -1 for an empty slot, -2 for a key that came without an id.
        ptr: () int64, next slot to write.
        count: () int64, filled slots.
        rejected: () int64, keys that were not stored.

    All are buffers: in ``state_dict``, moved by ``.to()``, copied by ``deepcopy``. A cast reaches
    the rows of a floating bank and nothing else. A bank made on the meta device is empty when it
    leaves it. ``enqueue`` never synchronises with a GPU.

    A key is not stored where its row would not be finite: a NaN or an infinity in it, with
    ``normalize`` a squared norm beyond its dtype, or a number beyond the dtype of the bank. Its
    slot becomes a hole (id -1, zeros), the pointer moves on, ``rejected`` counts it. A hole is one
    negative less until the ring comes round, K / N calls later; it costs nothing else. Keys that
    the same call overwrites are not looked at.

    Example:
        >>> bank = MemoryBank(3, 2)
        >>> bank.enqueue(torch.eye(2), torch.tensor([7, 8]))
        >>> bank.ids.tolist(), len(bank)
        ([7, 8, -1], 2)
    """

    fixed: ClassVar[Mapping[str, torch.dtype]] = {**Ring.fixed, "row_scale": torch.float32}

    row_scale: Tensor | None
    shard: Shard | None = None  # which part of it is here, where several ranks hold it

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
        check_count("MemoryBank", "size", size, least=1)
        check_count("MemoryBank", "dim", dim, least=1)
        if dtype not in BANK_DTYPES:
            raise TypeError(
                "MemoryBank: dtype must be float32, bfloat16, float16, float64 or int8, "
                f"got {dtype}."
            )
        check_bool("MemoryBank", "normalize", normalize)
        self.normalize = normalize
        self.register_buffer("rows", torch.zeros(size, dim, dtype=dtype, device=device))
        scale = None
        if dtype == torch.int8:
            scale = torch.zeros(size, dtype=torch.float32, device=device)
        self.register_buffer("row_scale", scale)
        self._make_counters(device)

    def extra_repr(self) -> str:
        """Shape and dtype."""
        size, dim = self.rows.shape
        return f"size={size}, dim={dim}, dtype={self.rows.dtype}, normalize={self.normalize}"

    def finite_rows(self) -> Tensor:
        """(K,) bool: rows without NaN or infinity."""
        return super().finite_rows() if self.row_scale is None else self.row_scale.isfinite()

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
        held: Any = self._buffers
        if not torch.compiler.is_compiling():
            keys, ids = apart(keys, held["rows"]), apart(ids, held["ids"])
            if not self._needs_a_look():
                ring = RingState(*(held[name] for name in _RING))
                if ops.enqueue.at_once(ring, keys, ids, self.normalize, backend):
                    return
        self._ready()
        key_ids = check_keys(self, keys, ids)
        if keys.shape[0]:
            ring = RingState(*(held[name] for name in _RING))
            ops.enqueue.enqueue(ring, keys.detach(), key_ids, self.normalize, backend)

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
        view = self.view()
        return view._replace(ids=ids_where("MemoryBank.where", flag, view.ids))

    def glance(self) -> tuple[Tensor, Tensor | None, Tensor] | None:
        """Rows, scales and ids for a caller that checks them; None where the bank has to look."""
        if self._needs_a_look():
            return None
        held: Any = self._buffers
        return held["rows"], held["row_scale"], held["ids"]

    def view(self) -> BankView:
        """Rows, scales and ids as they stand."""
        self._ready()
        return BankView(self.rows, self.row_scale, self.ids)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(K, D) copy in ``dtype``, scales applied, in slot order; empty slots are zero."""
        self._ready()
        rows = self.rows.to(dtype)
        if self.row_scale is not None:
            rows = rows * self.row_scale.to(dtype).unsqueeze(1)
        return rows.masked_fill((self.ids == EMPTY).unsqueeze(1), 0.0)
