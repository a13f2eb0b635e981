"""Queries and keys as kernels multiply them, and as their gradients add up."""

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """(B, D) twice: half rows are multiplied as they are, their gradients are summed in fp32.

    A half gradient of several parts would round each of them, and their difference not at all.
    """

    operand: Tensor  # in the dtype that came; without a graph where it is not the other one
    wide: Tensor  # in the dtype of the results, with the graph

    @property
    def carrier(self) -> Tensor | None:
        """What an op gives the gradient to, where that is not its operand."""
        return None if self.wide is self.operand or not self.wide.requires_grad else self.wide


def rows_of(tensor: Tensor, dtype: torch.dtype) -> Rows:
    """The rows of a loss whose results are of ``dtype``."""
    if tensor.dtype == dtype:
        return Rows(tensor, tensor)
    return Rows(tensor.detach(), tensor.to(dtype))
