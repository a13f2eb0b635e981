"""The public functions: validation, defaults, and arithmetic on B-sized results."""

from sede_kernels.functional._info_nce import InfoNCEStats
from sede_kernels.functional.attention_erase import attention_erase
from sede_kernels.functional.bank_queries import bank_lse, hardest_negatives
from sede_kernels.functional.cross_attention import cross_attention_similarity
from sede_kernels.functional.cross_attention_pairs import cross_attention_pairs
from sede_kernels.functional.recall_at_k import Recalls, recall_at_k
from sede_kernels.functional.score_info_nce import score_info_nce
from sede_kernels.functional.symmetric_info_nce import symmetric_info_nce
from sede_kernels.functional.weighted_info_nce import weighted_info_nce

__all__ = [
    "InfoNCEStats",
    "Recalls",
    "attention_erase",
    "bank_lse",
    "cross_attention_pairs",
    "cross_attention_similarity",
    "hardest_negatives",
    "recall_at_k",
    "score_info_nce",
    "symmetric_info_nce",
    "weighted_info_nce",
]
