"""Retrieval models: an image encoder, a text encoder, and a score for every pair."""

from sede_kernels.training.models.base import Encoded, Erasing, FragmentModel, RetrievalModel, Sizes
from sede_kernels.training.models.bfan import Bfan
from sede_kernels.training.models.scan import Scan
from sede_kernels.training.models.vse import Vse
from sede_kernels.training.models.vsrn import Vsrn

MODELS: dict[str, type[RetrievalModel]] = {"vse": Vse, "scan": Scan, "bfan": Bfan, "vsrn": Vsrn}

__all__ = [
    "MODELS", "Bfan", "Encoded", "Erasing", "FragmentModel", "RetrievalModel", "Scan", "Sizes",
    "Vse", "Vsrn",
]  # fmt: skip
