"""One sentence for a setting or an input that a twin cannot take, before anything changes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sede_kernels.bank import BANK_DTYPES, FragmentBank, MemoryBank
from sede_kernels.checks import FLOATS, check_count, check_integers, readable
from sede_kernels.dense import check_dense

Ids = Tensor | Sequence[int]


def check_real(
    name: str,
    argument: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    none: str = "",
) -> float:
    """A finite number, >= ``least`` and > ``above``; ``none`` says what None would mean."""
    bound = "finite"
    if above > -math.inf:
        bound = f"> {above:g}"
    elif least > -math.inf:
        bound = f">= {least:g}"
    prefix = f"{name}: {argument} must be " + (f"None ({none}) or " if none else "")
    number = math.nan
    try:
        known = not isinstance(value, str | bytes | bool)
        if isinstance(value, Tensor):
            known = value.numel() == 1 and not value.requires_grad
        number = float(value) if known else number
    except (TypeError, ValueError):
        known = False
    if not known:
        came = described(value) if isinstance(value, Tensor) else repr(value)
        kind = "a number" if bound == "finite" else f"a number {bound}"
        raise TypeError(f"{prefix}{kind}, got {came}.")
    if not (math.isfinite(number) and number >= least and number > above):
        raise ValueError(f"{prefix}{bound}, got {number:g}.")
    return number


def check_switch(name: str, argument: str, value: Any) -> bool:
    """True or False; 0 and 1 pass, a string such as "False" does not."""
    if isinstance(value, str) or value not in (True, False):
        raise ValueError(f"{name}: {argument} must be True or False, got {value!r}.")
    return bool(value)


def check_bank_settings(
    name: str,
    bank_size: Any,
    dim: Any,
    bank_dtype: Any,
    *,
    fragments: bool = False,
    names: tuple[str, str, str] = ("bank_size", "dim", "bank_dtype"),
) -> tuple[int, int]:
    """Size >= 0 and width of a bank; the width is 0 where there is no bank and none was given."""
    size = check_count(name, names[0], bank_size)
    allowed = BANK_DTYPES[:-1] if fragments else BANK_DTYPES
    if bank_dtype not in allowed:
        listed = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{name}: {names[2]} must be one of {listed}, got {bank_dtype!r}.")
    if dim is None:
        if size:
            raise ValueError(f"{name}: {names[0]}={size} needs {names[1]} too.")
        return 0, 0
    return size, check_count(name, names[1], dim, least=1)


def check_options(name: str, options: object, *needed: str) -> None:
    """The host's parsed arguments hold what is read of them."""
    missing = [attribute for attribute in needed if not hasattr(options, attribute)]
    if missing:
        raise ValueError(
            f"{name}: opt must have {', '.join(needed)}, and has no {missing[0]}; pass the host's "
            "parsed arguments."
        )


def described(value: object) -> str:
    """``float32 (4, 8)`` of a tensor, the type and length of anything else."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def check_features(
    name: str, argument: str, rows: Any, shape: Sequence[int | None], letters: str = "B, D"
) -> None:
    """A floating tensor of this shape, where None stands for any length."""
    if isinstance(rows, Tensor):
        check_dense(name, argument, rows)
    fits = (
        isinstance(rows, Tensor)
        and rows.dtype in FLOATS
        and rows.ndim == len(shape)
        and all(want is None or have == want for have, want in zip(rows.shape, shape, strict=True))
    )
    if not fits:
        names = letters.split(", ")
        wanted = ", ".join(
            names[index] if length is None else str(length) for index, length in enumerate(shape)
        )
        raise (ValueError if isinstance(rows, Tensor) else TypeError)(
            f"{name}: {argument} must be a floating tensor ({wanted}), got {described(rows)}."
        )


def check_stored(
    name: str,
    keys: Sequence[tuple[str, Any, MemoryBank | None]],
    ids: Tensor | None = None,
) -> None:
    """Keys (N, D) that their banks can take, one row an id, before any bank is written."""
    first = keys[0][1]
    for argument, rows, bank in keys:
        check_features(name, argument, rows, (None, None if bank is None else bank.rows.shape[1]))
        if rows.shape[0] != first.shape[0]:
            raise ValueError(
                f"{name}: {keys[0][0]} and {argument} must have as many rows, got "
                f"{first.shape[0]} and {rows.shape[0]}."
            )
        if bank is not None:
            check_beside(name, argument, rows, bank)
    if ids is not None and ids.shape[0] != first.shape[0]:
        raise ValueError(
            f"{name}: {keys[0][0]} must have a row an id, got {first.shape[0]} rows and "
            f"{ids.shape[0]} ids."
        )


def check_beside(name: str, argument: str, rows: Tensor, bank: MemoryBank | FragmentBank) -> None:
    """On the device of the bank."""
    if rows.device != bank.rows.device:
        raise ValueError(
            f"{name}: {argument} is on {rows.device} but the bank is on {bank.rows.device}; move "
            "the criterion with .to()."
        )


def check_temperature(name: str, argument: str, value: Any, device: torch.device) -> None:
    """A number > 0, or a tensor of one element on the device, read only where that is free."""
    if not isinstance(value, Tensor):
        check_real(name, argument, value, above=0.0)
        return
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"{name}: {argument} must be a number or a tensor of one element, "
            f"got {described(value)}."
        )
    if value.device != device:
        raise ValueError(
            f"{name}: {argument} is on {value.device} but the features are on {device}; move one "
            "of them with .to()."
        )
    if readable(value):
        check_real(name, argument, value.detach().item(), above=0.0)


def integers(
    name: str, argument: str, values: Any, rows: int, device: torch.device, *, column: bool = False
) -> Tensor:
    """Integers (rows,), or (rows, 1) as a ``column``, as int64 (rows,) on the device.

    They come as a tensor, array, list or tuple.
    """
    expected = f"{argument} must be integers, one per row"
    if not isinstance(values, Tensor):
        if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
            raise TypeError(f"{name}: {expected}, got {values!r}.")
        strange = [value for value in values if isinstance(value, str | bytes | bool | float)]
        if strange:
            kind = type(strange[0]).__name__
            hint = "; map names to integers first" if isinstance(strange[0], str) else ""
            raise TypeError(f"{name}: {expected}, got {kind} {strange[0]!r}{hint}.")
    try:
        found = torch.as_tensor(values, device=device)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name}: {expected}, got a {type(values).__name__} of others.") from None
    if not found.numel() and not isinstance(values, Tensor):
        found = found.to(torch.int64)
    if column and found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    return check_integers(name, argument, found, (rows,))


def ids_tensor(
    name: str, ids: Ids | None, rows: int, device: torch.device, *, column: bool = False
) -> Tensor | None:
    """Ids (rows,) >= 0 as int64 on the device; lists and tuples of data loaders are welcome."""
    if ids is None:
        return None
    found = integers(name, "ids", ids, rows, device, column=column)
    if rows and readable(found):
        smallest = int(found.min())
        if smallest < 0:
            raise ValueError(
                f"{name}: ids must be >= 0, got {smallest}; leave ids out where they are unknown."
            )
    return found


def lengths_tensor(
    name: str, lengths: Ids, rows: int, longest: int, device: torch.device, *, least: int = 0
) -> Tensor:
    """Word counts (rows,) in [least, longest] as int64; values are read where that is free."""
    found = integers(name, "lengths", lengths, rows, device)
    if rows and readable(found):
        smallest, largest = int(found.min()), int(found.max())
        if smallest < least or largest > longest:
            raise ValueError(
                f"{name}: lengths must lie in [{least}, {longest}], got {smallest} to {largest}."
            )
    return found
