"""Two towers on many processes: DDP, banks that all ranks hold together, resume after a crash.

    torchrun --nproc-per-node=2 examples/train_distributed.py --out run

Started again with the same --out, as after a crash, it goes on from the last checkpoint, also on
another number of processes. torchrun's --max-restarts=3 starts it again by itself; with gloo that
hung in two of three tries. On several nodes add torchrun's --nnodes and --rdzv-endpoint. The data
here are random pairs in which a text is a noisy view of its image.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.functional import normalize

from sede_kernels import SEDELoss
from sede_kernels.distributed import keep_banks_local


class TwoTowers(nn.Module):
    """Both encoders and the criterion, so that its temperature is averaged like the weights."""

    def __init__(self, bank_size: int, width: int = 64, dim: int = 32) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, dim))
        self.text = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, dim))
        self.loss = SEDELoss(
            bank_size,
            dim,
            sharded=True,
            in_batch_negatives=False,  # a rank's own batch depends on the number of ranks
            hardness=5.0,
            learn_temperature=True,
        )

    def forward(self, images: torch.Tensor, texts: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The loss of this rank's rows; what they hold is a negative from now on."""
        image, text = normalize(self.image(images), dim=1), normalize(self.text(texts), dim=1)
        loss = self.loss(image, text, image.detach(), text.detach(), ids=ids)
        self.loss.enqueue(image.detach(), text.detach(), ids=ids)
        return loss


def batch(step: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """This rank's part of the batch of all ranks, the same batch for any number of them."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 1000, (size,), generator=generator)
    images = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))[ids]
    texts = images + 0.5 * torch.randn(size, 64, generator=generator)
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    return images[mine], texts[mine], ids[mine]


def main() -> None:
    """Train, with a checkpoint every ten steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=64, help="of all processes together")
    parser.add_argument("--bank-size", type=int, default=512, help="of all processes together")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if gpu else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    torch.manual_seed(0)
    model = keep_banks_local(TwoTowers(options.bank_size).to(device))
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)

    first = 0
    done = sorted(path.parent for path in options.out.glob("step*/.metadata"))
    if done:  # a checkpoint is whole once it has its metadata
        weights, moments = get_state_dict(parallel, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.load(state, checkpoint_id=done[-1])
        set_state_dict(parallel, optimizer, model_state_dict=weights, optim_state_dict=moments)
        first = int(done[-1].name.removeprefix("step"))
    for step in range(first, options.steps):
        loss = parallel(*(part.to(device) for part in batch(step, options.batch_size)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shown = loss.detach() / dist.get_world_size()
        dist.all_reduce(shown)  # the loss of the whole batch
        if dist.get_rank() == 0:
            print(f"step {step} loss {shown.item():.9g}", flush=True)
        if (step + 1) % 10 == 0:
            weights, moments = get_state_dict(parallel, optimizer)
            state = {"model": weights, "optimizer": moments}
            dcp.save(state, checkpoint_id=options.out / f"step{step + 1:06d}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
