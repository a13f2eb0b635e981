"""An eager loss whose arguments fit as they came, by native code and past the op."""

from functools import lru_cache
from typing import Any

from torch import Tensor

from sede_kernels import ops
from sede_kernels.backends.registry import serves_natively
from sede_kernels.bank import MemoryBank
from sede_kernels.functional._bank_argument import side_as_it_came
from sede_kernels.functional._bounded import bounded
from sede_kernels.functional._fused import (
    PLAIN,
    Given,
    Keywords,
    learns_of,
    one_shape,
    settings_of,
)
from sede_kernels.ops.transforms import goes_directly, nothing_looks_on
from sede_kernels.types import InfoNCE, InfoNCERule, Scalars, Side

_FALSE_NEGATIVES, _IN_BATCH, _BACKEND, _BOUND = (
    Keywords._fields.index(name)
    for name in ("false_negatives", "in_batch_negatives", "backend", "max_inverse_temperature")
)


def _side(given: Given, values: tuple[Any, ...]) -> Side | None:
    """The side where native code need not convert or refuse any of its tensors."""
    query, positive, bank, ids, bank_ids, _, limit = given
    if limit is not None or (ids is None and values[_FALSE_NEGATIVES] == "positive"):
        return None
    if type(bank) is MemoryBank and bank_ids is None:
        side = Side(query, positive, *(bank.glance() or bank.view()[:3]), ids)
    elif type(bank) is Tensor:
        side = Side(query, positive, bank, None, bank_ids, ids)
    elif bank is None:
        if values[_IN_BATCH] is False or bank_ids is not None:
            return None
        rows: Any = None  # of which native code makes a bank without rows
        side = Side(query, positive, rows, None, None, ids)
    else:
        found = None
        if getattr(bank, "shard", None) is None:
            found = side_as_it_came(query, positive, bank, ids, bank_ids)
        if found is None:
            return None
        side = found
    return side if ops.info_nce.fits(side) else None


@lru_cache(maxsize=256, typed=True)
def _of_numbers(
    name: str, hardest: bool, query_grad: bool, learns: bool, *values: Any
) -> tuple[Scalars, InfoNCERule]:
    keywords = Keywords(*values)
    temperature = bounded(name, keywords.temperature, keywords.max_inverse_temperature, None)
    return settings_of(
        name, keywords._replace(temperature=temperature), None, hardest, query_grad, learns, True
    )


def at_once(
    name: str, sides: tuple[Given, ...], values: tuple[Any, ...], hardest: bool
) -> InfoNCE | None:
    """The loss of one side, or the mean of two, else None: then the checks have to look.

    Args:
        name: of the function.
        sides: the tensors as they came.
        values: ``Keywords`` as they came; the temperature is not bounded, the backend not resolved.
        hardest: statistics are wanted.
    """
    if not (nothing_looks_on() and serves_natively(values[_BACKEND])):
        return None
    side, other = _side(sides[0], values), None
    if side is None:
        return None
    if len(sides) > 1:
        other = _side(sides[1], values)
        if other is None or not one_shape(side, other) or other.query.dtype != side.query.dtype:
            return None
    query_grad, learns = learns_of(side, other)
    try:
        if PLAIN.issuperset(map(type, values)):
            scalars, rule = _of_numbers(name, hardest, query_grad, learns, *values)
            return ops.info_nce.at_once(side, other, scalars, rule, learns)
        limited = bounded(name, values[0], values[_BOUND], side.query)
        keywords = Keywords(limited, *values[1:])
        scalars, rule = settings_of(name, keywords, side.query, hardest, query_grad, learns, True)
    except (TypeError, ValueError):
        return None  # the checks find it again, in their order
    if not goes_directly(scalars[3:]):
        return None
    return ops.info_nce.at_once(side, other, scalars, rule, learns or rule.scalar_grad)
