"""The specification: every operation in plain PyTorch, any float dtype, no tricks.

Nothing here is fast and everything is differentiable (twice, too). Kernels are tested against
these functions in fp64; ``backend="reference"`` runs them. Banks are dense (K, D) tensors. The
formulas are those of docs/method.md.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels.precision import product
from sede_kernels.reference_erase import attention_erase

NEG_INF = float("-inf")


def valid_slots(
    query: Tensor,
    bank: Tensor,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    select: str = "mask",
) -> Tensor:
    """(B, K) bool: filled slots, by ``select`` without (mask), only (positive) or with own id."""
    filled = torch.ones(query.shape[0], bank.shape[0], dtype=torch.bool, device=query.device)
    same = torch.zeros_like(filled)
    if bank_ids is not None:
        filled = filled & (bank_ids != -1)
        if query_ids is not None:
            same = query_ids[:, None] == bank_ids[None, :]
    if select == "positive":
        return filled & same
    return filled if select == "keep" else filled & ~same


def similarity(query: Tensor, bank: Tensor, valid: Tensor) -> Tensor:
    """q.m with slots that no query uses zeroed first, so that their content cannot leak as NaN."""
    used = valid.any(dim=0)
    return product(query, torch.where(used[:, None], bank, torch.zeros_like(bank)).T)


def masked_logsumexp(logits: Tensor, valid: Tensor) -> Tensor:
    """Row log-sum-exp over ``valid``; -inf with a zero gradient where nothing is valid."""
    some = valid.any(dim=1)
    safe = logits.masked_fill(~valid, NEG_INF).masked_fill(~some[:, None], 0.0)
    return torch.where(some, safe.logsumexp(dim=1), NEG_INF)


def bank_lse(
    query: Tensor,
    bank: Tensor,
    scales: Tensor,
    query_ids: Tensor | None = None,
    bank_ids: Tensor | None = None,
) -> Tensor:
    """(B, E): log sum over valid slots of exp(c q.m) for each c of ``scales``."""
    valid = valid_slots(query, bank, query_ids, bank_ids)
    s = similarity(query, bank, valid)
    columns = [masked_logsumexp(c * s, valid) for c in scales.unbind()]
    return torch.stack(columns, dim=1) if columns else query.new_zeros(query.shape[0], 0)


def hardest_negatives(
    query: Tensor,
    bank: Tensor,
    k: int = 1,
    query_ids: Tensor | None = None,
    bank_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Values and indices (B, k), descending, ties to the lowest index; (-inf, -1) as padding.

    A similarity that is NaN is no candidate. Rows that are not selected have no part in a gradient.
    """
    valid = valid_slots(query, bank, query_ids, bank_ids) & ~bank.isnan().any(dim=1)
    s = similarity(query, bank, valid).detach()
    s = F.pad(s.masked_fill(~valid | s.isnan(), NEG_INF), (0, k), value=NEG_INF)
    found, indices = s.sort(dim=1, descending=True, stable=True)
    indices = indices[:, :k].masked_fill(found[:, :k] == NEG_INF, -1)
    rows = F.pad(bank, (0, 0, 0, 1))[indices]  # zeros where the index is -1
    values = (query[:, None] * rows).sum(dim=2)
    return values.masked_fill(indices < 0, NEG_INF), indices


def negatives_lse(
    s: Tensor,
    valid: Tensor,
    inverse_temperature: Tensor,
    hardness: Tensor,
    *,
    normalize_weights: bool,
    detach_weights: bool,
) -> Tensor:
    """LN (B,): log of the weighted sum over negatives of w exp(s / tau).

    ``detach_weights`` detaches the similarities inside the weights, not the hardness, which gets
    its gradient either way.
    """
    log_w = hardness * (s.detach() if detach_weights else s)
    if normalize_weights:
        count = valid.sum(dim=1).clamp(min=1).to(s.dtype)
        norm = masked_logsumexp(log_w, valid)
        log_w = log_w + (count.log() - norm.masked_fill(~valid.any(dim=1), 0.0))[:, None]
    return masked_logsumexp(inverse_temperature * s + log_w, valid)


