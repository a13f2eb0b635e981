"""Two processes: equal banks everywhere, and losses and gradients as one process has them."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from sede_kernels.distributed import average_gradients, gather_keys, gather_with_grad
from sede_kernels.integrations.albef import RetrievalQueues
from sede_kernels.integrations.lightly import NTXentLoss
from sede_kernels.integrations.moco import MoCoQueue
from sede_kernels.integrations.open_clip import ClipLoss
from sede_kernels.integrations.sentence_transformers import DIRECTIONS, MultipleNegativesRankingLoss
from tests.conftest import unit

ROWS, IDS = 6, torch.arange(6)
#: Rows of the first rank: equal batches, a ragged last one, a rank without rows.
SPLITS = {"equal": 3, "ragged": 4, "empty": 6}
WHOLE = slice(0, ROWS)


def pairs(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """These rows of the batch of both ranks."""
    torch.manual_seed(4)
    left, right = (unit(ROWS, 16)[rows].requires_grad_() for _ in range(2))
    return left, right, IDS[rows]


def clip(rows: slice, world: int, with_grad: bool) -> tuple[nn.Module, Tensor, Tensor]:
    left, right, ids = pairs(rows)
    criterion = ClipLoss(gather_with_grad=with_grad, world_size=world, bank_size=16, dim=16)
    loss = criterion(left, right, torch.tensor(10.0), ids=ids)
    return criterion.text_bank, loss, torch.autograd.grad(loss, left)[0]


def sentences(rows: slice, gather: bool = True) -> tuple[nn.Module, Tensor, Tensor]:
    left, right, ids = pairs(rows)
    criterion = MultipleNegativesRankingLoss(
        nn.Identity(),
        gather_across_devices=gather,
        directions=DIRECTIONS,
        bank_size=16,
        dim=16,
        ids_in_labels=True,
    )
    loss = criterion.compute_loss_from_embeddings([left, right, right.flip(1)], ids)
    return criterion.bank, loss, torch.autograd.grad(loss, right)[0]


def simclr(rows: slice) -> tuple[Tensor, Tensor]:
    left, right, ids = pairs(rows)
    loss = NTXentLoss(gather_distributed=True)(left, right, ids=ids % 4)
    return loss.detach(), torch.autograd.grad(loss, right)[0]


def queues(rows: slice) -> list[nn.Module]:
    left, right, ids = pairs(rows)
    lightly = NTXentLoss(memory_bank_size=(16, 16), gather_distributed=True)
    lightly(left, right, ids=ids)
    moco = MoCoQueue(16, 16)
    moco.dequeue_and_enqueue(right, ids)
    albef = RetrievalQueues(16, 16)
    albef(left, right, left.detach(), right.detach(), ids, temp=0.1)
    return [lightly.memory_bank, moco.bank, albef.text_bank]


def everything(rows: slice, world: int) -> dict[str, object]:
    found = {
        "clip": clip(rows, world, False),
        "clip-grad": clip(rows, world, True),
        "sentences": sentences(rows),
    }
    values = {name: (loss.detach(), grad) for name, (_, loss, grad) in found.items()}
    values["simclr"] = simclr(rows)
    banks = [bank for bank, _, _ in found.values()] + queues(rows)
    return {"values": values, "banks": [bank.state_dict() for bank in banks]}


def sentence(call: Callable[[], object]) -> str:
    """What a call that must fail says; the ranks go on together after it."""
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "nothing was raised"


def gathering(rank: int) -> dict[str, object]:
    """The helpers themselves: eager and compiled, right and wrong."""
    compiled = torch.compile(gather_with_grad, backend="aot_eager", fullgraph=True)
    found: dict[str, object] = {}
    for name, gather in (("eager", gather_with_grad), ("compiled", compiled)):
        rows = torch.full((2, 3), 1.0 + rank, requires_grad=True)
        every = gather(rows)
        weight = torch.arange(12.0).reshape(4, 3) * (1 + rank)
        found[name] = every.detach(), torch.autograd.grad((every * weight).sum(), rows)[0]
    uneven = torch.ones(2 + rank, 3)
    keys = torch.ones(2, 3)
    parameter = nn.Parameter(torch.tensor([1.0]))
    parameter.grad = torch.tensor([1.0 + rank]) if rank else None
    average_gradients([parameter])
    return {
        **found,
        "average": parameter.grad,
        "uneven": sentence(lambda: compiled(uneven)),
        "width": sentence(lambda: gather_keys(torch.ones(2, 3 + rank))),
        "dtype": sentence(lambda: gather_keys(keys.double() if rank else keys)),
        "ids": sentence(lambda: gather_keys(keys, torch.arange(2) if rank else None)),
        "world": sentence(lambda: ClipLoss(world_size=4)(keys, keys, torch.tensor(1.0))),
    }


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    found: dict[str, object] = {}
    for name, first in SPLITS.items():
        rows = slice(first, ROWS) if rank else slice(0, first)
        found[name] = everything(rows, 2)
    found["gathering"] = gathering(rank)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()  # a rank that leaves first would break the connection of the other
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, object]]]:
    """What both processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_main, args=(str(folder),), nprocs=2)
    yield [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("split", SPLITS)
def test_two_ranks_equal_one_process(ranks: list, split: str) -> None:
    first, second = (rank[split] for rank in ranks)
    alone = everything(WHOLE, 1)
    for banks in zip(first["banks"], second["banks"], alone["banks"], strict=True):
        for key, value in banks[2].items():
            assert torch.equal(banks[0][key], value), key
            assert torch.equal(banks[1][key], value), key
    for name, (loss, grad) in alone["values"].items():
        losses, grads = zip(*(rank["values"][name] for rank in (first, second)), strict=True)
        # open_clip's ranks all have the whole loss, the others that of their rows.
        torch.testing.assert_close(torch.stack(losses).mean(), loss)
        if name not in ("sentences", "simclr"):
            torch.testing.assert_close(losses[0], losses[1])
        # A gradient through the gathering is summed over the ranks; DDP then divides by 2.
        factor = 1 if name == "clip" else 2
        torch.testing.assert_close(torch.cat(grads), factor * grad)


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_a_gathered_gradient_is_the_sum_over_the_ranks(ranks: list, how: str) -> None:
    weight = 3.0 * torch.arange(12.0).reshape(4, 3)
    for rank, found in enumerate(ranks):
        every, gradient = found["gathering"][how]
        assert torch.equal(every[:, 0], torch.tensor([1.0, 1.0, 2.0, 2.0]))
        assert torch.equal(gradient, weight[2 * rank : 2 * rank + 2])


def test_gradients_outside_ddp_are_averaged(ranks: list) -> None:
    for found in ranks:
        assert found["gathering"]["average"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("uneven", "batches of one size, got [2, 3]"),
        ("width", "rank 1 brings rows of 4 float32 numbers, rank 0 of 3 float32"),
        ("dtype", "rank 1 brings rows of 3 float64 numbers, rank 0 of 3 float32"),
        ("ids", "ids came on some ranks only"),
        ("world", "world_size=4 but torch.distributed runs 2 process(es)"),
    ],
)
def test_ranks_that_disagree_get_the_same_sentence(ranks: list, wrong: str, words: str) -> None:
    for found in ranks:
        assert words in found["gathering"][wrong]
        assert "\n" not in found["gathering"][wrong]
