"""What a caller may pass: one clear sentence for bad input, without reading device memory.

Values of tensors are checked only where that costs no host synchronisation (CPU, not compiling).
"""

import math
import operator
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sede_kernels.backends import registry
from sede_kernels.dense import check_dense
from sede_kernels.ops.transforms import check_transforms
from sede_kernels.types import result_dtype

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LARGEST = sys.float_info.max
MOST = (1 << 63) - 1  # of an int64
FALSE_NEGATIVES = ("mask", "positive", "keep")

#: Of a temperature: with similarities up to 10^8, s / temperature is a float32.
LEAST_TEMPERATURE = 1e-30
#: Of a hardness: the rounding of hardness x similarity in float32 is then 0.06.
LARGEST_HARDNESS = 1e6


def shape_of(tensor: Tensor) -> str:
    """``(4096, 300)``."""
    return str(tuple(tensor.shape))


def check_float_matrix(name: str, argument: str, tensor: Tensor, ndim: int = 2) -> None:
    """A floating tensor of ``ndim`` dimensions."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: {argument} must be a torch.Tensor, got {type(tensor).__name__}.")
    check_dense(name, argument, tensor)
    if tensor.ndim != ndim:
        expected = {
            2: "(rows, dim)",
            3: "(sets, fragments, dim)",
            4: "(queries, sets, fragments, dim)",
        }[ndim]
        raise ValueError(f"{name}: {argument} must be {expected}, got shape {shape_of(tensor)}.")
    if tensor.dtype not in FLOATS:
        raise TypeError(
            f"{name}: {argument} must be float32, bfloat16, float16 or float64, "
            f"got {tensor.dtype}; convert it with .float()."
        )


def check_same_device(name: str, first: Tensor, **others: Tensor | None) -> None:
    """All tensors on the device of ``first``; what is no tensor has a check of its own."""
    for argument, tensor in others.items():
        if isinstance(tensor, Tensor) and tensor.device != first.device:
            raise ValueError(
                f"{name}: {argument} is on {tensor.device} but the query is on {first.device}; "
                "move one of them with .to()."
            )


def is_integer(dtype: torch.dtype) -> bool:
    """Whether a dtype counts: neither floating nor complex nor bool."""
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def check_integers(name: str, argument: str, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Integers of this shape, returned dense as int64, as kernels read them."""
    check_dense(name, argument, values)
    if not is_integer(values.dtype):
        raise TypeError(f"{name}: {argument} must be integers (int64), got {values.dtype}.")
    if tuple(values.shape) != shape:
        each = ", one per row" if len(shape) == 1 else ""
        raise ValueError(f"{name}: {argument} must be {shape}{each}, got {shape_of(values)}.")
    found = values.to(torch.int64).contiguous()
    if values.dtype == torch.uint64 and readable(found) and bool((found < 0).any()):
        raise ValueError(
            f"{name}: {argument} must be below 2^63, got an unsigned integer beyond it; shift them "
            "right by one bit."
        )
    return found


def check_ids(name: str, argument: str, ids: Tensor | None, rows: int) -> Tensor | None:
    """Integer ids (rows,), returned dense as int64."""
    if ids is None:
        return None
    if not isinstance(ids, Tensor):
        raise TypeError(
            f"{name}: {argument} must be a torch.Tensor of integers, got {type(ids).__name__}; "
            "pass torch.as_tensor of it (number strings first)."
        )
    return check_integers(name, argument, ids, (rows,))


def check_key_ids(name: str, ids: Tensor | None, rows: int, device: torch.device) -> Tensor | None:
    """Ids (rows,) >= 0 of keys as int64 on the device; values are read where that is free."""
    found = check_ids(name, "ids", ids, rows)
    if found is None:
        return None
    if readable(found) and rows:
        smallest = int(found.min())
        if smallest < 0:
            raise ValueError(
                f"{name}: ids must be >= 0 (-1 marks an empty slot), got {smallest}; "
                "leave ids out for keys without an id."
            )
    if found.is_meta and device.type != "meta":
        raise ValueError(f"{name}: ids are on meta but the keys are on {device}; give them values.")
    return found.to(device)


