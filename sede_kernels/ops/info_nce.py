"""The weighted InfoNCE and its gradient: everything around the passes over the negatives too.

Three steps, of which a backend makes as few launches as it can:

    sums      the pass over the bank, and over the batch's own keys: (B,) log-sum-exps, counts,
              weighted row sums (see bank_lse, batch_lse)
    finish    row losses, their weights, the reduced loss, statistics, and all that the backward
              needs: the query gradient of an upstream gradient of 1, one coefficient a row for the
              positive, the row derivatives of temperature and hardness
    backward  scales those rows by the upstream gradient into the dtypes of the inputs; with
              in-batch negatives one more pass for the keys

``finish`` takes the sums of any number of segments (banks, shards, the batch). With total sums
L(c) = log sum_s exp L_s(c), a row's loss is l = log(1 + e^{LN - LP}) + LP - it mean, where
it = 1 / tau, LP the log-sum over its positives, LN as docs/method.md has it. Then, with
pi = sigmoid(LN - LP) and r(c) what replaces c in the query's gradient:

    dl/dq  = sum_c u(c) sum_s e^{L_s(c) - L(c)} O_s(c) + p k      u(c) = pi dLN/dL(c) r(c)
    dl/dk  = p q                                                 p = dl/ds+
    dl/dk_j of the batch = sum_i sum_c u_i(c) e^{c s_ij - L_i(c)} q_i

The weights of the rows in the loss are constants, so all of it is done in the forward. Both
directions of ``symmetric_info_nce`` are two sides of one call.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sede_kernels.backends.registry import (
    function_of,
    native_function,
    native_look,
    resolve,
    serving,
)
from sede_kernels.ops._op import Saved, op
from sede_kernels.ops.transforms import SPARE, apply_of, is_batched, once, returned
from sede_kernels.types import (
    InfoNCE,
    InfoNCEGradients,
    InfoNCERule,
    Scalars,
    Side,
)

#: Inputs that may get a gradient, in the order of ``InfoNCEGradients``.
LEARNED = (
    "side_query",
    "side_positive",
    "other_query",
    "other_positive",
    "scalars_temperature_at",
    "scalars_hardness_at",
)


def kept_size(side: Side, rule: InfoNCERule, backend: str) -> int:
    """Similarities of the batch that the forward keeps for the backward, of one side."""
    if not rule.keep or not rule.in_batch:
        return 0
    count = resolve("batch_lse_kept", backend, side.query, side.positive)
    size: int = count(side.query, side.positive)
    return size


def fits(side: Side) -> bool:
    """Whether native code has looked at a side and finds nothing to convert or to refuse.

    Its tensors are plain ones then, as ``goes_directly`` wants them.
    """
    look = native_look("info_nce", "info_nce_fits")
    return look is not None and look(side)


@op(decides=("side_query", "side_rows"), differentiable=("loss",))
def info_nce(
    side: Side, other: Side | None, scalars: Scalars, rule: InfoNCERule, backend: str
) -> InfoNCE:
    """The loss of one side, or the mean of two whose queries agree in shape and dtype."""
    sides = 1 if other is None else 2
    return InfoNCE.empty(side.query, sides, rule, kept_size(side, rule, backend))


@op(decides=("side_query", "side_positive"))
def info_nce_backward(
    grad: Tensor,
    table: Tensor,
    query_grad: Tensor,
    kept: Tensor,
    side: Side,
    other: Side | None,
    scalars: Scalars,
    rule: InfoNCERule,
    needs: tuple[int, ...],
    backend: str,
) -> InfoNCEGradients:
    """Gradients of the ``LEARNED`` that ``needs`` has a 1 for; the banks are not read."""
    return InfoNCEGradients.empty(grad, side, other, needs)


#: What the backward needs of the arguments and the result.
SAVES = (
    "table", "query_grad", "kept",
    "side_query", "side_positive", "side_ids", "side_limit",
    "other_query", "other_positive", "other_ids", "other_limit",
    "scalars_temperature_at", "scalars_hardness_at", "scalars_margin_at", "scalars_batch_at",
)  # fmt: skip


def formula_by(
    backward: Callable[..., InfoNCEGradients],
) -> Callable[[Saved, InfoNCE], dict[str, Tensor | None]]:
    """The gradients of a loss whose backward op this is."""

    def formula(saved: Saved, grad: InfoNCE) -> dict[str, Tensor | None]:
        rule = saved.take("rule")
        needs = tuple(int(name in saved.needs) for name in LEARNED)

        def side(name: str) -> Side:
            query = saved[f"{name}_query"]
            ids, limit = saved[f"{name}_ids"], saved[f"{name}_limit"]
            return Side(query, saved[f"{name}_positive"], query[:0], ids=ids, limit=limit)

        found = backward(
            grad.loss,
            saved["table"],
            saved["query_grad"],
            saved["kept"],
            side("side"),
            side("other") if saved["other_given"] else None,
            saved.take("scalars"),
            rule,
            needs,
            saved["backend"],
        )
        pairs = zip(LEARNED, found, needs, strict=True)
        return {name: value for name, value, need in pairs if need}

    return formula


info_nce.gradients(saves=SAVES, depends=LEARNED)(formula_by(info_nce_backward))


#: What the backward has of in-batch negatives, without them: similarities, marks, numbers.
_NO_BATCH = (SPARE, None, None, None, None, None, None)


class _Loss(torch.autograd.Function):
    """The loss with its backward, of the inputs that may learn and nothing else."""

    @staticmethod
    def forward(ctx: Any, call: tuple[Any, ...], *learned: Tensor | None) -> Tensor:
        side, other, scalars, rule, name, run, found = call
        out: InfoNCE = run(side, other, scalars, rule)
        found.append(out)
        ctx.call = rule, name, scalars[:3]
        batch: tuple[Tensor | None, ...] = ()
        if rule.in_batch:
            marks = *side[5:], *((None, None) if other is None else other[5:])
            batch = out.kept, *marks, *scalars[5:]
        ctx.save_for_backward(*out[1:3], *learned, *batch)
        return out.loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        table, query_grad, *learned = ctx.saved_tensors
        query, positive, other_query, other_positive, temperature, hardness = learned[:6]
        kept, ids, limit, other_ids, other_limit, margin, batch = learned[6:] or _NO_BATCH
        rule, name, (tau, beta, most) = ctx.call
        side = Side(query, positive, query, None, None, ids, limit)
        other = None
        if other_query is not None:
            bank = other_query, None, None
            other = Side(other_query, other_positive, *bank, other_ids, other_limit)
        needs = ctx.needs_input_grad[1:]
        scalars = Scalars(tau, beta, most, temperature, hardness, margin, batch)
        saved = table, query_grad, kept, side, other, scalars, rule
        if is_batched(grad):
            grads = info_nce_backward(grad, *saved, tuple(map(int, needs)), name)
        else:
            run = function_of(name, "info_nce_backward")
            grads = run(grad.resolve_neg(), *saved, needs, SPARE)
        return None, *returned("info_nce", grads, needs, grad, learned[:6])


_apply = apply_of(_Loss)


@info_nce.directly
def _(side: Side, other: Side | None, scalars: Scalars, rule: InfoNCERule, backend: str) -> InfoNCE:
    name = serving("info_nce", backend, side.query, side.rows)
    found: list[InfoNCE] = []
    pairs = (*side[:2], *((None, None) if other is None else other[:2]))
    call = side, other, scalars, rule, name, function_of(name, "info_nce"), found
    loss: Tensor = _apply(call, *pairs, *scalars[3:5])
    return InfoNCE(loss, *found[0][1:])


def _whole(side: tuple[Any, ...]) -> Side:
    """The side as the op takes it: with a bank, which its backward does not read."""
    query, positive, _, *rest = side
    return Side(query, positive, query, *rest)


class _AtOnce(torch.autograd.Function):
    """A loss that native code has found, with its backward."""

    @staticmethod
    def forward(ctx: Any, call: tuple[Any, ...], *_: Tensor | None) -> Tensor:
        out, saved, ctx.call = call
        ctx.save_for_backward(*saved)
        loss: Tensor = out[0]
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        rule, code, numbers = ctx.call
        table, query_grad, query, positive, *more = ctx.saved_tensors
        oq, op, temperature, hardness, kept, ids, limit, oids, olimit, *at = more or _NOTHING_MORE
        side = query, positive, None, None, None, ids, limit
        other = None if oq is None else (oq, op, None, None, None, oids, olimit)
        scalars = *numbers, temperature, hardness, *at
        needs = ctx.needs_input_grad[1:]
        if is_batched(grad):
            sides = _whole(side), None if other is None else _whole(other)
            wanted = (*map(int, needs), *(0,) * (6 - len(needs)))
            room = SPARE if kept is None else kept
            found = info_nce_backward(
                grad, table, query_grad, room, *sides, Scalars(*scalars), rule, wanted, "cpu"
            )
            grads = [value if need else None for value, need in zip(found, needs, strict=False)]
        else:
            run: Any = native_function("info_nce", "info_nce_backward_at_once")
            saved = table, query_grad, kept
            grads = run(code, grad.resolve_neg(), saved, side, other, scalars, needs)
        if torch.is_grad_enabled():
            learned = query, positive, *more[:4]
            grads = [once("info_nce", value, grad, *learned) for value in grads]
        return None, *grads


_apply_at_once = apply_of(_AtOnce)
#: Of a backward of one side against a bank: no other side, no tensors of scalars, no batch.
_NOTHING_MORE = (None,) * 11


def at_once(
    side: Side, other: Side | None, scalars: Scalars, rule: InfoNCERule, learns: bool
) -> InfoNCE:
    """The native loss of sides that ``fits`` has seen, in an eager call on which nothing looks.

    ``learns``: a gradient will be asked for.
    """
    run: Any = native_function("info_nce", "info_nce_at_once")
    found: tuple[InfoNCE, Any] = run(side, other, scalars, rule)
    out, code = found
    if not learns:
        return out
    learned: tuple[Tensor | None, ...] = side[:2]
    saved = out.table, out.query_grad, *learned
    tensors = scalars[3] is not None or scalars[4] is not None
    if tensors or other is not None or rule.in_batch:
        more = *((None, None) if other is None else other[:2]), *scalars[3:5]
        learned = *learned, *more
        marks = *side[5:], *((None, None) if other is None else other[5:])
        saved = *saved, *more, out.kept, *marks, *scalars[5:]
    _apply_at_once((out, saved, (rule, code, scalars[:3])), *learned)
    return out
