"""Promise 4: a step reads nothing back to the host and sends no number to the device.

The meta device holds no values, so that whatever asks for one raises; what is made on the host and
copied over shows as an op. Only the layers above the kernels run there: a CUDA graph may hold them.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sede_kernels as sk

B, K, R, D = 4, 8, 3, 16
#: Ops that read a value, or make a tensor of a number of the host.
FORBIDDEN = {"_local_scalar_dense", "scalar_tensor", "lift_fresh", "nonzero", "item", "equal"}


class Watch(TorchDispatchMode):
    """Raises where the host reads a value, makes a tensor of a number, or moves one."""

    def __init__(self, allowed: str = "") -> None:
        super().__init__()
        self.allowed = allowed
        self.ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        assert name not in FORBIDDEN or name == self.allowed, name
        out = func(*args, **(kwargs or {}))
        for tensor in (*args, out):
            assert not isinstance(tensor, Tensor) or tensor.is_meta, (name, tensor.device)
        self.ops += 1
        return out


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta", requires_grad=True)


def numbers(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")


def weighted() -> Tensor:
    return sk.weighted_info_nce(
        meta(B, D), meta(B, D), meta(K, D).detach(), hardness=5.0, margin=0.1, tau_plus=0.1,
        query_ids=numbers(B), bank_ids=numbers(K),
    )  # fmt: skip


def both_sides(**options: Any) -> Callable[[], Tensor]:
    def step() -> Tensor:
        criterion = sk.SEDELoss(K, D, hardness=5.0, **options).to("meta")
        image, text = meta(B, D), meta(B, D)
        with Watch():
            loss = criterion(image, text, image, text, ids=numbers(B))
            criterion.enqueue(image, text, ids=numbers(B))
        return loss

    return step


def fragments() -> None:
    bank = sk.FragmentBank(K, R, D, device="meta")
    with Watch():
        bank.enqueue(meta(B, 2, D), numbers(B), numbers(B))


STEPS: dict[str, Callable[[], Tensor | None]] = {
    "weighted_info_nce": weighted,
    "SEDELoss": both_sides(),
    "SEDELoss of banks": both_sides(in_batch_negatives=False),
    "SEDELoss that learns and warms up": both_sides(
        start_step=2, learn_temperature=True, learn_hardness=True
    ),
    "bank_lse": lambda: sk.bank_lse(meta(B, D), meta(K, D).detach(), [3.0, 2.0]),
    "hardest_negatives": lambda: sk.hardest_negatives(meta(B, D), meta(K, D), 2)[0],
    "attention_erase": lambda: sk.attention_erase(
        meta(B, R), rule="quantile", threshold=0.3, lengths=numbers(B)
    )[0],
    "cross_attention_similarity": lambda: sk.cross_attention_similarity(
        meta(B, R, D), meta(5, 2, D), erase="mean", region_lengths=numbers(B)
    ),
    "cross_attention_pairs": lambda: sk.cross_attention_pairs(meta(B, 2, R, D), meta(B, 2, 2, D)),
    "FragmentBank.enqueue": fragments,
}


@pytest.mark.parametrize("name", STEPS)
def test_promise_4_a_step_reads_no_value(name) -> None:
    # The gradient of clamp, which keeps a learnt hardness >= 0, fills in a number on the device.
    outer = Watch(allowed="scalar_tensor" if "learns" in name else "")
    if name.startswith(("SEDELoss", "FragmentBank")):  # these watch once they are built
        loss = STEPS[name]()
    else:
        with outer:
            loss = STEPS[name]()
    if loss is not None:
        with outer:
            loss.sum().backward()  # type: ignore[no-untyped-call]
        assert outer.ops > 0


def test_the_watch_sees_reads_and_copies() -> None:
    value = torch.ones(2, device="meta")
    for step in (
        lambda: value.sum().item(),
        lambda: value + torch.tensor([1.0, 2.0]).to("meta"),
        lambda: torch.where(value > 0, value, 2.0),
    ):
        with pytest.raises((AssertionError, RuntimeError)), Watch():
            step()
