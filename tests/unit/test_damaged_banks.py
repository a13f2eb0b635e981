"""Promise 8: no state makes native code read or write outside its buffers.

Every buffer of every bank is damaged in turn. A call then either raises one sentence, or puts the
buffer right and gives what an undamaged bank gives.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sede_kernels import FragmentBank, MemoryBank, hardest_negatives, weighted_info_nce
from tests.conftest import unit

SIZE, DIM = 6, 4


def f32(*shape: int) -> Tensor:
    return unit(*shape, dtype=torch.float32)


def banks() -> dict[str, MemoryBank | FragmentBank]:
    torch.manual_seed(3)
    out: dict[str, MemoryBank | FragmentBank] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8):
        out[str(dtype)] = MemoryBank(SIZE, DIM, dtype=dtype)
        out[str(dtype)].enqueue(f32(4, DIM), torch.arange(4))
    out["fragments"] = FragmentBank(SIZE, 3, DIM)
    out["fragments"].enqueue(f32(4, 3, DIM), torch.tensor([1, 2, 3, 3]), torch.arange(4))
    return out


OTHER = {torch.int64: torch.int32, torch.int8: torch.int16}
DAMAGE: dict[str, Callable[[Tensor], Tensor]] = {
    "dtype": lambda t: t.to(OTHER.get(t.dtype, torch.float64)).clone(),
    "half": lambda t: t.to(torch.float16),
    "shorter": lambda t: t[:-1].clone() if t.ndim else t.reshape(1)[:0].clone(),
    "longer": lambda t: torch.cat([t, t]) if t.ndim else torch.stack([t, t]),
    "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "huge": lambda t: (
        torch.full_like(t, 100 if t.dtype == torch.int8 else 10**4).mul_(10**4)
        if t.dtype != torch.int8
        else torch.full_like(t, 127)
    ),
    "negative": lambda t: torch.full_like(t, -7),
    "minimum": lambda t: torch.full_like(t, -(2**62) if t.dtype == torch.int64 else -100),
}
PLACES = [
    pytest.param(kind, name, id=f"{kind}-{name}")
    for kind, bank in banks().items()
    for name, _ in bank.named_buffers()
]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("kind", "name"), PLACES)
def test_promise_8_no_state_reaches_outside_its_buffers(kind, name, damage, backend) -> None:
    bank = banks()[kind]
    damaged = DAMAGE[damage](getattr(bank, name))
    keys = f32(5, 3, DIM) if isinstance(bank, FragmentBank) else f32(5, DIM)
    try:
        bank._buffers[name] = damaged  # past whatever an attribute checks
        if isinstance(bank, FragmentBank):
            bank.enqueue(keys, torch.tensor([3, 1, 2, 3, 3]), torch.arange(5))
        else:
            query = f32(3, DIM)
            weighted_info_nce(query, query, bank, query_ids=torch.arange(3), backend=backend)
            _, indices = hardest_negatives(query, bank, 2, backend=backend)
            assert int(indices.max()) < bank.rows.shape[0]
            bank.enqueue(keys, torch.arange(5), backend=backend)
    except (TypeError, ValueError) as error:
        assert "\n" not in str(error)
        assert "bank" in str(error).lower(), error
    else:
        assert 0 <= int(bank.ptr) < bank.rows.shape[0]
        assert 0 <= int(bank.count) <= bank.rows.shape[0]
        assert bank.ids.dtype == torch.int64 and bank.ids.shape == bank.rows.shape[:1]
