"""VSRN: regions reason over their relations, a GRU reads them, and pooling gives one vector."""

import torch
from torch import Tensor, nn

from sede_kernels.training.models.base import Encoded, Erasing, Sizes, VectorModel
from sede_kernels.training.models.encoders import AttentionPool, RegionMlp, WordEncoder


class Relations(nn.Module):
    """One residual step of region relation reasoning.

    ``R = (V W_theta)(V W_phi)^T / N`` without a softmax, ``V + BN(W_r (R V W_g))`` over N regions;
    the scale of the batch norm starts at 0, so that a new block changes nothing.

    Args:
        dim: width of the regions.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.theta_phi_g = nn.Linear(dim, 3 * dim)
        self.back = nn.Linear(dim, dim)
        self.norm = nn.BatchNorm1d(dim)
        nn.init.zeros_(self.norm.weight)

    def forward(self, regions: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        theta, phi, g = self.theta_phi_g(regions).chunk(3, dim=2)
        affinity = theta @ phi.transpose(1, 2) / regions.shape[1]  # [B, N, N]
        update = self.back(affinity @ g)
        return regions + self._normed(update.flatten(0, 1)).view_as(update)

    def _normed(self, rows: Tensor) -> Tensor:
        """Batch norm; a single row has no spread, so the running statistics serve it."""
        norm = self.norm
        if len(rows) > 1:
            normed: Tensor = norm(rows)
            return normed
        return nn.functional.batch_norm(
            rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )


class ReasoningEncoder(nn.Module):
    """Regions to one vector by relations, a GRU over regions, and attention pooling.

    The pooling attention comes from the regions after reasoning; it weighs the GRU's states.

    Args:
        sizes: widths and dropout.
        relations: blocks of reasoning.
        erasing: by the pooling attention, or None.
    """

    def __init__(self, sizes: Sizes, relations: int, erasing: Erasing | None) -> None:
        super().__init__()
        self.fragments = RegionMlp(sizes)
        self.relations = nn.Sequential(*(Relations(sizes.dim) for _ in range(relations)))
        self.gru = nn.GRU(sizes.dim, sizes.dim, batch_first=True)
        self.pool = AttentionPool(sizes.dim, erasing)

    def forward(self, regions: Tensor) -> Encoded:
        """Encode (B, N, F) region features."""
        reasoned = self.relations(self.fragments(regions))
        unit = torch.nn.functional.normalize(reasoned, dim=2)
        states, _ = self.gru(unit)
        encoded: Encoded = self.pool(reasoned, None, states)
        return encoded


class Vsrn(VectorModel):
    """Visual semantic reasoning, with attention pooling in place of the GRU's last state.

    Li et al., ICCV 2019; without its caption generation loss. The published model has four
    relation blocks. Its last state is a pooling that no attention describes, so that erasing would
    have nothing to go by.

    Args:
        sizes: widths and dropout.
        erasing: by the pooling attention over regions, or None.
        relations: blocks of reasoning.
    """

    options = ("relations",)

    def __init__(self, sizes: Sizes, erasing: Erasing | None = None, *, relations: int = 4) -> None:
        super().__init__(sizes, erasing)
        self.image_encoder = ReasoningEncoder(sizes, relations, erasing)
        self.text_encoder = WordEncoder(sizes, AttentionPool(sizes.dim, None))