def check_limit(
    name: str, limit: Tensor | None, margin: float | None, like: Tensor
) -> Tensor | None:
    """A limit of each row's negatives (B,): detached, dense, in the dtype of the results.

    Args:
        name: of the function.
        limit: as it came.
        margin: the other bound of a negative's similarity, which excludes this one.
        like: the query, checked.
    """
    if limit is None:
        return None
    if margin is not None:
        raise ValueError(
            f"{name}: limit and margin both bound the similarity of a negative, got both; pass one "
            "of them."
        )
    if not isinstance(limit, Tensor):
        raise TypeError(
            f"{name}: limit must be a (B,) floating tensor, one limit per row, got "
            f"{type(limit).__name__}; use torch.full."
        )
    check_dense(name, "limit", limit)
    if limit.dtype not in FLOATS or limit.shape != like.shape[:1]:
        raise ValueError(
            f"{name}: limit must be ({like.shape[0]},) floating, one limit per row, got "
            f"{shape_of(limit)} {limit.dtype}."
        )
    check_same_device(name, like, limit=limit)
    return limit.detach().to(result_dtype(like)).contiguous()


def check_count(name: str, argument: str, value: Any, *, least: int = 0) -> int:
    """An integer >= ``least``; NumPy's count, True does not."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name}: {argument} must be an integer >= {least}, got {value!r}.")
    if number > MOST:
        raise ValueError(f"{name}: {argument} must be below 2^63, got {value!r}.")
    return number


def check_choice(name: str, argument: str, value: Any, choices: Iterable[Any]) -> None:
    """One of a closed list."""
    known = list(choices)
    if not any(value is choice or value == choice for choice in known):
        listed = ", ".join(map(str, known))
        raise ValueError(f"{name}: {argument} must be one of {listed}, got {value!r}.")


def check_bool(name: str, argument: str, value: object) -> None:
    """True or False, and nothing that merely counts as one of them."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: {argument} must be True or False, got {value!r}.")


def check_flag(name: str, argument: str, flag: Tensor, like: Tensor) -> None:
    """A flag that the device decides by: a 0-d bool tensor beside the query."""
    check_dense(name, argument, flag)
    if flag.dtype != torch.bool or flag.ndim:
        raise TypeError(
            f"{name}: {argument} must be a bool or a 0-d bool tensor, "
            f"got {flag.dtype} {shape_of(flag)}."
        )
    check_same_device(name, like, **{argument: flag})


def check_backend(name: str, backend: str, *inputs: object) -> str:
    """The requested backend's name, ``SEDE_BACKEND`` applied.

    Kernels do not serve every transform of the differentiable ``inputs``: those are refused here.
    """
    chosen = requested(name, backend)
    if chosen != "reference":
        check_transforms(name, *inputs)
    return chosen


