"""The ring write of sets on the interpreter against the torch backend."""

import oracle
import pytest
import torch

from sede_kernels.ops.enqueue_fragments import enqueue_fragments
from sede_kernels.types import FragmentRing


def _ring(dtype):
    rows, lengths = torch.full((5, 3, 700), 9.0, dtype=dtype), torch.full((5,), 9)
    state = torch.full((5,), -1), torch.tensor(3), torch.tensor(0), torch.tensor(0)
    return FragmentRing(rows, lengths, *state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_matches_the_torch_backend(dtype):
    torch.manual_seed(0)
    rings = {name: _ring(dtype) for name in ("triton", "torch")}
    for step, (sets, width) in enumerate(((3, 2), (0, 3), (4, 3), (11, 3), (2, 1))):
        keys = torch.randn(sets, width, 700)
        lengths = torch.randint(1, width + 1, (sets,)) if step != 2 else None
        ids = torch.randint(0, 9, (sets,)) if step != 3 else None
        if step == 2:
            keys[1, 2, 699], keys[2, 0, 0] = torch.nan, 1e6  # the second only in half precision
            keys = keys.transpose(1, 2).contiguous().transpose(1, 2)
        if step == 3:
            lengths[-1], keys[-1, 2] = 2, torch.inf  # beyond its length
        for name, ring in rings.items():
            enqueue_fragments(ring, keys, lengths, ids, name)
        for name, got, want in zip(FragmentRing._fields, *rings.values(), strict=True):
            if name == "rows" and dtype == torch.bfloat16:  # the interpreter rounds otherwise
                oracle.assert_close(name, got, want, oracle.FLOORS[dtype])
            else:
                assert torch.equal(got, want), (step, name)
    assert int(rings["triton"].rejected) == (2 if dtype == torch.float16 else 1)
