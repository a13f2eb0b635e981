"""Fused kernels for image-text retrieval with many negatives.

Weighted InfoNCE against large memory banks, hardest negatives, attention-guided erasing and
region-word similarity, as autograd functions and modules. Importing the package touches no device.
"""

from importlib.metadata import PackageNotFoundError, version

import torch.distributed

from sede_kernels.backends.registry import available_backends
from sede_kernels.bank import FragmentBank, MemoryBank
from sede_kernels.errors import BackendUnavailableError
from sede_kernels.functional import (
    InfoNCEStats,
    Recalls,
    attention_erase,
    bank_lse,
    cross_attention_pairs,
    cross_attention_similarity,
    hardest_negatives,
    recall_at_k,
    score_info_nce,
    symmetric_info_nce,
    weighted_info_nce,
)
from sede_kernels.ids import string_ids
from sede_kernels.modules import (
    AttentionErase,
    CrossAttentionSimilarity,
    ScoreInfoNCE,
    SEDELoss,
    WeightedInfoNCE,
)
from sede_kernels.momentum import MomentumEncoder
from sede_kernels.monitor import BankMonitor
from sede_kernels.sharded_bank import ShardedMemoryBank
from sede_kernels.sharded_fragment_bank import ShardedFragmentBank

if torch.distributed.is_available():
    # Its functions hold the default group of the moment they are imported. torch imports them
    # with the first optimizer or custom op; where that comes after init_process_group, gloo's
    # threads outlive destroy_process_group and can abort the process at the interpreter's end.
    import torch.distributed.nn.functional

try:
    __version__ = version("sede-kernels")
except PackageNotFoundError:  # imported from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "AttentionErase",
    "BackendUnavailableError",
    "BankMonitor",
    "CrossAttentionSimilarity",
    "FragmentBank",
    "InfoNCEStats",
    "MemoryBank",
    "MomentumEncoder",
    "Recalls",
    "SEDELoss",
    "ScoreInfoNCE",
    "ShardedFragmentBank",
    "ShardedMemoryBank",
    "WeightedInfoNCE",
    "__version__",
    "attention_erase",
    "available_backends",
    "bank_lse",
    "cross_attention_pairs",
    "cross_attention_similarity",
    "hardest_negatives",
    "recall_at_k",
    "score_info_nce",
    "string_ids",
    "symmetric_info_nce",
    "weighted_info_nce",
]
