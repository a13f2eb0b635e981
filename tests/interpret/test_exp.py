"""e^x of the kernels: its last digits, both ends, and what is no number."""

import torch
import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.device import exp


@triton.jit
def _exp_kernel(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, exp(tl.load(x + at)))


def _exp(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    _exp_kernel[(1,)](x, out, BLOCK=x.numel())
    return out


def test_every_digit_of_numbers_that_fp32_holds():
    x = torch.linspace(-87.3, 88.72, 4096)
    torch.testing.assert_close(_exp(x).double(), x.double().exp(), rtol=5e-7, atol=0)


def test_both_ends_and_nan():
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([-inf, -1e30, -110.5, -104.0, -0.0, 0.0, 89.5, 1e30, inf, nan, 1.0, -1.0])
    want = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, inf, inf, inf, nan, torch.e, 1 / torch.e])
    found = _exp(torch.cat([x, torch.zeros(4)]))[: len(x)]
    torch.testing.assert_close(found, want, rtol=5e-7, atol=0, equal_nan=True)