def debias(
    log_negatives: Tensor,
    positive_logit: Tensor,
    count: Tensor,
    inverse_temperature: Tensor,
    tau_plus: float,
) -> Tensor:
    """Debiased LN: log max((N - tau_plus n e^{s+/tau}) / (1 - tau_plus), n e^{-1/tau})."""
    some = count > 0
    log_n = count.clamp(min=1).to(positive_logit.dtype).log()
    remove = positive_logit + log_n + torch.log(log_n.new_tensor(tau_plus))
    floor = log_n - inverse_temperature
    above = some & (log_negatives > remove)
    a = torch.where(above, log_negatives, torch.ones_like(floor))
    p = torch.where(above, remove, torch.zeros_like(floor))
    corrected = a + torch.log(-torch.expm1(p - a)) - torch.log1p(log_n.new_tensor(-tau_plus))
    kept = torch.where(above, torch.maximum(corrected, floor), floor)
    kept = torch.where(torch.isnan(log_negatives), log_negatives, kept)
    return torch.where(some, kept, NEG_INF)


def reduce_loss(loss: Tensor, positive_focus: float, reduction: str) -> Tensor:
    """Rows weighted by a = (1 - exp(-loss))^focus, detached; "mean" divides by the sum of a.

    The quotient a / sum a is a softmax over log a, which does not underflow: rows of tiny losses
    keep their share. Where every loss is exactly 0 the mean is 0.
    """
    if not positive_focus:
        return loss if reduction == "none" else _sum_or_mean(loss, reduction)
    log_weight = positive_focus * torch.log(-torch.expm1(-loss.detach().clamp(min=0.0)))
    if reduction != "mean":
        weighted = log_weight.exp() * loss
        return weighted if reduction == "none" else weighted.sum()
    share = log_weight.masked_fill((log_weight == NEG_INF).all(), 0.0).softmax(dim=0)
    return (share * loss).sum()


def _sum_or_mean(loss: Tensor, reduction: str) -> Tensor:
    """The plain reduction; the mean of no rows is 0."""
    return loss.sum() if reduction == "sum" else loss.sum() / max(loss.shape[0], 1)


def weighted_info_nce(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    hardness: float | Tensor = 0.0,
    normalize_weights: bool = True,
    detach_weights: bool = True,
    positive_focus: float = 0.0,
    tau_plus: float = 0.0,
    query_ids: Tensor | None = None,
    bank_ids: Tensor | None = None,
    false_negatives: str = "mask",
    margin: float | None = None,
    limit: Tensor | None = None,
    in_batch_negatives: bool | Tensor = False,
    reduction: str = "mean",
) -> Tensor:
    """Weighted InfoNCE of docs/method.md with every similarity written out."""
    it = 1 / torch.as_tensor(temperature, dtype=query.dtype, device=query.device)
    beta = torch.as_tensor(hardness, dtype=query.dtype, device=query.device)
    positive_s = (query * positive).sum(dim=1)
    select = "keep" if false_negatives == "keep" else "mask"
    valid = valid_slots(query, bank, query_ids, bank_ids, select)
    extra = valid_slots(query, bank, query_ids, bank_ids, "positive")
    s = similarity(query, bank, valid | extra)
    if isinstance(in_batch_negatives, Tensor) or in_batch_negatives:
        other = ~torch.eye(query.shape[0], dtype=torch.bool, device=query.device)
        if isinstance(in_batch_negatives, Tensor):
            other = other & in_batch_negatives
        own = valid_slots(query, positive, query_ids, query_ids, "positive") & other
        valid = torch.cat([valid, other if select == "keep" else other & ~own], dim=1)
        extra = torch.cat([extra, own], dim=1)
        s = torch.cat([s, product(query, positive.T)], dim=1)
    if margin is not None:
        valid = valid & (s.detach() <= positive_s.detach()[:, None] + margin)
    if limit is not None:
        valid = valid & (s.detach() <= limit.detach()[:, None])
    log_negatives = negatives_lse(
        s,
        valid,
        it,
        beta,
        normalize_weights=normalize_weights,
        detach_weights=detach_weights,
    )
    if tau_plus:
        log_negatives = debias(log_negatives, it * positive_s, valid.sum(dim=1), it, tau_plus)
    log_positives = mean_logit = it * positive_s
    if false_negatives == "positive":
        zero_filled = torch.where(extra, s, torch.zeros_like(s))
        mean_logit = it * (positive_s + zero_filled.sum(dim=1)) / (1 + extra.sum(dim=1))
        log_positives = torch.logaddexp(log_positives, masked_logsumexp(it * s, extra))
    # log(e^a + e^b) - a = log(1 + e^(b - a)): a loss near 0 keeps its digits beside large logits.
    some = valid.any(dim=1)
    above = log_negatives.masked_fill(~some, 0.0) - log_positives
    positive_alone = torch.where(some, torch.logaddexp(above.new_zeros(()), above), 0.0)
    loss = positive_alone + (log_positives - mean_logit)
    return reduce_loss(loss, positive_focus, reduction)


