"""Two processes: equal banks everywhere, and losses and gradients as one process has them."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from sede_kernels.integrations.albef import RetrievalQueues
from sede_kernels.integrations.lightly import NTXentLoss
from sede_kernels.integrations.moco import MoCoQueue
from sede_kernels.integrations.open_clip import ClipLoss
from sede_kernels.integrations.sentence_transformers import DIRECTIONS, MultipleNegativesRankingLoss
from tests.conftest import unit

ROWS, IDS = 3, torch.arange(6)


def pairs() -> tuple[Tensor, Tensor]:
    """Rows of both ranks, one after the other."""
    torch.manual_seed(4)
    return unit(2 * ROWS, 16).requires_grad_(), unit(2 * ROWS, 16).requires_grad_()


def own(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = slice(ROWS * rank, ROWS * rank + ROWS)
    left, right = (side.detach()[rows].requires_grad_() for side in pairs())
    return left, right, IDS[rows]


def clip(rank: int, world: int, with_grad: bool) -> tuple[nn.Module, Tensor, Tensor]:
    left, right, ids = own(rank) if world == 2 else (*pairs(), IDS)
    criterion = ClipLoss(
        gather_with_grad=with_grad, rank=rank, world_size=world, bank_size=16, dim=16
    )
    loss = criterion(left, right, torch.tensor(10.0), ids=ids)
    return criterion.text_bank, loss, torch.autograd.grad(loss, left)[0]


def sentences(rank: int, world: int) -> tuple[nn.Module, Tensor, Tensor]:
    left, right, ids = own(rank) if world == 2 else (*pairs(), IDS)
    criterion = MultipleNegativesRankingLoss(
        nn.Identity(),
        gather_across_devices=True,
        directions=DIRECTIONS,
        bank_size=16,
        dim=16,
        ids_in_labels=True,
    )
    loss = criterion.compute_loss_from_embeddings([left, right, right.flip(1)], ids)
    return criterion.bank, loss, torch.autograd.grad(loss, right)[0]


def queues(rank: int, world: int) -> list[nn.Module]:
    left, right, ids = own(rank) if world == 2 else (*pairs(), IDS)
    lightly = NTXentLoss(memory_bank_size=(16, 16), gather_distributed=True)
    lightly(left, right, ids=ids)
    moco = MoCoQueue(16, 16)
    moco.dequeue_and_enqueue(right, ids)
    albef = RetrievalQueues(16, 16)
    albef(left, right, left.detach(), right.detach(), ids, temp=0.1)
    return [lightly.memory_bank, moco.bank, albef.text_bank]


def everything(rank: int, world: int) -> dict[str, object]:
    found = {
        "clip": clip(rank, world, False),
        "clip-grad": clip(rank, world, True),
        "sentences": sentences(rank, world),
    }
    values = {name: (loss.detach(), grad) for name, (_, loss, grad) in found.items()}
    banks = [bank for bank, _, _ in found.values()] + queues(rank, world)
    return {"values": values, "banks": [bank.state_dict() for bank in banks]}


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(everything(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    mp.spawn(rank_main, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone = everything(0, 1)
    for banks in zip(ranks[0]["banks"], ranks[1]["banks"], alone["banks"], strict=True):
        for key, value in banks[2].items():
            assert torch.equal(banks[0][key], value), key
            assert torch.equal(banks[1][key], value), key
    for name, (loss, grad) in alone["values"].items():
        losses, grads = zip(*(rank["values"][name] for rank in ranks), strict=True)
        # open_clip's ranks all have the whole loss, sentence-transformers' that of their rows.
        torch.testing.assert_close(torch.stack(losses).mean(), loss)
        if name != "sentences":
            torch.testing.assert_close(losses[0], losses[1])
        # A gradient through the gathering is summed over the ranks; DDP then divides by 2.
        factor = 1 if name == "clip" else 2
        torch.testing.assert_close(torch.cat(grads), factor * grad)
