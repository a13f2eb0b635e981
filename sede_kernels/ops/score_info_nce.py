"""The weighted InfoNCE of given scores and its gradient, one pass over the scores each.

The forward finds the log-sum-exps of every row and finishes its loss and all derivatives by row:
s+, temperature, hardness, and the factors that a score's own derivative is made of. The backward
reads the scores again and writes their gradient; nothing of their size is kept but themselves.
"""

from typing import Any

import torch
from torch import Tensor

from sede_kernels.backends.registry import function_of, serving
from sede_kernels.ops._op import Saved, op
from sede_kernels.ops.transforms import SPARE, apply_of, is_batched, returned
from sede_kernels.score_types import ScoreGradients, ScoreLoss, Scores
from sede_kernels.types import InfoNCERule, Scalars

#: Inputs that may get a gradient, in the order of ``ScoreGradients``.
LEARNED = (
    "given_scores",
    "given_positive",
    "scalars_temperature_at",
    "scalars_hardness_at",
)


@op(decides=("given_scores",), differentiable=("loss",))
def score_info_nce(given: Scores, scalars: Scalars, rule: InfoNCERule, backend: str) -> ScoreLoss:
    """The loss; of the rule the weights, false negatives, reduction and ``scalar_grad`` count."""
    return ScoreLoss.empty(given.scores, rule.reduction)


@op(decides=("given_scores",))
def score_info_nce_backward(
    grad: Tensor,
    table: Tensor,
    given: Scores,
    scalars: Scalars,
    rule: InfoNCERule,
    needs: tuple[int, ...],
    backend: str,
) -> ScoreGradients:
    """The gradients of what is learned, for an upstream gradient () or (B,)."""
    return ScoreGradients.empty(grad, given, needs)


@score_info_nce.gradients(
    saves=(
        "table", "given_scores", "given_positive", "given_valid", "given_ids", "given_key_ids",
        "scalars_temperature_at", "scalars_hardness_at", "scalars_margin_at", "scalars_batch_at",
    ),
    depends=LEARNED,
)  # fmt: skip
def _(saved: Saved, grad: ScoreLoss) -> dict[str, Tensor | None]:
    needs = tuple(int(name in saved.needs) for name in LEARNED)
    found = score_info_nce_backward(
        grad.loss,
        saved["table"],
        saved.take("given"),
        saved.take("scalars"),
        saved.take("rule"),
        needs,
        saved["backend"],
    )
    pairs = zip(LEARNED, found, needs, strict=True)
    return {name: value for name, value, need in pairs if need}


class _Loss(torch.autograd.Function):
    """The loss with its backward, of the inputs that may learn and nothing else."""

    @staticmethod
    def forward(ctx: Any, call: tuple[Any, ...], *learned: Tensor | None) -> Tensor:
        given, scalars, rule, backend, found = call
        name = serving("score_info_nce", backend, given.scores)
        out: ScoreLoss = function_of(name, "score_info_nce")(given, scalars, rule)
        found.append(out)
        ctx.call = rule, name, scalars[:3]
        ctx.save_for_backward(out.table, *learned, *given[2:], *scalars[5:])
        return out.loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (table, scores, positive, temperature, hardness, valid, ids, key_ids, margin,
         batch) = ctx.saved_tensors  # fmt: skip
        rule, name, (tau, beta, most) = ctx.call
        given = Scores(scores, positive, valid, ids, key_ids)
        scalars = Scalars(tau, beta, most, temperature, hardness, margin, batch)
        needs = ctx.needs_input_grad[1:]
        if is_batched(grad):
            saved = table, given, scalars, rule
            grads = score_info_nce_backward(grad, *saved, tuple(map(int, needs)), name)
        else:
            run = function_of(name, "score_info_nce_backward")
            grads = run(grad.resolve_neg(), table, given, scalars, rule, needs, SPARE)
        learned = scores, positive, temperature, hardness
        return None, *returned("score_info_nce", grads, needs, grad, learned)


_apply = apply_of(_Loss)


@score_info_nce.directly
def _(given: Scores, scalars: Scalars, rule: InfoNCERule, backend: str) -> ScoreLoss:
    found: list[ScoreLoss] = []
    loss: Tensor = _apply((given, scalars, rule, backend, found), *given[:2], *scalars[3:5])
    return ScoreLoss(loss, *found[0][1:])