def enqueue(
    rows: Tensor, ids: Tensor, ptr: int, keys: Tensor, key_ids: Tensor | None, normalize: bool
) -> int:
    """Write the keys one by one into the ring (in place); returns the new pointer.

    A key whose row is not finite leaves a hole: zeros, and the id of an empty slot.
    """
    for n in range(keys.shape[0]):
        key = keys[n]
        norm = key.norm()
        if normalize and norm > 0:
            key = key / norm
        row = key.to(rows.dtype)
        finite = bool(row.isfinite().all()) and (not normalize or bool(norm.isfinite()))
        rows[ptr] = row if finite else 0.0
        ids[ptr] = -1 if not finite else -2 if key_ids is None else key_ids[n]
        ptr = (ptr + 1) % rows.shape[0]
    return ptr


def nothing(*sets: Tensor) -> Tensor:
    """0, with a gradient of zeros for each."""
    return torch.stack([one[:0].sum() for one in sets]).sum()


def aggregated(sim: Tensor, mode: str, scale: float) -> Tensor:
    """The scores of the query fragments (L, ...), as one."""
    if mode == "lse":
        return (scale * sim).logsumexp(dim=0) / scale
    plain = sim.mean(dim=0) if mode == "mean" else sim.sum(dim=0)
    return sim.amax(dim=0) if mode == "max" else plain


def _pair(
    queries: Tensor,
    sources: Tensor,
    smoothing: float,
    aggregate: str,
    scale: float,
    erase: dict[str, object] | None,
) -> Tensor:
    """Similarity of one query set (L, D) with one source set (R, D), context vectors and all."""
    if queries.shape[0] == 0 or sources.shape[0] == 0:
        return nothing(queries, sources)
    clipped = F.leaky_relu(product(queries, sources.T), 0.1)
    squares = (clipped * clipped).sum(dim=0, keepdim=True)
    # sqrt has no gradient at zero: a zero vector keeps the zero one.
    norm = torch.where(squares > 0, torch.where(squares > 0, squares, 1.0).sqrt(), squares)
    attention = (smoothing * clipped / (norm + 1e-8)).softmax(dim=1)
    if erase is not None:
        attention, _ = attention_erase(attention, **erase)  # type: ignore[arg-type]
    context = product(attention, sources)
    size = queries.norm(dim=1) * context.norm(dim=1)
    return aggregated((queries * context).sum(dim=1) / size.clamp(min=1e-8), aggregate, scale)


def cross_attention_similarity(
    regions: Tensor,
    words: Tensor,
    *,
    region_lengths: Tensor | None = None,
    word_lengths: Tensor | None = None,
    direction: str = "t2i",
    smoothing: float = 9.0,
    aggregate: str = "lse",
    aggregate_scale: float = 6.0,
    erase: dict[str, object] | None = None,
) -> Tensor:
    """(B, C): SCAN's similarity pair by pair; ``erase`` holds keywords of ``attention_erase``."""
    rows = []
    for b, image in enumerate(regions):
        v = image if region_lengths is None else image[: int(region_lengths[b])]
        row = []
        for c, caption in enumerate(words):
            e = caption if word_lengths is None else caption[: int(word_lengths[c])]
            queries, sources = (e, v) if direction == "t2i" else (v, e)
            row.append(_pair(queries, sources, smoothing, aggregate, aggregate_scale, erase))
        rows.append(torch.stack(row) if row else nothing(regions, words).expand(0))
    return torch.stack(rows) if rows else nothing(regions, words).expand(0, words.shape[0])


def cross_attention_pairs(
    regions: Tensor,
    words: Tensor,
    *,
    region_lengths: Tensor | None = None,
    word_lengths: Tensor | None = None,
    **options: object,
) -> Tensor:
    """(B, N): the similarity above of query b with its N candidates; sides are (B, N or 1, ...)."""
    pairs = words.shape[1] if regions.shape[1] == 1 else regions.shape[1]
    rows = []
    for b in range(regions.shape[0]):
        row = []
        for n in range(pairs):
            r, w = min(n, regions.shape[1] - 1), min(n, words.shape[1] - 1)
            one = cross_attention_similarity(
                regions[b, r : r + 1],
                words[b, w : w + 1],
                region_lengths=None if region_lengths is None else region_lengths[b, r : r + 1],
                word_lengths=None if word_lengths is None else word_lengths[b, w : w + 1],
                **options,  # type: ignore[arg-type]
            )
            row.append(one[0, 0])
        rows.append(torch.stack(row) if row else nothing(regions, words).expand(0))
    return torch.stack(rows) if rows else nothing(regions, words).expand(0, pairs)
