"""``torch.library`` ops: schema, fake and autograd; the arithmetic is in the backends.

Inputs are validated by ``sede_kernels.functional``; every op takes ``backend`` and resolves it when
it runs, so a compiled graph is not tied to the machine it was traced on.
"""

from sede_kernels.ops import (
    bank_lse,
    bank_lse_pair,
    batch_lse,
    cross_attention,
    cross_attention_pairs,
    enqueue,
    enqueue_fragments,
    erase,
    hardest,
    info_nce,
    late_interaction,
    score_info_nce,
    sharded,
)

__all__ = [
    "bank_lse",
    "bank_lse_pair",
    "batch_lse",
    "cross_attention",
    "cross_attention_pairs",
    "enqueue",
    "enqueue_fragments",
    "erase",
    "hardest",
    "info_nce",
    "late_interaction",
    "score_info_nce",
    "sharded",
]
