"""Given pairs in the cross-batch memory, losses that cannot use one, and the dtype of the loss."""

import importlib
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import unit

DIM, SIZE, ROWS = 8, 10, 4
LABELS = torch.tensor([0, 0, 1, 1])


@pytest.fixture
def twin(metric_learning: ModuleType) -> ModuleType:
    return importlib.import_module("sede_kernels.integrations.metric_learning")


@pytest.fixture
def host(metric_learning: ModuleType) -> ModuleType:
    return importlib.import_module("pytorch_metric_learning.losses")


def rows(seed: int, grad: bool = True) -> Tensor:
    torch.manual_seed(seed)
    return unit(ROWS, DIM).requires_grad_(grad)


class Nothing:
    """A miner that finds no pair, so that the given ones stand alone."""

    def __init__(self, parts: int) -> None:
        self.parts = parts

    def __call__(self, *batch: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(0, dtype=torch.int64) for _ in range(self.parts))


PAIRS = tuple(torch.tensor(part) for part in ([0, 2], [1, 3], [0, 1, 3], [2, 3, 0]))
TRIPLETS = tuple(torch.tensor(part) for part in ([0, 3], [1, 2], [2, 1]))


@pytest.mark.parametrize("given", [PAIRS, TRIPLETS], ids=["pairs", "triplets"])
@pytest.mark.parametrize("name", ["NTXentLoss", "ContrastiveLoss", "TripletMarginLoss"])
def test_given_pairs_mean_the_rows_of_the_batch_at_every_step(
    twin: ModuleType, host: ModuleType, name: str, given: tuple[Tensor, ...]
) -> None:
    """A ring of 10 and batches of 4: the rows of a batch lie somewhere else in every step."""
    loss = getattr(host, name)
    memory = twin.CrossBatchMemory(loss(), DIM, SIZE, miner=Nothing(len(given)))
    for seed in range(5):
        embeddings = rows(seed)
        got = memory(embeddings, LABELS, given)
        want = loss()(embeddings, LABELS, given, embeddings.detach(), LABELS)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(
            torch.autograd.grad(got, embeddings), torch.autograd.grad(want, embeddings)
        )


@pytest.mark.parametrize("name", ["NTXentLoss", "ContrastiveLoss", "TripletMarginLoss"])
def test_given_pairs_on_an_empty_memory_cost_nothing(
    twin: ModuleType, host: ModuleType, name: str
) -> None:
    """In evaluation mode nothing is stored, so there is nothing that a pair could point at."""
    memory = twin.CrossBatchMemory(getattr(host, name)(), DIM, SIZE).eval()
    for given in (PAIRS, TRIPLETS):
        assert float(memory(rows(0), LABELS, given)) == 0.0
    assert memory.queue_idx == 0


def test_given_pairs_of_rows_that_did_not_stay_are_left_out(
    twin: ModuleType, host: ModuleType
) -> None:
    memory = twin.CrossBatchMemory(host.ContrastiveLoss(), DIM, 3, miner=Nothing(4))
    embeddings = rows(0)
    got = memory(embeddings, LABELS, PAIRS)  # row 0 has no slot in a memory of three
    kept = (PAIRS[0], PAIRS[1], PAIRS[2][:2], PAIRS[3][:2])
    want = host.ContrastiveLoss()(embeddings, LABELS, kept, embeddings.detach(), LABELS)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["ProxyNCALoss", "FastAPLoss", "NPairsLoss", "SoftTripleLoss"])
def test_losses_without_a_reference_are_refused_at_construction(
    twin: ModuleType, host: ModuleType, name: str
) -> None:
    needs: dict[str, Any] = {"num_classes": 3, "embedding_size": DIM}
    loss = getattr(host, name)(**(needs if name in ("ProxyNCALoss", "SoftTripleLoss") else {}))
    with pytest.raises(ValueError, match=f"{name} takes no ref_emb") as caught:
        twin.CrossBatchMemory(loss, DIM)
    assert "\n" not in str(caught.value)


def test_every_loss_that_the_host_allows_is_taken(twin: ModuleType, host: ModuleType) -> None:
    for name in host.CrossBatchMemory.supported_losses():
        settings = {"num_classes": 2} if name == "MarginLoss" else {}
        twin.CrossBatchMemory(getattr(host, name)(**settings), DIM)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("hardness", [0.0, 2.0])
def test_the_loss_has_the_dtype_of_the_host_s(
    twin: ModuleType, host: ModuleType, dtype: torch.dtype, hardness: float
) -> None:
    real = host.CrossBatchMemory(host.NTXentLoss(), DIM, SIZE)
    ours = twin.CrossBatchMemory(twin.WeightedNTXentLoss(hardness=hardness), DIM, SIZE)
    for seed in range(2):
        embeddings = rows(seed, grad=False).to(dtype).requires_grad_()
        got, want = ours(embeddings, LABELS), real(embeddings, LABELS)
        assert got.dtype == want.dtype == dtype
    got.backward()
    assert embeddings.grad is not None and embeddings.grad.isfinite().all()
