"""One rank of test_parallel: criteria with banks inside DDP and FSDP, findings to a file."""

import copy
import json
import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F

from sede_kernels import SEDELoss
from sede_kernels.distributed import keep_banks_local


class Net(nn.Module):
    """An encoder and its criterion, with a batch norm whose buffers are to be broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.criterion = SEDELoss(
            12, 8, dtype=torch.int8, start_step=1, learn_temperature=True, learn_hardness=True
        )

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        z = F.normalize(self.encoder(x), dim=1)
        loss = self.criterion(z, z, z.detach(), z.detach(), ids=ids)
        self.criterion.enqueue(z.detach(), z.detach(), ids=ids)
        return loss


def train(model: nn.Module, rank: int) -> dict[str, Any]:
    """Three steps; the ids that the bank then holds, and what was warned of."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            torch.manual_seed(10 * step + rank)
            optimizer.zero_grad()
            model(torch.randn(4, 8), torch.arange(4) + 100 * rank + 10 * step).backward()
            optimizer.step()
    criterion = next(m for m in model.modules() if isinstance(m, SEDELoss))
    return {
        "ids": criterion.image_bank.ids.tolist(),
        "steps": int(criterion.steps),
        "temperature": float(torch.as_tensor(full(criterion.nce.log_inverse_temperature))),
        "warned": [str(w.message) for w in caught if "overwrote" in str(w.message)],
    }


def full(tensor: Any) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def ddp(rank: int, local: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    model = keep_banks_local(Net()) if local else Net()
    wrapped = nn.parallel.DistributedDataParallel(model)
    found = train(wrapped, rank)
    seen = torch.empty(8)

    def look(module: nn.Module, _: Any) -> None:
        seen.copy_(module[1].running_mean)

    model.encoder.register_forward_pre_hook(look)
    wrapped(torch.randn(4, 8) + rank, torch.arange(4))
    wrapped(torch.randn(4, 8), torch.arange(4))  # broadcasts what rank 0 has, and looks
    return {**found, "running_mean": seen.tolist()}


def sharded(rank: int, folder: str) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = Net()
    fully_shard(model, mesh=mesh)
    found = train(model, rank)
    # Plain tensors are taken to be equal on all ranks: what is not gets a key of its own.
    own = f"criterion_of_rank_{rank}"
    dcp.save({"model": get_model_state_dict(model), own: banks_of(model)}, checkpoint_id=folder)
    other = Net()
    fully_shard(other, mesh=mesh)
    target = {"model": get_model_state_dict(other), own: banks_of(other)}
    dcp.load(target, checkpoint_id=folder)
    set_model_state_dict(other, target["model"])
    other.criterion.load_state_dict(target[own], strict=False)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    same = [torch.equal(full(one), full(two)) for one, two in pairs]  # every rank, every one
    banks = banks_of(model)
    same += [torch.equal(value, banks[name]) for name, value in banks_of(other).items()]
    return {**found, "same": all(same), "buffers": len(banks)}


def banks_of(model: Net) -> dict[str, torch.Tensor]:
    state = model.criterion.state_dict()
    return {name: value.clone() for name, value in state.items() if not name.startswith("nce.")}


def flat_sharded(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = FullyShardedDataParallel(Net(), device_id=torch.device("cpu"), use_orig_params=True)
    for step in range(2):
        torch.manual_seed(10 * step + rank)
        model(torch.randn(4, 8), torch.arange(4) + 100 * rank + 10 * step).backward()
    return {"ids": model.module.criterion.image_bank.ids.tolist()}


def main(rank: int, world: int, meeting: str, out: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    found = {
        "plain": ddp(rank, local=False),
        "local": ddp(rank, local=True),
        "fully_shard": sharded(rank, f"{meeting}_dcp"),
        "fsdp": flat_sharded(rank),
    }
    copied = keep_banks_local(copy.deepcopy(Net()))
    found["names"] = copied._ddp_params_and_buffers_to_ignore
    with open(out, "w", encoding="utf-8") as handle:
        json.dump(found, handle)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
