"""One call of the op ``info_nce``: one pass of checks, then the op.

Tensors that fit are seen at a glance, and settings that are numbers are checked once for all calls;
whatever does not fit goes through the checks of ``_info_nce``, which convert it or say what is
wrong.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sede_kernels import ops
from sede_kernels.bank import BankView, MemoryBank
from sede_kernels.checks import (
    check_flag,
    check_hardness,
    check_info_nce,
    check_limit,
    check_temperature,
    scalar_parameter,
)
from sede_kernels.functional._bank_argument import seen_to_fit, side_as_it_came, training_shard
from sede_kernels.functional._info_nce import (
    InfoNCEStats,
    check_direction,
    check_options,
    check_pair,
)
from sede_kernels.ops.bank_lse import STATIC_LIMIT
from sede_kernels.ops.transforms import check_transforms
from sede_kernels.types import TABLE, InfoNCE, InfoNCERule, Scalars, Shard, Side

_AT = object()  # in the place of a number that a tensor holds
#: Types whose values may be kept as the key of a cache: they stay what they are.
PLAIN = frozenset((float, int, str, bool, type(None), object))
_LOSS, _POSITIVE, _LOG_NEGATIVES, _HARDEST = (
    TABLE.index(name) for name in ("loss", "positive", "log_negatives", "hardest")
)


class Keywords(NamedTuple):
    """The keywords of a loss as they came."""

    temperature: Any  # a number or a tensor
    hardness: Any
    normalize_weights: bool
    detach_weights: bool
    positive_focus: float
    tau_plus: float
    false_negatives: str
    margin: float | None
    in_batch_negatives: bool | Tensor
    unit_length: bool
    reduction: str
    backend: str
    max_inverse_temperature: float | None = None  # the temperature is bounded already

    def plain(self) -> dict[str, Any]:
        """The keywords of ``check_options``."""
        found = self._asdict()
        del found["max_inverse_temperature"]
        return found


class Given(NamedTuple):
    """The tensors of one direction as they came."""

    query: Any
    positive: Any
    bank: Tensor | MemoryBank | BankView | None
    ids: Tensor | None
    bank_ids: Tensor | None
    names: tuple[str, str, str] = ("query", "positive", "query_ids")
    limit: Tensor | None = None


def _settings(
    name: str,
    temperature: Any,
    hardness: Any,
    normalize_weights: bool,
    detach_weights: bool,
    positive_focus: float,
    tau_plus: float,
    false_negatives: str,
    margin: float | None,
    in_batch: bool,
    unit_length: bool,
    reduction: str,
    hardest: bool,
    query_grad: bool,
    scalar_grad: bool,
    keep: bool,
    most_inverse: float | None,
) -> tuple[Scalars, InfoNCERule]:
    """Numbers and rule, checked; ``_AT`` for a temperature or hardness that is a tensor.

    ``most_inverse``: the bound of 1 / tau, if there is one.
    """
    check_info_nce(
        name,
        normalize_weights=normalize_weights,
        detach_weights=detach_weights,
        positive_focus=positive_focus,
        tau_plus=tau_plus,
        false_negatives=false_negatives,
        margin=margin,
        in_batch_negatives=in_batch,
        unit_length=unit_length,
        reduction=reduction,
    )
    scalars = Scalars(1.0, 0.0, 0.0 if margin is None else float(margin))
    most = 0.0
    if hardness is _AT or (temperature is _AT and most_inverse is None):
        most = STATIC_LIMIT + 1  # unknown on the host
    elif temperature is _AT and most_inverse is not None:
        most = most_inverse
    if temperature is not _AT:
        number = check_temperature(name, temperature)
        scalars, most = scalars._replace(temperature=number), most + 1.0 / number
    if hardness is not _AT:
        number = check_hardness(name, hardness)
        scalars, most = scalars._replace(hardness=number), most + number
    rule = InfoNCERule(
        hardness is _AT or scalars.hardness != 0,
        normalize_weights,
        detach_weights,
        float(positive_focus),
        float(tau_plus),
        false_negatives,
        margin is not None,
        in_batch,
        unit_length and most <= STATIC_LIMIT,
        reduction,
        hardest,
        query_grad,
        scalar_grad,
        keep,
    )
    return scalars, rule


_checked_once = lru_cache(maxsize=256, typed=True)(_settings)


def _at_a_glance(given: Given, keywords: Keywords) -> Side | None:
    """The side where nothing about its tensors has to be converted or refused."""
    query, positive, bank, ids, bank_ids, _, _ = given
    if ids is None and keywords.false_negatives == "positive":
        return None
    if bank is None and keywords.in_batch_negatives is not False and isinstance(query, Tensor):
        bank = query.detach()[:0]
    side = side_as_it_came(query, positive, bank, ids, bank_ids)
    return None if side is None else seen_to_fit(side)


def _checked(name: str, given: Given, keywords: Keywords) -> Side:
    """The side, converted where it may be.

    Raises:
        TypeError, ValueError: one sentence naming what was expected and what came.
    """
    query, positive, bank, ids, bank_ids, names, _ = given
    check_pair(name, query, positive, names[:2])
    options = check_options(name, query, **keywords.plain())
    direction = check_direction(
        name, query, positive, bank, ids, bank_ids, options, ids_name=names[2]
    )
    rows, row_scale, bank_ids = direction.bank
    return Side(query, positive, rows, row_scale, bank_ids, direction.ids)


def _scalars(
    name: str, keywords: Keywords, scalars: Scalars, like: Tensor, compiling: bool
) -> Scalars:
    """The scalars with the tensors among them; compiled code has nothing else."""
    temperature: Tensor | None = None
    hardness: Tensor | None = None
    margin: Tensor | None = None
    batch: Tensor | None = None
    if isinstance(keywords.temperature, Tensor):
        temperature = _scalar(name, "temperature", keywords.temperature, like)
    if isinstance(keywords.hardness, Tensor):
        hardness = _scalar(name, "hardness", keywords.hardness, like)
    if isinstance(keywords.in_batch_negatives, Tensor):
        check_flag(name, "in_batch_negatives", keywords.in_batch_negatives, like)
        batch = keywords.in_batch_negatives
    if not compiling:
        return Scalars(*scalars[:3], temperature, hardness, margin, batch)
    # A compiled function keeps a number that changes as an input only through arithmetic; in double
    # it stays the number that it is.
    one = like.new_ones((), dtype=torch.float64)
    if temperature is None:
        temperature = one * scalars.temperature
    if hardness is None and keywords.hardness != 0:
        hardness = one * scalars.hardness
    if keywords.margin is not None:
        margin = one * scalars.margin
    return Scalars(1.0, 0.0, 0.0, temperature, hardness, margin, batch)


def _scalar(name: str, argument: str, value: Tensor, like: Tensor) -> Tensor:
    found = scalar_parameter(name, argument, value, like)
    assert isinstance(found, Tensor)
    return found


def settings_of(
    name: str,
    keywords: Keywords,
    like: Any,
    hardest: bool = False,
    query_grad: bool = False,
    learns: bool = False,
    eager: bool = False,
) -> tuple[Scalars, InfoNCERule]:
    """Scalars and rule of a call; settings that are numbers are checked once for all calls.

    Args:
        name: of the function.
        keywords: as they came.
        like: the query; any value where no setting is a tensor.
        hardest: statistics are wanted.
        query_grad: a gradient of the queries will be asked for.
        learns: one of queries or positives will be.
        eager: nothing compiles, as the caller knows.
    """
    compiling = not eager and torch.compiler.is_compiling()
    temperature, hardness, batch = keywords.temperature, keywords.hardness, keywords[8]
    tau_at, beta_at = isinstance(temperature, Tensor), isinstance(hardness, Tensor)
    scalar_grad = torch.is_grad_enabled() and (
        (tau_at and temperature.requires_grad) or (beta_at and hardness.requires_grad)
    )
    values = (
        name,
        _AT if tau_at else temperature,
        _AT if beta_at else hardness,
        *keywords[2:8],
        isinstance(batch, Tensor) or batch,
        *keywords[9:11],
        hardest,
        query_grad,
        scalar_grad,
        learns and batch is not False,
        keywords.max_inverse_temperature,
    )
    known = not compiling and PLAIN.issuperset(map(type, values))
    scalars, rule = (_checked_once if known else _settings)(*values)
    if compiling or tau_at or beta_at or isinstance(batch, Tensor):
        scalars = _scalars(name, keywords, scalars, like, compiling)
    return scalars, rule


def one_shape(one: Side | None, other: Side | None) -> bool:
    """Whether both sides are seen, with queries that can be of one loss."""
    return (
        one is not None
        and other is not None
        and one.query.shape == other.query.shape
        and one.query.device == other.query.device
    )


def learns_of(side: Side, other: Side | None) -> tuple[bool, bool]:
    """Whether a gradient will be asked for: of queries, of queries or positives."""
    if not torch.is_grad_enabled():
        return False, False
    of_query, of_any = side.query.requires_grad, side.positive.requires_grad
    if other is not None:
        of_query = of_query or other.query.requires_grad
        of_any = of_any or other.positive.requires_grad
    return of_query, of_query or of_any


def fused(
    name: str,
    sides: tuple[Given, ...],
    keywords: Keywords,
    *,
    hardest: bool,
    check: Callable[[], None] | None = None,
) -> InfoNCE:
    """The weighted InfoNCE of one side, or the mean of two of one dtype, by the kernels.

    ``keywords.backend`` has gone through ``requested``. ``check`` says what is wrong between two
    sides; it runs unless they are seen to fit.

    Raises:
        ValueError, TypeError: one sentence on what was expected and what came.
        BackendUnavailableError, NotImplementedError: as ``weighted_info_nce`` says.
    """
    seen = [_at_a_glance(given, keywords) for given in sides]
    if check is not None and not one_shape(*seen):
        check()
    checked: list[Side] = []
    whole = True  # no bank is shared between ranks
    for one, given in zip(seen, sides, strict=True):
        side = one or _checked(name, given, keywords)
        if given.limit is not None:
            check_transforms(name, given.limit)
            limit = check_limit(name, given.limit, keywords.margin, side.query)
            side = side._replace(limit=limit)
        checked.append(side)
        whole = whole and getattr(given.bank, "shard", None) is None
    side, other = checked[0], checked[1] if len(checked) > 1 else None
    pairs = (*side[:2], *(other[:2] if other is not None else ()))
    check_transforms(name, keywords.temperature, keywords.hardness, *pairs)
    query_grad, learns = learns_of(side, other)
    scalars, rule = settings_of(name, keywords, side.query, hardest, query_grad, learns)
    if whole:
        return ops.info_nce.info_nce(side, other, scalars, rule, keywords.backend)
    first, last = (training_shard(given.bank) or Shard() for given in (sides[0], sides[-1]))
    if first.world == last.world == 1:
        return ops.info_nce.info_nce(side, other, scalars, rule, keywords.backend)
    return ops.sharded.sharded_info_nce(side, other, first, last, scalars, rule, keywords.backend)


def stats_of(found: InfoNCE, side: int) -> InfoNCEStats:
    """The statistics of one side."""
    table = found.table[side]
    return InfoNCEStats(
        table[_LOSS],
        table[_POSITIVE],
        table[_HARDEST],
        found.hardest_index[side],
        found.negatives[side],
        table[_LOG_NEGATIVES],
    )
