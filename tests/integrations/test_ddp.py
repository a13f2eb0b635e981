"""Two processes with twins inside DistributedDataParallel: banks, weights and statistics."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from sede_kernels import SEDELoss
from sede_kernels.distributed import keep_banks_local
from sede_kernels.integrations.albef import RetrievalQueues
from sede_kernels.integrations.lightly import NTXentLoss
from sede_kernels.integrations.moco import MoCoQueue
from sede_kernels.integrations.open_clip import ClipLoss

STEPS, ROWS, DIM, SLOTS = 3, 4, 16, 32


class Net(nn.Module):
    """Two encoders and one criterion; the criterion's banks are inside what DDP wraps."""

    def __init__(self, name: str, world: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.name = name
        self.images, self.texts = nn.Linear(8, DIM), nn.Linear(8, DIM)
        self.statistics = nn.BatchNorm1d(8, affine=False)
        self.criterion = {
            "sede": lambda: SEDELoss(SLOTS, DIM),
            "moco": lambda: MoCoQueue(DIM, SLOTS),
            "albef": lambda: RetrievalQueues(DIM, SLOTS),
            "lightly": lambda: NTXentLoss(memory_bank_size=(SLOTS, DIM), gather_distributed=True),
            "open_clip": lambda: ClipLoss(
                gather_with_grad=True, world_size=world, bank_size=SLOTS, dim=DIM
            ),
        }[name]()

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        self.statistics(x)
        a, b = (F.normalize(encoder(x), dim=1) for encoder in (self.images, self.texts))
        keys = a.detach(), b.detach()
        if self.name == "sede":
            loss = self.criterion(a, b, *keys, ids=ids)
            self.criterion.enqueue(*keys, ids=ids)
        elif self.name == "moco":
            loss = self.criterion(a, keys[1]) + 0.0 * b.sum()
            self.criterion.dequeue_and_enqueue(keys[1], ids)
        elif self.name == "albef":
            loss = self.criterion(a, b, *keys, ids, temp=0.1)
        elif self.name == "lightly":
            loss = self.criterion(a, b, ids=ids)
        else:
            loss = self.criterion(a, b, torch.tensor(10.0), ids=ids)
        return loss


NAMES = ("sede", "moco", "albef", "lightly", "open_clip")


def ids_of(step: int, rank: int) -> Tensor:
    return 100 * rank + 10 * step + torch.arange(ROWS)


def train(name: str, ranks: list[int], world: int) -> dict[str, Tensor]:
    """Some steps on the batches of these ranks; all that the model holds afterwards."""
    net = keep_banks_local(Net(name, world))
    model = DistributedDataParallel(net) if world > 1 else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for step in range(STEPS):
        batches = [
            torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(10 * step + rank))
            for rank in ranks
        ]
        ids = torch.cat([ids_of(step, rank) for rank in ranks])
        optimizer.zero_grad()
        model(torch.cat(batches), ids).backward()
        optimizer.step()
    return net.state_dict()


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({name: train(name, [rank], 2) for name in NAMES}, f"{folder}/{rank}.pt")
    dist.barrier()  # a rank that leaves first would break the connection of the other
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ddp")
    mp.spawn(rank_main, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def banks(state: dict[str, Tensor]) -> list[list[int]]:
    """The ids of each bank, sorted, without empty slots."""
    found = [value for key, value in state.items() if key.endswith("ids") and value.ndim == 1]
    assert found
    return [sorted(i for i in ids.tolist() if i >= 0) for ids in found]


@pytest.mark.parametrize("name", NAMES)
def test_each_bank_holds_what_its_rank_is_to_remember(ranks: list, name: str) -> None:
    own = [sorted(torch.cat([ids_of(s, r) for s in range(STEPS)]).tolist()) for r in (0, 1)]
    for rank in (0, 1):
        expected = own[rank] if name == "sede" else sorted(own[0] + own[1])
        assert all(ids == expected for ids in banks(ranks[rank][name]))


# ALBEF's batch term looks at the keys of its own rank, so its steps are not those of one process.
@pytest.mark.parametrize("name", ["moco", "lightly", "open_clip"])
def test_banks_that_gather_train_as_one_process_does(ranks: list, name: str) -> None:
    alone = train(name, [0, 1], 1)
    for state in (rank[name] for rank in ranks):
        assert state.keys() == alone.keys()
        for key, value in alone.items():
            if "statistics" not in key:  # of the rank's own batch
                torch.testing.assert_close(state[key], value, rtol=1e-5, atol=2e-6, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_ranks_have_one_model_and_other_buffers_are_still_broadcast(ranks: list, name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    for key in ("images.weight", "texts.weight"):
        assert torch.equal(first[key], second[key])
    # Broadcast before each forward: after the last one both differ by one batch, not by three.
    one_batch = 0.1 * torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(20)).mean(0)
    other = 0.1 * torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(21)).mean(0)
    gap = first["statistics.running_mean"] - second["statistics.running_mean"]
    torch.testing.assert_close(gap, one_batch - other)
