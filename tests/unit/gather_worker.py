"""One rank of test_distributed: enqueues what all ranks gather, and writes its bank to a file."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from sede_kernels import MemoryBank
from sede_kernels.distributed import gather_keys


def main(rank: int, world: int, meeting: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    bank = MemoryBank(7, 3, normalize=False)
    for step in range(3):
        rows = [2, 0, 3][(rank + step) % 3]
        keys = torch.full((rows, 3), float(10 * step + rank))
        every, ids = gather_keys(keys, torch.full((rows,), 10 * step + rank))
        bank.enqueue(every, ids)
    alone, nothing = gather_keys(torch.ones(1, 2))
    found = {"rows": bank.rows.tolist(), "ids": bank.ids.tolist()}
    found |= {"alone": alone.shape[0], "nothing": nothing}
    torch.optim.SGD(torch.nn.Linear(2, 2).parameters())  # torch imports the rest of itself
    dist.barrier()
    dist.destroy_process_group()
    threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    found["gloo"] = [name for name in threads if "gloo" in name]
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
