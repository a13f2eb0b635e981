"""The statistics of ``weighted_info_nce`` by the specification, for ``backend="reference"``."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import reference
from sede_kernels.functional._info_nce import Direction, InfoNCEStats, Options, reference_loss
from sede_kernels.precision import product


@torch.no_grad()
def reference_stats(direction: Direction, options: Options) -> InfoNCEStats:
    """What :class:`InfoNCEStats` names, with every similarity written out; O(B (K + B)) memory."""
    query, positive, bank, ids = direction[:4]
    dtype = query.wide.dtype
    q, p, dense = query.wide, positive.wide, bank.dense(dtype)
    size = dense.shape[0]
    positive_s = direction.positive_similarity()
    valid = reference.valid_slots(q, dense, ids, bank.ids, options.select)
    s = reference.similarity(q, dense, valid)
    counts = options.in_batch_negatives
    if isinstance(counts, Tensor) or counts:
        others = ~torch.eye(q.shape[0], dtype=torch.bool, device=q.device)
        if options.select == "mask":
            others = others & ~reference.valid_slots(q, p, ids, ids, "positive")
        if isinstance(counts, Tensor):
            others = others & counts
        valid, s = torch.cat([valid, others], dim=1), torch.cat([s, product(q, p.T)], dim=1)
    limit = direction.match(options, positive_s).limit
    if limit is not None:
        valid = valid & (s <= limit[:, None])
    negatives = valid.sum(dim=1)
    inverse = 1 / torch.as_tensor(options.temperature, dtype=dtype, device=q.device)
    hardness = torch.as_tensor(options.hardness, dtype=dtype, device=q.device)
    log_negatives = reference.negatives_lse(
        s,
        valid,
        inverse,
        hardness,
        normalize_weights=options.normalize_weights,
        detach_weights=options.detach_weights,
    )
    if options.tau_plus:
        log_negatives = reference.debias(
            log_negatives, inverse * positive_s, negatives, inverse, options.tau_plus
        )
    # One column more, so that a row without negatives has a hardest one of -inf at index -1.
    padded = F.pad(s.masked_fill(~valid, -torch.inf), (0, 1), value=-torch.inf)
    values, order = padded.sort(dim=1, descending=True, stable=True)
    hardest, index = values[:, 0], order[:, 0]
    index = index.masked_fill((index >= size) | (hardest == -torch.inf), -1)
    rows = reference_loss(direction, options._replace(positive_focus=0.0, reduction="none"))
    return InfoNCEStats(rows, positive_s, hardest, index, negatives, log_negatives)
