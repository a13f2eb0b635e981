"""One rank's part of training with sharded banks under DDP and FSDP2, beside one process."""

from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from sede_kernels import MemoryBank, SEDELoss, ShardedMemoryBank, weighted_info_nce
from sede_kernels.bank import BankView
from sede_kernels.distributed import keep_banks_local
from sede_kernels.functional import bank_lse, symmetric_info_nce
from sede_kernels.integrations.albef import RetrievalQueues
from sede_kernels.integrations.lightly import NTXentLoss
from sede_kernels.integrations.moco import MoCoQueue
from sede_kernels.integrations.open_clip import ClipLoss
from sede_kernels.integrations.sentence_transformers import MultipleNegativesRankingLoss
from tests.distributed.losses import gap

SIZE, WIDTH, DIM, STEPS = 12, 6, 5, 4
ROWS = (3, 0, 4)  # of each rank; the second never has any
OPTIONS = {"hardness": 4.0, "temperature": 0.2, "positive_focus": 0.5}


class Towers(nn.Module):
    """A linear encoder a modality, and the criterion inside, as users wrap it."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.image, self.text = (nn.Linear(WIDTH, DIM, dtype=torch.float64) for _ in range(2))
        self.criterion = criterion

    def keys(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        return normalize(self.image(images), dim=1), normalize(self.text(texts), dim=1)

    def forward(self, images: Tensor, texts: Tensor, ids: Tensor) -> Tensor:
        image, text = self.keys(images, texts)
        loss: Tensor = self.criterion(image, text, image.detach(), text.detach(), ids=ids)
        self.criterion.enqueue(image.detach(), text.detach(), ids=ids)
        return loss


class WholeBanks(nn.Module):
    """The banks of all ranks on one process: what is stored follows the ranks' own rings."""

    def __init__(self, world: int) -> None:
        super().__init__()
        share, more = divmod(SIZE, world)
        sizes = [share + (rank < more) for rank in range(world)]
        self.rings = [[MemoryBank(n, DIM, dtype=torch.float64) for n in sizes] for _ in range(2)]

    def forward(self, image: Tensor, text: Tensor, ik: Tensor, tk: Tensor, *, ids: Tensor) -> Any:
        views = [
            BankView(
                torch.cat([ring.rows for ring in side]), None, torch.cat([r.ids for r in side])
            )
            for side in self.rings
        ]
        return symmetric_info_nce(image, text, ik, tk, *views, ids=ids, **OPTIONS)

    def enqueue(self, image: Tensor, text: Tensor, *, ids: Tensor) -> None:
        world = len(self.rings[0])
        for rank in range(world):
            mine = part(rank)
            self.rings[0][rank].enqueue(image[mine], ids[mine])
            self.rings[1][rank].enqueue(text[mine], ids[mine])


def part(rank: int) -> slice:
    return slice(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))


