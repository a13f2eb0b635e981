"""A bank of fragment sets, for models that compare sets and have no single vector to store."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sede_kernels import ops
from sede_kernels.checks import check_count, check_key_ids, is_integer
from sede_kernels.dense import check_dense
from sede_kernels.ring import (
    BANK_DTYPES,
    Ring,
    apart,
    ids_where,
)
from sede_kernels.types import FragmentRing

NAME = "FragmentBank.enqueue"
_RING = ("rows", "lengths", "ids", "ptr", "count", "rejected")  # of a FragmentRing


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


class FragmentBank(Ring):
    """Ring buffer of fragment sets (regions of an image, words of a caption) with lengths.

    For models that compare sets (SCAN, BFAN) and have no single vector to store. A set with a NaN
    or an infinity in a valid fragment is not stored, see ``MemoryBank``.

    Args:
        size: K >= 1, number of sets.
        max_length: L >= 1, most fragments a set.
        dim: D >= 1.
        dtype: float32, bfloat16, float16 or float64.

    Attributes:
        rows: (K, L, D), zero beyond each length.
        lengths: (K,) int64, 0 for an empty slot.
        ids: (K,) int64, -1 for an empty slot, -2 for a set without an id.
        ptr: () int64, next slot to write.
        count: () int64, filled slots.
        rejected: () int64, sets that were not stored.

    Example:
        >>> bank = FragmentBank(4, 3, 2)
        >>> bank.enqueue(torch.ones(2, 2, 2), torch.tensor([2, 1]))
        >>> bank.lengths.tolist()
        [2, 1, 0, 0]
    """

    fixed: ClassVar[Mapping[str, torch.dtype]] = {**Ring.fixed, "lengths": torch.int64}

    lengths: Tensor

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
            check_count("FragmentBank", argument, value, least=1)
        if dtype not in BANK_DTYPES[:-1]:
            raise TypeError(
                f"FragmentBank: dtype must be float32, bfloat16, float16 or float64, got {dtype}."
            )
        self.register_buffer("rows", torch.zeros(size, max_length, dim, dtype=dtype, device=device))
        self.register_buffer("lengths", torch.zeros(size, dtype=torch.int64, device=device))
        self._make_counters(device)

    def extra_repr(self) -> str:
        """Shape and dtype."""
        size, longest, dim = self.rows.shape
        return f"size={size}, max_length={longest}, dim={dim}, dtype={self.rows.dtype}"

    @torch.no_grad()
    def enqueue(
        self,
        keys: Tensor,
        lengths: Tensor | None = None,
        ids: Tensor | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        """Write N fragment sets at the ring pointer.

        Args:
            keys: (N, L', D) floating with L' <= max_length, on the bank's device.
            lengths: (N,) integers in [1, L']; None: all L' fragments are valid.
            ids: (N,) integers >= 0, or None.
            backend: see ``weighted_info_nce``.

        Raises:
            ValueError, TypeError: wrong shape, dtype, device, lengths or ids; nothing is written.

        Cost:
            One read of the keys and one write of N sets, and a read of them to find what is not
            finite; no host synchronisation.
        """
        held: Any = self._buffers
        if not torch.compiler.is_compiling():
            keys, ids = apart(keys, held["rows"]), apart(ids, held["ids"])
            lengths = apart(lengths, held["lengths"])
            if not self._needs_a_look():
                ring = FragmentRing(*(held[name] for name in _RING))
                if ops.enqueue_fragments.at_once(ring, keys, lengths, ids, backend):
                    return
        self._ready()
        key_lengths = self._checked(keys, lengths)
        key_ids = check_key_ids(NAME, ids, keys.shape[0], keys.device)
        if keys.shape[0]:
            ring = FragmentRing(*(held[name] for name in _RING))
            ops.enqueue_fragments.enqueue_fragments(
                ring, keys.detach(), key_lengths, key_ids, backend
            )

    def _checked(self, keys: Tensor, lengths: Tensor | None) -> Tensor | None:
        """Lengths (N,) int64 of keys that fit this bank."""
        _, longest, dim = self.rows.shape
        if isinstance(keys, Tensor):
            check_dense(NAME, "keys", keys)
        if not isinstance(keys, Tensor) or not keys.dtype.is_floating_point:
            came = keys.dtype if isinstance(keys, Tensor) else type(keys).__name__
            raise TypeError(f"{NAME}: keys must be a floating tensor, got {came}.")
        if keys.ndim != 3 or keys.shape[2] != dim or keys.shape[1] > longest:
            raise ValueError(
                f"{NAME}: keys must be (N, at most {longest}, {dim}), got {tuple(keys.shape)}."
            )
        if keys.device != self.rows.device:
            raise ValueError(f"{NAME}: keys are on {keys.device}, the bank on {self.rows.device}.")
        total, width = keys.shape[:2]
        if lengths is None:
            return None
        if not isinstance(lengths, Tensor):
            raise TypeError(
                f"{NAME}: lengths must be a torch.Tensor, got {type(lengths).__name__}."
            )
        check_dense(NAME, "lengths", lengths)
        if lengths.shape != (total,) or not is_integer(lengths.dtype):
            raise ValueError(
                f"{NAME}: lengths must be ({total},) integers, one per set, "
                f"got {tuple(lengths.shape)} {lengths.dtype}."
            )
        if lengths.is_meta and not keys.is_meta:
            raise ValueError(f"{NAME}: lengths are on meta, the keys on {keys.device}.")
        if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and total:
            counts = lengths.to(torch.int64)
            shortest, most = int(counts.min()), int(counts.max())
            if shortest < 1 or most > width:
                raise ValueError(
                    f"{NAME}: lengths must lie in [1, {width}], got {shortest} to {most}."
                )
        return lengths.to(keys.device, torch.int64).clamp(0, width)

    def where(self, flag: Tensor | None) -> "FragmentBank | FragmentView":
        """The bank where ``flag`` holds, one with every id -1 elsewhere; see ``MemoryBank``."""
        self._ready()
        if flag is None:
            return self
        ids = ids_where("FragmentBank.where", flag, self.ids)
        return FragmentView(self.rows, self.lengths, ids)

    def _wrong_value(self, name: str, value: Tensor) -> list[str]:
        longest = self.rows.shape[1]
        if name == "lengths" and not 0 <= int(value.min()) <= int(value.max()) <= longest:
            return [f"lengths must lie in [0, {longest}], got {value.min()} to {value.max()}"]
        return super()._wrong_value(name, value)
