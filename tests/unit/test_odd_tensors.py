"""Tensors without plain elements are refused by name in one sentence, wherever they come in."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import sede_kernels as sede
from tests.conftest import unit

Q = unit(4, 4, dtype=torch.float32)
IDS = torch.arange(4)
ONE = torch.ones(())


@pytest.fixture(scope="module")
def mesh() -> Iterator[object]:
    """One process of torch.distributed, for distributed tensors."""
    from torch.distributed.tensor import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def _distributed(tensor: Tensor, mesh: object) -> Tensor:
    from torch.distributed.tensor import Replicate, distribute_tensor

    return distribute_tensor(tensor, mesh, [Replicate()])


def _masked(tensor: Tensor, _: object) -> Tensor:
    from torch.masked import masked_tensor

    return masked_tensor(tensor, torch.ones_like(tensor, dtype=torch.bool))


def _nested(tensor: Tensor, _: object) -> Tensor:
    return torch.nested.nested_tensor([tensor, tensor])


def _quantized(tensor: Tensor, _: object) -> Tensor:
    return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)


KINDS: dict[str, tuple[Callable[[Tensor, object], Tensor], str]] = {
    "distributed": (_distributed, "a DTensor; pass its .to_local()"),
    "masked": (_masked, "a MaskedTensor; pass its .get_data()"),
    "nested": (_nested, "a nested tensor; pad it"),
    "quantized": (_quantized, "a quantized tensor; convert it with .dequantize()"),
    "sparse": (lambda tensor, _: tensor.to_sparse(), "sparse_coo; convert it with .to_dense()"),
}
Call = Callable[[Callable[[Tensor], Tensor], str], object]
CALLS: dict[str, Call] = {
    "query": lambda f, b: sede.weighted_info_nce(f(Q), Q, Q, backend=b),
    "positive": lambda f, b: sede.weighted_info_nce(Q, f(Q), Q, backend=b),
    "bank": lambda f, b: sede.weighted_info_nce(Q, Q, f(Q), backend=b),
    "query_ids": lambda f, b: sede.weighted_info_nce(Q, Q, Q, query_ids=f(IDS), backend=b),
    "bank_ids": lambda f, b: sede.weighted_info_nce(Q, Q, Q, bank_ids=f(IDS), backend=b),
    "temperature": lambda f, b: sede.weighted_info_nce(Q, Q, Q, temperature=f(ONE), backend=b),
    "hardness": lambda f, b: sede.weighted_info_nce(Q, Q, Q, hardness=f(ONE), backend=b),
    "limit": lambda f, b: sede.weighted_info_nce(Q, Q, Q, limit=f(Q[0]), backend=b),
    "ids": lambda f, b: sede.symmetric_info_nce(Q, Q, Q, Q, Q, Q, ids=f(IDS), backend=b),
    "scales": lambda f, b: sede.bank_lse(Q, Q, f(Q[0]), backend=b),
    "key_ids": lambda f, b: sede.score_info_nce(Q, key_ids=f(IDS), backend=b),
    "regions": lambda f, b: sede.cross_attention_similarity(f(Q[None]), Q[None], backend=b),
    "region_lengths": lambda f, b: sede.cross_attention_similarity(
        Q[None], Q[None], region_lengths=f(IDS[3:]), backend=b
    ),
    "attention": lambda f, b: sede.attention_erase(f(Q.abs()), backend=b),
    "keys": lambda f, b: sede.MemoryBank(4, 4).enqueue(f(Q), backend=b),
    "lengths": lambda f, b: sede.FragmentBank(4, 4, 4).enqueue(Q[None], f(IDS[3:]), backend=b),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:quantize_per_tensor")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("argument", CALLS)
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_what_is_not_dense_is_refused_by_name(argument, kind, backend, mesh) -> None:
    make, words = KINDS[kind]
    with pytest.raises(TypeError, match="must be a dense tensor, got") as error:
        CALLS[argument](lambda tensor: make(tensor, mesh), backend)
    said = str(error.value)
    assert f"{argument} must be" in said and words in said and said.count("\n") == 0


def test_unsigned_lengths_and_ids_count(backend) -> None:
    few, of = torch.tensor([2, 1], dtype=torch.uint64), Q.view(2, 2, 4)
    got = sede.cross_attention_similarity(of, of, region_lengths=few, backend=backend)
    want = sede.cross_attention_similarity(of, of, region_lengths=few.long(), backend=backend)
    assert torch.equal(got, want)
    bank = sede.FragmentBank(2, 2, 4)
    bank.enqueue(of, few)
    assert bank.lengths.tolist() == [2, 1]
    hashed = torch.tensor([2**63 + 5, 1, 2, 3], dtype=torch.uint64)
    with pytest.raises(ValueError, match=r"query_ids must be below 2\^63"):
        sede.weighted_info_nce(Q, Q, Q, query_ids=hashed, bank_ids=IDS, backend=backend)


def test_ids_without_values_are_refused() -> None:
    with pytest.raises(ValueError, match="ids are on meta but the keys are on cpu"):
        sede.MemoryBank(4, 4).enqueue(Q, IDS.to("meta"))
    with pytest.raises(ValueError, match="lengths are on meta, the keys on cpu"):
        sede.FragmentBank(4, 4, 4).enqueue(Q[None], IDS[3:].to("meta"))