def requested(name: str, backend: str) -> str:
    """The requested backend's name alone; "reference" for the specification itself."""
    try:
        return registry.requested(backend)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def readable(tensor: Tensor) -> bool:
    """Whether a check may read the values: for free, and of a tensor that has some."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def check_number(
    name: str,
    argument: str,
    value: float,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
) -> float:
    """A finite number in [low, high], or (low, high] with ``open_low``."""
    if isinstance(value, bool | str | bytes):  # float() would take them
        raise TypeError(
            f"{name}: {argument} must be a number, got {type(value).__name__} {value!r}."
        )
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: {argument} must be a number, got {type(value).__name__}."
        ) from None
    inside = (low < number if open_low else low <= number) and number <= high
    # By comparison: a compiled function may hold a number that stands for any value.
    if not (-_LARGEST <= number <= _LARGEST and inside):
        if math.isinf(high):
            bound = f"{'>' if open_low else '>='} {low:g}" if math.isfinite(low) else "finite"
        else:
            bound = f"in {'(' if open_low else '['}{low:g}, {high:g}]"
        raise ValueError(f"{name}: {argument} must be {bound}, got {number}.")
    return number


def check_temperature(name: str, value: float) -> float:
    """A temperature whose inverse, times a similarity, is a float32."""
    number = check_number(name, "temperature", value, low=0.0, open_low=True)
    if not number >= LEAST_TEMPERATURE:
        raise ValueError(
            f"{name}: temperature must be at least {LEAST_TEMPERATURE:g}, got {number}: a "
            "similarity divided by it is beyond float32."
        )
    return number


def check_hardness(name: str, value: float) -> float:
    """A hardness that leaves the weighted sum digits: its rounding is that of hardness times s."""
    number = check_number(name, "hardness", value, low=0.0)
    if not number <= LARGEST_HARDNESS:
        raise ValueError(
            f"{name}: hardness must be at most {LARGEST_HARDNESS:g}, got {number}: beyond it the "
            "loss has no digits left in float32."
        )
    return number


_SCALARS = {"temperature": check_temperature, "hardness": check_hardness}


def scalar_parameter(
    name: str, argument: str, value: float | Tensor, like: Tensor
) -> float | Tensor:
    """A float, or a one-element tensor as a 0-d tensor in the dtype of the results.

    Its value is checked where reading it is free.

    Args:
        name: of the function.
        argument: ``temperature`` or ``hardness``.
        value: as it came.
        like: the query.
    """
    check = _SCALARS[argument]
    if not isinstance(value, Tensor):
        return check(name, value)
    check_dense(name, argument, value)
    if value.numel() != 1:
        raise ValueError(
            f"{name}: {argument} must be a number or a one-element tensor, "
            f"got shape {shape_of(value)}."
        )
    check_same_device(name, like, **{argument: value})
    if readable(value):
        check(name, value.detach().item())
    return value.reshape(()).to(torch.float64 if like.dtype == torch.float64 else torch.float32)


def check_lengths(
    name: str, argument: str, lengths: Tensor | None, shape: tuple[int, ...], maximum: int
) -> Tensor | None:
    """Integer lengths of ``shape`` in [0, maximum], dense as int64."""
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        raise TypeError(
            f"{name}: {argument} must be a torch.Tensor, got {type(lengths).__name__}; use "
            "torch.as_tensor."
        )
    look = registry.native_look("erase", "lengths_fit") if readable(lengths) else None
    if look is not None and look(lengths, shape, maximum):
        return lengths
    found = check_integers(name, argument, lengths, shape)
    if readable(found) and found.numel():
        smallest, largest = int(found.min()), int(found.max())
        if smallest < 0 or largest > maximum:
            raise ValueError(
                f"{name}: {argument} must lie in [0, {maximum}], got {smallest} to {largest}."
            )
    return found


def check_weights(
    name: str,
    normalize_weights: bool,
    detach_weights: bool,
    false_negatives: str,
    reduction: str,
) -> None:
    """The keywords that all weighted losses have."""
    check_choice(name, "false_negatives", false_negatives, FALSE_NEGATIVES)
    check_choice(name, "reduction", reduction, ("none", "mean", "sum"))
    check_bool(name, "normalize_weights", normalize_weights)
    check_bool(name, "detach_weights", detach_weights)


def check_info_nce(
    name: str,
    *,
    normalize_weights: bool,
    detach_weights: bool,
    positive_focus: float,
    tau_plus: float,
    false_negatives: str,
    margin: float | None,
    in_batch_negatives: bool | Tensor,
    unit_length: bool,
    reduction: str,
    max_inverse_temperature: float | None = None,
) -> None:
    """What can be said of the keywords of the losses without a tensor; modules ask at construction.

    Raises:
        TypeError, ValueError: one sentence naming what was expected and what came.
    """
    check_weights(name, normalize_weights, detach_weights, false_negatives, reduction)
    if margin is not None:
        check_number(name, "margin", margin)
    if max_inverse_temperature is not None:
        check_number(
            name, "max_inverse_temperature", max_inverse_temperature, low=0.0, open_low=True
        )
    check_bool(name, "unit_length", unit_length)
    if not isinstance(in_batch_negatives, Tensor):
        check_bool(name, "in_batch_negatives", in_batch_negatives)
    check_number(name, "positive_focus", positive_focus, low=0.0)
    if check_number(name, "tau_plus", tau_plus, low=0.0, high=1.0) == 1.0:
        raise ValueError(f"{name}: tau_plus must be below 1, got 1.")
