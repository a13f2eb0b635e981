"""Attention-guided erasing."""

from torch import Tensor

from sede_kernels import ops, reference_erase
from sede_kernels.checks import (
    FLOATS,
    check_backend,
    check_lengths,
    check_same_device,
)
from sede_kernels.dense import check_dense
from sede_kernels.erase_checks import check_erase
from sede_kernels.types import result_dtype


def attention_erase(
    attention: Tensor,
    *,
    rule: str = "mean",
    threshold: float | None = None,
    erase: str = "low",
    keep_min: int = 1,
    lengths: Tensor | None = None,
    renormalize: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Erase fragments by their attention and renormalise the rest: ``a H / sum(a H)``.

    The attended set H of a row with valid fragments a_1..a_L:

    - ``mean``: a > mean(a) (BFAN, equal)
    - ``prob``: a > sum a^1.5 / sum a^0.5 (BFAN, prob, in closed form)
    - ``absolute``: a > threshold
    - ``relative``: a >= threshold * max(a)
    - ``topk``: the ``threshold`` largest, ties to the lowest index
    - ``quantile``: a >= the ``threshold`` quantile of the valid a (linear interpolation)

    Args:
        attention: (..., L) attention >= 0, float32, bfloat16, float16 or float64.
        rule: how H is found, see above.
        threshold: what the rule needs; None for ``mean`` and ``prob``.
        erase: ``low`` keeps H and erases the non-attended fragments (SEDE, BFAN, NAAF);
            ``high`` erases H (CM-Erase).
        keep_min: at least so many fragments stay. Where the rule keeps fewer, the largest of the
            erased return (with ``erase="high"`` the smallest), ties to the lowest index.
        lengths: (...) integers in [0, L]; fragments beyond are padding and never kept.
        renormalize: divide by the kept sum; where that is 0 the row stays as it is.
        backend: ``auto``, ``reference``, ``torch``, ``cpu``, ``triton`` or ``cuda``.

    Returns:
        attention after erasing, same shape and dtype, 0 where erased; and the mask, bool, True
        where a fragment is **kept**. A row of length 0 gives zeros and an all-False mask.

    Raises:
        ValueError, TypeError: unknown rule, threshold missing or out of range, bad lengths.
        BackendUnavailableError: an explicit backend cannot serve the call.
        NotImplementedError: a second or forward-mode derivative, or torch.func, of a kernel.

    Cost:
        One read and one write of the attention in the fused backends; no sort of whole rows there
        and no L x L tensor anywhere.

    Gradients:
        attention; the mask is a constant.

    Source:
        Pan & Huang 2022 (SEDE, erasing of the non-attended parts, rule left open); the rules are
        BFAN's (Liu et al. 2019) and common thresholds; docs/method.md.

    Example:
        >>> import torch
        >>> attention_erase(torch.tensor([0.5, 0.3, 0.2]))
        (tensor([1., 0., 0.]), tensor([ True, False, False]))
    """
    name = "attention_erase"
    if not isinstance(attention, Tensor):
        raise TypeError(f"{name}: attention must be a tensor, got {type(attention).__name__}.")
    check_dense(name, "attention", attention)
    if attention.ndim == 0:
        raise ValueError(f"{name}: attention must be (..., L), got a scalar.")
    if attention.dtype not in FLOATS:
        raise TypeError(
            f"{name}: attention must be float32, bfloat16, float16 or float64, "
            f"got {attention.dtype}."
        )
    fragments = attention.shape[-1]
    how = check_erase(
        name,
        rule=rule,
        length=fragments,
        threshold=threshold,
        erase=erase,
        keep_min=keep_min,
        renormalize=renormalize,
    )
    counts = check_lengths(name, "lengths", lengths, tuple(attention.shape[:-1]), fragments)
    check_same_device(name, attention, lengths=counts)
    chosen = check_backend(name, backend, attention)
    if chosen == "reference":
        settings = how._asdict()
        settings["erase"] = settings.pop("side")
        after, kept = reference_erase.attention_erase(
            attention.to(result_dtype(attention)), lengths=counts, **settings
        )
        return after.to(attention.dtype), kept
    found = ops.erase.erase(attention, counts, how, chosen)
    return found.attention, found.mask