def data(step: int, world: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(100 + step)
    total = sum(ROWS[:world])
    images, texts = (torch.randn(total, WIDTH, dtype=torch.float64) for _ in range(2))
    return images, texts, torch.randint(0, 9, (total,))


def trained(model: nn.Module, rank: int | None, world: int, micro: int = 2) -> None:
    """Some steps of two micro batches each; all but the last without synchronisation."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    for step in range(STEPS):
        for turn in range(micro):
            last = turn == micro - 1
            waits = isinstance(model, DistributedDataParallel) and not last
            rows = slice(None) if rank is None else part(rank)
            with model.no_sync() if waits else nullcontext():
                loss = model(*(value[rows] for value in data(micro * step + turn, world)))
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> list[Tensor]:
    found = []
    for value in model.parameters():
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        found.append(whole.detach().clone())
    return found


def sharded(group: Any) -> Towers:
    # The batch of a rank is no negative here: one process would have that of all ranks.
    options = {**OPTIONS, "in_batch_negatives": False}
    criterion = SEDELoss(SIZE, DIM, sharded=True, group=group, dtype=torch.float64, **options)
    return Towers(criterion)


def under_ddp(rank: int, world: int, group: Any) -> dict[str, float]:
    """Ragged batches and an empty one, micro batches, buffers that DDP would broadcast."""
    truth = Towers(WholeBanks(world))
    trained(truth, None, world)
    model = keep_banks_local(sharded(group))
    trained(DistributedDataParallel(model, process_group=group), rank, world)
    rings = truth.criterion.rings
    own = model.criterion.image_bank, model.criterion.text_bank
    bank_gaps = [gap(bank.rows, side[rank].rows) for bank, side in zip(own, rings, strict=True)]
    found = {
        "weights": max(map(gap, weights(model), weights(truth))),
        "banks": max(bank_gaps),
        "ids": max(gap(b.ids, side[rank].ids) for b, side in zip(own, rings, strict=True)),
    }
    return found


def on_two(rank: int, group: Any) -> dict[str, float]:
    """DDP inside a compiled step; FSDP, which shards the weights and leaves the banks alone."""
    # takes a second: two ranks need it
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    truth = Towers(WholeBanks(2))
    trained(truth, None, 2, micro=1)
    step = torch.compile(
        DistributedDataParallel(keep_banks_local(sharded(group)), process_group=group),
        backend="aot_eager",
    )
    trained(step, rank, 2, micro=1)
    model = fully_shard(sharded(group), mesh=DeviceMesh.from_group(group, "cpu"))
    trained(model, rank, 2, micro=1)
    bank, ring = model.criterion.image_bank, truth.criterion.rings[0][rank]
    flat = FullyShardedDataParallel(
        sharded(group), process_group=group, device_id=torch.device("cpu"), use_orig_params=True
    )
    trained(flat, rank, 2, micro=1)
    flat_bank = flat.module.criterion.image_bank
    with FullyShardedDataParallel.summon_full_params(flat):
        flat_gap = max(map(gap, weights(flat), weights(truth)))
    return {
        "flat": max(flat_gap, gap(flat_bank.rows, ring.rows)),
        "compiled": max(map(gap, weights(step), weights(truth))),
        "fsdp": max(*map(gap, weights(model), weights(truth)), gap(bank.rows, ring.rows)),
    }


def collectives(rank: int) -> dict[str, int]:
    """How many there are in the forward, the backward and in enqueue."""
    counts = {"forward": 0, "backward": 0, "enqueue": 0}
    now = "forward"
    wanted = ("all_gather_into_tensor", "all_gather_single", "all_reduce", "all_to_all_single",
              "reduce_scatter_tensor", "reduce_scatter_single")  # fmt: skip
    names = [name for name in wanted if hasattr(dist, name)]
    before = {name: getattr(dist, name) for name in names}

    def counted(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[now] += 1
            return before[name](*args, **kwargs)

        return call

    bank = ShardedMemoryBank(SIZE, DIM)
    bank.enqueue(torch.randn(3, DIM))
    query = torch.randn(3, DIM, requires_grad=True)
    for name in names:
        setattr(dist, name, counted(name))
    loss = weighted_info_nce(query, query.detach(), bank)
    now = "backward"
    loss.backward()
    now = "enqueue"
    bank.enqueue(query.detach())
    for name in names:
        setattr(dist, name, before[name])
    return counts


def twins(rank: int) -> dict[str, float]:
    """MoCo's queue and lightly's loss on four ranks, beside one process with all rows."""
    torch.manual_seed(9)
    rows = normalize(torch.randn(5, 8, DIM), dim=2)
    mine, found = slice(2 * rank, 2 * rank + 2), {}
    queue, whole = MoCoQueue(DIM, SIZE, sharded=True), MoCoQueue(DIM, SIZE)
    queue.dequeue_and_enqueue(rows[0][mine])
    whole.bank.enqueue(rows[0])
    host = {"queue": rows[1:3].flatten(0, 1)[:SIZE].T, "queue_ptr": torch.tensor([5])}
    for name in ("moco", "moco-host"):
        loss, truth = queue(rows[3][mine], rows[4][mine]), whole(rows[3], rows[4])
        dist.all_reduce(loss)
        found[name] = gap(loss / 4, truth)
        for each in (queue, whole):
            each.load_host(host)
    found["albef"] = of_albef(rows, mine)
    found["open_clip"] = of_open_clip(rows, mine)
    found["sentences"] = of_sentence_transformers(rows, mine, False)
    found["sentences-gathered"] = of_sentence_transformers(rows, mine, True)
    criteria = [NTXentLoss(0.2, (SIZE, DIM), sharded=flag) for flag in (True, False)]
    for turn in range(2):
        parts = [rows[turn][at].clone().requires_grad_() for at in (mine, slice(None))]
        keys = rows[turn + 1][mine], rows[turn + 1]
        losses = [c(q, k) for c, q, k in zip(criteria, parts, keys, strict=True)]
    total = losses[0].detach()
    dist.all_reduce(total)
    found["lightly"] = gap(total / 4, losses[1].detach())
    return found


def of_albef(rows: Tensor, mine: slice) -> float:
    """Loss and gradient with soft targets, beside queues that this rank holds whole."""
    ids, found = torch.arange(8) % 5, []
    for flag in (True, False):
        queues = RetrievalQueues(DIM, SIZE, sharded=flag)
        queues.dequeue_and_enqueue(rows[0][mine], rows[1][mine], ids[mine])
        learn = rows[3][mine].clone().requires_grad_()
        sides = learn, rows[4][mine], rows[2][mine], rows[1][mine]
        loss = queues(*sides, ids[mine], temp=0.2, alpha=0.4)
        loss.backward()
        found.append((loss.detach(), learn.grad))
    return max(map(gap, *found))


def of_open_clip(rows: Tensor, mine: slice) -> float:
    """Loss and gradients of the rows of all ranks, beside banks that this rank holds whole."""
    ids, found = torch.arange(8) % 5, []
    for flag in (True, False):
        loss = ClipLoss(
            world_size=4, gather_with_grad=True, bank_size=SIZE, dim=DIM, hardness=3.0, sharded=flag
        )
        loss.enqueue(rows[0][mine], rows[1][mine], ids[mine])
        sides = [rows[turn][mine].clone().requires_grad_() for turn in (2, 3)]
        total = loss(*sides, torch.tensor(10.0), ids=ids[mine])
        total.backward()
        assert loss.image_bank is not None
        count = loss.image_bank.count.clone()
        if flag:
            dist.all_reduce(count)
        assert int(count) == SIZE, "the loss has stored its features"
        found.append((total.detach(), *(side.grad for side in sides)))
    return max(map(gap, *found))


def of_sentence_transformers(rows: Tensor, mine: slice, gathers: bool) -> float:
    """Loss and gradients, beside a bank that this rank holds whole; also of half the width."""
    ids, found, narrow = torch.arange(8) % 5, [], []
    world = 4 if gathers else 1  # through the gathering a gradient is that of all ranks
    for flag in (True, False):
        own = mine if flag else slice(None)
        batch = own if gathers else mine
        loss = MultipleNegativesRankingLoss(
            nn.Identity(),
            gather_across_devices=gathers and flag,
            bank_size=SIZE,
            dim=DIM,
            ids_in_labels=True,
            sharded=flag,
        )
        assert loss.bank is not None
        loss.bank.enqueue(rows[0][own], ids[own])
        view = loss._step.view(loss.bank, 2, None, torch.float32)
        narrow.append(bank_lse(rows[1][mine, :2], view, 3.0, query_ids=ids[mine]))
        sides = [rows[turn][batch].clone().requires_grad_() for turn in (2, 3)]
        total = loss.compute_loss_from_embeddings(sides, ids[batch])
        total.backward()
        total = total.detach()
        count = loss.bank.count.clone()
        if flag:
            dist.all_reduce(count)
        if flag and gathers:
            dist.all_reduce(total)
        assert int(count) == (SIZE if flag or gathers else 10), "it has stored its positives"
        here = slice(None) if flag or not gathers else mine
        share = world if flag else 1
        found.append((total / share, *(side.grad[here] / share for side in sides)))
    return max(*map(gap, *found), gap(*narrow))


def sentences(rank: int) -> dict[str, str]:
    """What calls that do not fit each other say, on every rank."""
    bank, small = ShardedMemoryBank(SIZE, DIM), ShardedMemoryBank(SIZE, DIM, max_batch=2)
    rows = torch.randn(3, DIM)

    def said(call: Any) -> str:
        try:
            call()
        except (ValueError, RuntimeError) as error:
            return str(error)
        return "nothing"

    wide = rows.double() if rank == 1 else rows
    return {
        "dtype": said(lambda: weighted_info_nce(wide, wide, bank)),
        "ids": said(
            lambda: weighted_info_nce(
                rows, rows, bank, query_ids=torch.arange(3) if rank == 2 else None
            )
        ),
        "gradients": said(
            lambda: weighted_info_nce(rows.clone().requires_grad_(rank == 0), rows, bank)
        ),
        "many": said(lambda: weighted_info_nce(rows, rows, small)),
        "after": said(lambda: weighted_info_nce(rows, rows, bank)),
    }


def absent(rank: int, folder: Path) -> str:
    """The second rank skips a step: what the first says when its patience is over."""
    bank = ShardedMemoryBank(SIZE, DIM)
    rows = torch.randn(3, DIM)
    store: Any = dist.distributed_c10d._get_default_store()
    if rank == 1:
        store.wait(["over"], timedelta(seconds=100))
        return "skipped"
    try:
        weighted_info_nce(rows, rows, bank)
    except RuntimeError as error:
        return str(error)
    finally:
        store.set("over", "yes")
    return "nothing"


def work(rank: int, folder: Path) -> dict[str, Any]:
    """Everything of this file but ``absent``."""
    groups = {world: dist.new_group(list(range(world))) for world in (2, 3)}
    found: dict[str, Any] = {"sentences": sentences(rank), "collectives": collectives(rank)}
    found["twins"] = twins(rank)
    if rank < 3:
        found["ddp"] = under_ddp(rank, 3, groups[3])
    if rank < 2:
        found |= on_two(rank, groups[2])
    return found
