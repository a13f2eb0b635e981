"""Retrieval models: an image encoder, a text encoder, and a score for every pair."""

from sede_kernels.training.models.base import Encoded, Erasing, RetrievalModel
from sede_kernels.training.models.scan import Scan
from sede_kernels.training.models.vse import Vse

MODELS: dict[str, type[RetrievalModel]] = {"vse": Vse, "scan": Scan}

__all__ = ["MODELS", "Encoded", "Erasing", "RetrievalModel", "Scan", "Vse"]
