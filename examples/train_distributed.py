"""Two towers on many processes: DDP, banks that all ranks hold together, resume after a crash.

    torchrun --nproc-per-node=2 examples/train_distributed.py --out run

Started again with the same --out it goes on from the last checkpoint, also on another number of
processes. The data are random pairs in which a text is a noisy view of its image.
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

    def __init__(self, bank_size: int) -> None:
        super().__init__()
        self.image, self.text = (
            nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 32)) for _ in range(2)
        )
        # Without in-batch negatives, for a rank's own batch depends on the number of ranks.
        options = {"in_batch_negatives": False, "hardness": 5.0, "learn_temperature": True}
        self.loss = SEDELoss(bank_size, 32, sharded=True, **options)

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
    """Train, with a checkpoint every ten steps; sizes are those of all processes together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if gpu else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(keep_banks_local(TwoTowers(512).to(device)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first = 0
    if done := sorted(path.parent for path in options.out.glob("step*/.metadata")):  # whole ones
        weights, moments = get_state_dict(model, optimizer)
        dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=done[-1])
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
        first = int(done[-1].name.removeprefix("step"))
    for step in range(first, options.steps):
        loss = model(*(part.to(device) for part in batch(step, 64)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shown = loss.detach() / dist.get_world_size()
        dist.all_reduce(shown)  # the loss of the whole batch
        if dist.get_rank() == 0:
            print(f"step {step} loss {shown.item():.9g}", flush=True)
        if (step + 1) % 10 == 0:
            weights, moments = get_state_dict(model, optimizer)
            where = options.out / f"step{step + 1:06d}"
            dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=where)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
