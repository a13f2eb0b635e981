"""One pass over the bank in blocks with an online maximum."""

import torch
from torch import Tensor

from sede_kernels.backends._pair import in_two_passes
from sede_kernels.backends.torch._blocks import (
    blocks,
    dense_block,
    valid_block,
)
from sede_kernels.precision import full_precision
from sede_kernels.types import Bank, Match, Sums, Want, result_dtype


class RunningSums:
    """Log-sum-exp, first moment and weighted row sum at each exponent, fed block by block."""

    def __init__(
        self, scales: Tensor, rows: int, dim: int, accumulate: tuple[int, ...], moments: bool
    ) -> None:
        self.scales = scales
        self.accumulate = accumulate
        shape = (scales.shape[0], rows)
        self.peak = scales.new_full(shape, -torch.inf)
        self.total = scales.new_zeros(shape)
        self.moment = scales.new_zeros(shape if moments else (0, rows))
        self.acc = scales.new_zeros((len(accumulate), rows, dim))

    def add(self, s: Tensor, block: Tensor, valid: Tensor | None) -> None:
        """Add similarities s [B, J] with their rows [J, D]."""
        for exponent in range(self.scales.shape[0]):
            logits = s * self.scales[exponent]
            if valid is not None:
                logits = logits.masked_fill(~valid, -torch.inf)
            peak = torch.maximum(self.peak[exponent], logits.amax(dim=1))
            # A row without a valid slot yet has no finite maximum to subtract.
            base = peak.masked_fill(peak == -torch.inf, 0.0)
            p = logits.sub_(base.unsqueeze(1)).exp_()
            shrink = (self.peak[exponent] - base).exp()
            self.peak[exponent] = peak
            self.total[exponent] = self.total[exponent] * shrink + p.sum(dim=1)
            if self.moment.shape[0]:
                self.moment[exponent] = self.moment[exponent] * shrink + (p * s).sum(dim=1)
            if exponent in self.accumulate:
                slot = self.acc[self.accumulate.index(exponent)]
                slot.mul_(shrink.unsqueeze(1)).addmm_(p, block)

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """(lse, moment, acc), with -inf, 0, 0 for rows without a valid slot."""
        empty = self.total == 0
        total = self.total.masked_fill(empty, 1.0)
        base = self.peak.masked_fill(empty, 0.0)
        lse = (base + total.log()).masked_fill(empty, -torch.inf)
        moment = self.moment / total if self.moment.shape[0] else self.moment
        for slot, exponent in enumerate(self.accumulate):
            self.acc[slot] /= total[exponent].unsqueeze(1)
        return lse, moment, self.acc


class RunningHardest:
    """Largest similarity and its lowest index, fed block by block in index order."""

    def __init__(self, s_like: Tensor, rows: int) -> None:
        self.value = s_like.new_full((rows,), -torch.inf)
        self.index = torch.full((rows,), -1, dtype=torch.int64, device=s_like.device)

    def add(self, s: Tensor, valid: Tensor | None, start: int) -> None:
        """Take the similarities s [B, J] of bank rows start, start + 1, ..."""
        if valid is not None:
            s = s.masked_fill(~valid, -torch.inf)
        value = s.amax(dim=1)
        position = torch.arange(s.shape[1], device=s.device)
        first = torch.where(s == value.unsqueeze(1), position, s.shape[1]).amin(dim=1)
        # NaN similarities win, as they do in the sums; the index then stays undefined (-1).
        better = (value > self.value) | value.isnan()
        self.index = torch.where(better & (first < s.shape[1]), first + start, self.index)
        self.value = torch.where(better, value, self.value)


def bank_lse(query: Tensor, bank: Bank, scales: Tensor, match: Match, want: Want) -> Sums:
    """See ``sede_kernels.ops.bank_lse``. Time 2 to 4 BKD FLOPs, extra memory one block.

    ``unit_length`` changes nothing: the running maximum serves all rows.
    """
    dtype = result_dtype(query)
    with full_precision(query.device.type):
        q = query.to(dtype)
        rows = q.shape[0]
        sums = RunningSums(scales.to(dtype), rows, q.shape[1], want.accumulate, want.moments)
        top = RunningHardest(q, rows if want.hardest else 0)
        count = torch.zeros(rows, dtype=torch.int64, device=q.device)
        for start, stop in blocks(bank.rows.shape[0] if rows else 0, rows):
            part = bank.part(start, stop)
            block = dense_block(part, dtype)
            s = q @ block.T
            valid = valid_block(match, part.ids, s)
            if match.limit is not None:
                within = s <= match.limit.to(dtype).unsqueeze(1)
                valid = within if valid is None else valid & within
            count += s.shape[1] if valid is None else valid.expand_as(s).sum(dim=1)
            if want.hardest:
                top.add(s, valid, start)
            sums.add(s, block, valid)
        return Sums(*sums.finish(), count, top.value, top.index)


bank_lse_pair = in_two_passes(bank_lse)
