"""The weighted InfoNCE of given scores and its gradient, one pass over the scores each.

The forward finds the log-sum-exps of every row and finishes its loss and all derivatives by row:
s+, temperature, hardness, and the factors that a score's own derivative is made of. The backward
reads the scores again and writes their gradient; nothing of their size is kept but themselves.
"""

from torch import Tensor

from sede_kernels.ops._op import Saved, op
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
