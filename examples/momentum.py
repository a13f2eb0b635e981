"""Momentum encoders that fill the banks, with micro-batches, on one process or many.

    python examples/momentum.py
    torchrun --nproc-per-node=2 examples/momentum.py

The slow encoders follow once an optimizer step, not once a micro-batch. They live outside the
module that DDP wraps: all ranks hold the same weights, so the slow copies stay equal by themselves.
"""

import contextlib
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import normalize

from sede_kernels import MomentumEncoder, SEDELoss
from sede_kernels.distributed import gather_keys, keep_banks_local

BANK, BATCH, MICRO, STEPS = 256, 32, 4, 8


class TwoTowers(nn.Module):
    """Both encoders and the criterion."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(64, 32), nn.Linear(64, 32)
        self.loss = SEDELoss(BANK, 32, hardness=5.0, learn_temperature=True)

    def forward(
        self, pair: tuple[torch.Tensor, torch.Tensor], keys: list[torch.Tensor], ids: torch.Tensor
    ) -> torch.Tensor:
        """The loss of trained embeddings against slow keys."""
        image, text = normalize(self.image(pair[0]), dim=1), normalize(self.text(pair[1]), dim=1)
        loss: torch.Tensor = self.loss(image, text, *keys, ids=ids)
        return loss


def momentum_for(bank: int, stored: int) -> float:
    """1 - stored / (2 bank): a slow encoder remembers about twice as long as the bank does.

    Args:
        bank: slots.
        stored: keys that enter it between two updates of the slow encoders, of all ranks.
    """
    return min(0.9999, max(0.9, 1.0 - stored / (2.0 * bank)))


def micro_batch(step: int, part: int, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random pairs in which a text is a noisy view of its image."""
    generator = torch.Generator().manual_seed(1000 * step + 10 * part + rank)
    ids = torch.randint(0, 500, (BATCH // MICRO,), generator=generator)
    images = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))[ids]
    return images, images + 0.3 * torch.randn(images.shape, generator=generator), ids


def main() -> None:
    """A few steps; every rank then says whether it agrees with the first."""
    many = "LOCAL_RANK" in os.environ
    if many:
        dist.init_process_group("gloo")
    rank, world = (dist.get_rank(), dist.get_world_size()) if many else (0, 1)
    torch.manual_seed(0)
    model = keep_banks_local(TwoTowers())
    momentum = momentum_for(BANK, BATCH * world)
    slow = [MomentumEncoder(encoder, momentum) for encoder in (model.image, model.text)]
    parallel = nn.parallel.DistributedDataParallel(model) if many else model
    optimizer = torch.optim.AdamW(
        [{"params": [*model.image.parameters(), *model.text.parameters()]},
         model.loss.parameter_group()], lr=1e-2,
    )  # fmt: skip
    for step in range(STEPS):
        total = 0.0
        for part in range(MICRO):
            images, texts, ids = micro_batch(step, part, rank)
            keys = [normalize(e(x), dim=1) for e, x in zip(slow, (images, texts), strict=True)]
            last = part == MICRO - 1
            quiet = parallel.no_sync() if many and not last else contextlib.nullcontext()
            with quiet:
                loss = parallel((images, texts), keys, ids) / MICRO
                loss.backward()
            total += loss.item()
            # Every micro-batch enters the banks, the keys of all ranks, so that banks stay equal.
            image_key, every = gather_keys(keys[0], ids)
            model.loss.enqueue(image_key, gather_keys(keys[1])[0], ids=every)
        optimizer.step()
        optimizer.zero_grad()
        for encoder, trained in zip(slow, (model.image, model.text), strict=True):
            encoder.update(trained)  # once a step: only a step changes the weights
        if rank == 0:
            print(f"step {step}  loss {total:.4f}  momentum {momentum:.4f}", flush=True)
    if many:
        mine = torch.cat([p.detach().flatten() for p in (*slow[0].parameters(),)])
        mine = torch.cat([mine, model.loss.image_bank.rows.flatten()])
        others = [torch.empty_like(mine) for _ in range(world)]
        dist.all_gather(others, mine)
        equal = all(torch.equal(other, mine) for other in others)
        print(f"rank {rank}: slow encoders and banks agree: {equal}", flush=True)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
